//! What this machine's nodes compute on: opens what the cluster file asks for.
//!
//! 1. A GPU that is asked for by its number and is not there is an error, which says what was looked for and where.
//! 2. `auto` takes the first GPU; without one it says so, and why, and the CPU computes.

use std::path::{Path, PathBuf};

use testudo_actors::checkpoint::{PartSource, PartWriter, ServerSetup};
use testudo_actors::{JobSpec, Resume};
use testudo_kernels::cuda::{AnyDevice, Gpu, Products};

use crate::config::{ComputeDevice, Config, MatrixProducts};
use crate::error::Failure;

/// Where the kernel shows devices.
const DEVICES: &str = "/dev";

/// Opens what the key `key` asks for; `None` is the CPU.
///
/// # Errors
/// When it is not there, or cuBLAS if `products` needs that, with what was looked for and where.
pub fn open(
    key: &str,
    device: ComputeDevice,
    products: MatrixProducts,
) -> Result<Option<AnyDevice>, Failure> {
    let (number, wanted) = match device {
        ComputeDevice::Cpu => return Ok(None),
        ComputeDevice::Auto => (0, false),
        ComputeDevice::Cuda(number) => (number, true),
    };
    let products = match products {
        MatrixProducts::Exact => Products::Exact,
        MatrixProducts::F32 => Products::F32,
        MatrixProducts::Tf32 => Products::Tf32,
        MatrixProducts::Bf16 => Products::Bf16,
    };
    // Without cuBLAS a GPU is not passed over: its bits were asked for.
    let wanted = wanted || products != Products::Exact;
    match Gpu::open(number).and_then(|gpu| gpu.with_products(products)) {
        Ok(gpu) => {
            let name = format!("cuda:{number}, {}", gpu.name());
            tracing::info!("{key} = \"{device}\": {name} computes");
            Ok(Some(AnyDevice::new(name, gpu)))
        }
        Err(error) if wanted => Err(Failure::misconfigured(format!("{key} = \"{device}\": {error}"))),
        Err(error) => {
            tracing::info!("{key} = \"auto\": the CPU computes, for there is no GPU: {error}");
            Ok(None)
        }
    }
}

/// Looks whether what `config` asks for can be there, before any node is started: the libraries alone, for a launcher has no use for the
/// driver's threads. A line where `auto` will be the CPU.
///
/// # Errors
/// When a GPU is asked for by its number and there are none, with what was looked for and where.
pub fn look(config: &Config) -> Result<Vec<String>, Failure> {
    let asked = [("servers.device", config.servers.device), ("workers.device", config.workers.device)];
    let asked: Vec<_> = asked.into_iter().filter(|(_, device)| *device != ComputeDevice::Cpu).collect();
    // Where nodes are on hosts, each looks for itself.
    if asked.is_empty() || config.ssh.is_some() {
        return Ok(Vec::new());
    }
    let Err(error) = Gpu::libraries() else { return Ok(Vec::new()) };
    if let Some((key, device)) = asked.iter().find(|(_, device)| *device != ComputeDevice::Auto) {
        return Err(Failure::misconfigured(format!("{key} = \"{device}\": there is no GPU: {error}")));
    }
    let keys: Vec<&str> = asked.iter().map(|(key, _)| *key).collect();
    Ok(vec![format!("{} = \"auto\": the CPU computes, for there is no GPU: {error}", keys.join(", "))])
}

/// The files through which the driver reaches GPUs, for a process that computes on `device`.
#[must_use]
pub fn files(device: ComputeDevice) -> Vec<PathBuf> {
    if device == ComputeDevice::Cpu {
        return Vec::new();
    }
    drivers(Path::new(DEVICES))
}

fn drivers(devices: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(devices) else { return Vec::new() };
    let is_driver = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("nvidia"))
    };
    entries.flatten().map(|entry| entry.path()).filter(is_driver).collect()
}

/// Those of a process that starts nodes: they inherit its confinement, and what it may not open, none of them may.
#[must_use]
pub fn files_of_all(config: &Config) -> Vec<PathBuf> {
    files(computing(config))
}

/// What some node computes on. The driver's files are the same for every GPU.
fn computing(config: &Config) -> ComputeDevice {
    match config.servers.device {
        ComputeDevice::Cpu => config.workers.device,
        device => device,
    }
}

/// A server's set-up with a device.
#[derive(Debug)]
pub(crate) struct OnDevice<T> {
    inner: T,
    device: Option<AnyDevice>,
}

impl<T> OnDevice<T> {
    /// `inner`, computing on `device`.
    pub(crate) fn new(inner: T, device: Option<AnyDevice>) -> OnDevice<T> {
        OnDevice { inner, device }
    }
}

impl<T: ServerSetup> ServerSetup for OnDevice<T> {
    fn writer(&mut self, job: &JobSpec, server: u32) -> Result<Box<dyn PartWriter>, String> {
        self.inner.writer(job, server)
    }

    fn source(&mut self, job: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String> {
        self.inner.source(job, resume)
    }

    fn device(&mut self) -> Option<AnyDevice> {
        self.device.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    /// Invariant 1, whether it is the driver, the compiler or the GPU that is missing.
    #[test]
    fn a_gpu_that_is_asked_for_and_missing_is_an_error() {
        let failure = open("servers.device", ComputeDevice::Cuda(9999), MatrixProducts::Exact).unwrap_err();
        assert_eq!(failure.status, Status::Misconfigured);
        let said = &failure.message;
        assert!(said.starts_with("servers.device = \"cuda:9999\": "), "{said}");
        assert!(["libcuda", "libnvrtc", "GPU"].iter().any(|word| said.contains(word)), "{said}");
    }

    #[test]
    fn the_cpu_needs_nothing() {
        let exact = MatrixProducts::Exact;
        assert!(open("workers.device", ComputeDevice::Cpu, exact).unwrap().is_none());
        assert!(files(ComputeDevice::Cpu).is_empty());
        // Where there is a GPU it is taken, else the CPU: never an error.
        open("workers.device", ComputeDevice::Auto, exact).unwrap();
    }
    /// What nodes open, their launcher may open.
    #[test]
    fn a_launcher_needs_what_its_nodes_compute_on() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidiactl", "null"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let mut found = drivers(folder.path());
        found.sort();
        assert_eq!(found, ["nvidia0", "nvidiactl"].map(|name| folder.path().join(name)));
        let config = |set: &[&str; 2]| {
            let text = "[job]\nname = \"toy\"\n[data]\nkind = \"mnist\"\npath = \".\"\n[model]\nkind = \"mlp\"\n\
                        inputs = 12\nhidden = [10]\nclasses = 4\n";
            let set: Vec<String> = set.iter().map(|one| (*one).to_owned()).collect();
            Config::parse(text, Path::new("toy.toml"), &set).unwrap()
        };
        for (set, expected) in [
            (&["servers.device=cpu", "workers.device=cpu"], ComputeDevice::Cpu),
            (&["servers.device=cpu", "workers.device=cuda:1"], ComputeDevice::Cuda(1)),
            (&["servers.device=auto", "workers.device=cpu"], ComputeDevice::Auto),
        ] {
            assert_eq!(computing(&config(set)), expected);
        }
    }
}

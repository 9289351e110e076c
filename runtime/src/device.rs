//! What this machine's nodes compute on: opens what the cluster file asks for.
//!
//! 1. A GPU that is asked for by its number and is not there is an error, which says what was looked for and where.
//! 2. `auto` takes the first GPU; without one, or where that has no kernels for what is asked of it or no memory for parameters when the node
//!    begins, it says so, and why, and the CPU computes. What there is no memory for later ends the node.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_actors::checkpoint::{PartSource, PartWriter, ServerSetup};
use testudo_actors::server::Store;
use testudo_actors::{JobSpec, Resume};
use testudo_kernels::cuda::{AnyDevice, Gpu, Products};
use testudo_kernels::{Aggregator, OwnName};

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
    // All that ships is compiled now, and what it computes is looked at: what is wrong with a compiler, a driver or a GPU shows before the node
    // joins, while `auto` can do without.
    let tested = |mut gpu: Gpu| testudo_kernels::cuda::self_test(&mut gpu).map(|()| gpu);
    let opened = Gpu::open(number).and_then(Gpu::prepared).and_then(tested);
    let opened = opened.and_then(|gpu| gpu.with_products(products));
    match opened {
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
    looked(config, Gpu::libraries)
}

fn looked<E: Display>(
    config: &Config,
    libraries: impl FnOnce() -> Result<(), E>,
) -> Result<Vec<String>, Failure> {
    let mut lines: Vec<String> = passed_over(config).into_iter().collect();
    let asked = [("servers.device", config.servers.device), ("workers.device", config.worker_device())];
    let asked: Vec<_> = asked.into_iter().filter(|(_, device)| *device != ComputeDevice::Cpu).collect();
    // Where nodes are on hosts, each looks for itself.
    if asked.is_empty() || config.ssh.is_some() {
        return Ok(lines);
    }
    let Err(error) = libraries() else { return Ok(lines) };
    if let Some((key, device)) = asked.iter().find(|(_, device)| *device != ComputeDevice::Auto) {
        return Err(Failure::misconfigured(format!("{key} = \"{device}\": there is no GPU: {error}")));
    }
    let keys: Vec<&str> = asked.iter().map(|(key, _)| *key).collect();
    lines.push(format!("{} = \"auto\": the CPU computes, for there is no GPU: {error}", keys.join(", ")));
    Ok(lines)
}

/// Why workers do not look for a GPU although they are to take one if there is one; `None` if they do, or are not to.
pub(crate) fn passed_over(config: &Config) -> Option<String> {
    (config.worker_device() != config.workers.device).then(|| {
        format!(
            "workers.device = \"{}\": the CPU computes, for GPUs have no kernels for training.precision = \"{}\"",
            config.workers.device,
            config.training.precision.name()
        )
    })
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
        ComputeDevice::Cpu => config.worker_device(),
        device => device,
    }
}

/// A server's set-up with a device.
#[derive(Debug)]
pub(crate) struct OnDevice<T> {
    inner: T,
    device: Option<AnyDevice>,
    asked: ComputeDevice,
    histogram_every: u64,
}

impl<T> OnDevice<T> {
    /// `inner`, computing on `device`, which `asked` came to.
    pub(crate) fn new(inner: T, device: Option<AnyDevice>, asked: ComputeDevice) -> OnDevice<T> {
        OnDevice { inner, device, asked, histogram_every: 0 }
    }

    /// With histograms of every `every`-th version.
    pub(crate) fn with_histograms(self, every: u64) -> OnDevice<T> {
        OnDevice { histogram_every: every, ..self }
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

    fn stored(&mut self, store: &Arc<Store>) {
        self.inner.stored(store);
    }

    fn or_cpu(&self) -> bool {
        self.asked == ComputeDevice::Auto
    }

    fn rule(&mut self, name: OwnName) -> Result<Arc<dyn Aggregator>, String> {
        self.inner.rule(name)
    }

    fn histogram_every(&self) -> u64 {
        self.histogram_every
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn config(set: &[&str]) -> Config {
        let text = "[job]\nname = \"toy\"\n[data]\nkind = \"mnist\"\npath = \".\"\n[model]\nkind = \"mlp\"\n\
                    inputs = 12\nhidden = [10]\nclasses = 4\n";
        let set: Vec<String> = set.iter().map(|one| (*one).to_owned()).collect();
        Config::parse(text, Path::new("toy.toml"), &set).unwrap()
    }

    /// Invariant 2: one line, with the keys and with what was looked for; nothing where nobody asked, or where there is a GPU.
    #[test]
    fn auto_says_in_a_line_that_the_cpu_computes() {
        let absent = || Err("libcuda was not found");
        let lines = |set: &[&str]| looked(&config(set), absent).unwrap();
        assert_eq!(
            lines(&["servers.device=auto", "workers.device=auto"]),
            [
                "servers.device, workers.device = \"auto\": the CPU computes, for there is no GPU: libcuda was not found"
            ]
        );
        assert_eq!(
            lines(&["servers.device=auto"]),
            ["servers.device = \"auto\": the CPU computes, for there is no GPU: libcuda was not found"]
        );
        // What is passed over is not looked for.
        assert_eq!(
            lines(&["workers.device=auto", "training.precision=bf16"]),
            [
                "workers.device = \"auto\": the CPU computes, for GPUs have no kernels for training.precision = \"bf16\""
            ]
        );
        assert!(lines(&[]).is_empty());
        let both = config(&["servers.device=auto", "workers.device=auto"]);
        assert!(looked(&both, || Ok::<(), &str>(())).unwrap().is_empty());
        // Invariant 1, before any node is started.
        let failure = looked(&config(&["servers.device=auto", "workers.device=cuda:0"]), absent).unwrap_err();
        assert_eq!(failure.status, Status::Misconfigured);
        assert_eq!(failure.message, "workers.device = \"cuda:0\": there is no GPU: libcuda was not found");
        // What the driver's loader says here is one of the two.
        match Gpu::libraries() {
            Ok(()) => assert!(look(&both).unwrap().is_empty()),
            Err(error) => assert!(look(&both).unwrap().concat().ends_with(&error.to_string())),
        }
    }

    /// Only a GPU that nobody asked for by its number gives way.
    #[test]
    fn the_cpu_takes_the_place_of_no_gpu_that_was_asked_for() {
        let or_cpu = |asked| OnDevice::new(testudo_actors::checkpoint::NoCheckpoints, None, asked).or_cpu();
        assert!(or_cpu(ComputeDevice::Auto) && !or_cpu(ComputeDevice::Cuda(0)));
    }

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
        for (set, expected) in [
            (&["servers.device=cpu", "workers.device=cpu"], ComputeDevice::Cpu),
            (&["servers.device=cpu", "workers.device=cuda:1"], ComputeDevice::Cuda(1)),
            (&["servers.device=auto", "workers.device=cpu"], ComputeDevice::Auto),
        ] {
            assert_eq!(computing(&config(set)), expected);
        }
    }
}

//! Whether there is a GPU that nodes could compute on. Without one the CPU computes, so that only half of one is a fault.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use testudo_kernels::cuda::Gpu;

use super::PLACE;
use crate::doctor::Report;

/// Where NVIDIA's kernel module says what it is.
const MODULE: &str = "/proc/driver/nvidia/version";
/// Where GPUs are.
const DEVICES: &str = "/dev";
/// Rights to read and write, of everybody: nodes are nobody's if root starts them.
const OPEN: u32 = 0o006;

/// What was found out.
#[derive(Debug)]
pub(super) struct Readings {
    /// The first line of the kernel module's.
    module: Option<String>,
    /// Devices, by name, and whether any user may use them.
    devices: Vec<(String, bool)>,
    /// Whether the driver's library and the compiler of kernels are there, or what was looked for and where.
    libraries: Result<(), String>,
}

pub(super) fn read() -> Readings {
    let module = std::fs::read_to_string(MODULE).ok();
    let module = module.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    let libraries = Gpu::libraries().map_err(|error| error.to_string());
    Readings { module, devices: devices(Path::new(DEVICES)), libraries }
}

/// GPUs themselves have a number: `nvidia0`.
fn devices(folder: &Path) -> Vec<(String, bool)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_gpu = |name: &str| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut found: Vec<(String, bool)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_gpu(name))?;
            let mode = entry.metadata().ok()?.permissions().mode();
            Some((name, mode & OPEN == OPEN))
        })
        .collect();
    found.sort();
    found
}

pub(super) fn judge(report: &mut Report, readings: &Readings) {
    let Readings { module, devices, libraries } = readings;
    let names: Vec<&str> = devices.iter().map(|(name, _)| name.as_str()).collect();
    let version = module.as_deref().unwrap_or("a kernel module that does not say which it is");
    match (devices.is_empty(), libraries) {
        (true, Err(why)) if module.is_none() => {
            report.good(PLACE, format!("no NVIDIA GPU: the CPU computes. {why}"));
        }
        (true, Ok(())) if module.is_none() => {
            let what = "no NVIDIA GPU, though its driver's libraries are there: the CPU computes";
            report.good(PLACE, what);
        }
        (true, _) => {
            let what = format!("{version} is loaded, but there is no GPU in {DEVICES}");
            let fix = "nvidia-smi makes the files; a container must be given its GPUs (--gpus all, or --device nvidia.com/gpu=all)";
            report.warning(PLACE, what, fix);
        }
        (false, Err(why)) => {
            let what = format!("GPUs ({}) are here and cannot be computed on: {why}", names.join(", "));
            report.warning(
                PLACE,
                what,
                "install what is missing, or leave servers.device and workers.device at \"cpu\"",
            );
        }
        (false, Ok(())) => report.good(PLACE, format!("GPUs: {} by {version}, with NVRTC", names.join(", "))),
    }
    let shut: Vec<&str> =
        devices.iter().filter(|(_, is_open)| !is_open).map(|(name, _)| name.as_str()).collect();
    if !shut.is_empty() {
        let what =
            format!("{} cannot be used by every user, and nodes run as an unprivileged one", shut.join(", "));
        let fix = "start nodes as a user of the group that has it (security.run_as), or chmod 666 the file";
        report.warning(PLACE, what, fix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Severity};

    const MISSING: &str = "the NVIDIA driver was not found: looked for libcuda.so";

    fn found(module: Option<&str>, devices: &[(&str, bool)], libraries: Result<(), &str>) -> Vec<Finding> {
        let mut report = Report::default();
        let readings = Readings {
            module: module.map(str::to_owned),
            devices: devices.iter().map(|(name, is_open)| ((*name).to_owned(), *is_open)).collect(),
            libraries: libraries.map_err(str::to_owned),
        };
        judge(&mut report, &readings);
        report.findings
    }

    #[test]
    fn no_gpu_is_no_fault_and_half_of_one_is() {
        let none = found(None, &[], Err(MISSING));
        assert!(
            none[0].severity == Severity::Good && none[0].what.contains("looked for libcuda.so"),
            "{none:?}"
        );
        assert_eq!(found(None, &[], Ok(()))[0].severity, Severity::Good);
        let lost = found(Some("NVRM version: 580"), &[], Ok(()));
        assert!(lost[0].severity == Severity::Warning && lost[0].fix.contains("--gpus all"), "{lost:?}");
        let bare = found(Some("NVRM version: 580"), &[("nvidia0", true)], Err(MISSING));
        assert!(bare.len() == 1 && bare[0].severity == Severity::Warning && bare[0].what.contains(MISSING));
        let whole = found(Some("NVRM version: 580"), &[("nvidia0", true), ("nvidia1", true)], Ok(()));
        assert!(whole.len() == 1 && whole[0].severity == Severity::Good, "{whole:?}");
        assert!(whole[0].what.starts_with("GPUs: nvidia0, nvidia1 by NVRM version: 580"), "{whole:?}");
        let shut = found(Some("NVRM version: 580"), &[("nvidia0", false)], Ok(()));
        assert!(shut.len() == 2 && shut[1].severity == Severity::Warning, "{shut:?}");
    }

    #[test]
    fn gpus_are_told_from_the_drivers_other_files() {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in
            [("nvidia0", 0o666), ("nvidia10", 0o660), ("nvidiactl", 0o666), ("nvidia-uvm", 0o666)]
        {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(devices(folder.path()), [("nvidia0".to_owned(), true), ("nvidia10".to_owned(), false)]);
    }
}

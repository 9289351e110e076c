//! NVRTC: CUDA C++ to PTX, in the process. It takes tens of milliseconds a source, so that what was compiled is kept in memory
//! only: a cache on disk would be code that another could write.

use cudarc::nvrtc::{self, CompileError, CompileOptions, Ptx};

use super::device::DeviceError;
use super::driver::loaded;
use super::source::Source;

/// Compiles a source for an architecture: `compute_90` for PTX that later GPUs take too, `sm_90` for one kind.
///
/// # Errors
/// [`DeviceError::NoLibrary`] if NVRTC is not there, [`DeviceError::Compile`] with what it says.
pub(super) fn compile(source: &Source, architecture: &str) -> Result<Ptx, DeviceError> {
    loaded::compiler()?;
    let options = CompileOptions {
        // The bits are the CPU's: no contraction of its own, subnormal numbers, correct rounding.
        fmad: Some(false),
        ftz: Some(false),
        prec_div: Some(true),
        prec_sqrt: Some(true),
        name: Some(source.name().into()),
        options: vec![
            format!("--gpu-architecture={architecture}"),
            // The prelude has more functions than a source uses.
            "--diag-suppress=177".into(),
        ],
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(source.text(), options).map_err(|error| DeviceError::Compile {
        source_name: source.name().into(),
        architecture: architecture.into(),
        log: match error {
            CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
            other => other.to_string(),
        },
    })
}

/// File names that an error tells.
const NAMED: usize = 4;

/// The error for a library of one of these names.
pub(super) fn missing(library: &'static str, names: &[&str], advice: &'static str) -> DeviceError {
    let mut files: Vec<String> =
        names.iter().flat_map(|name| cudarc::get_lib_name_candidates(name)).collect();
    let mut seen = std::collections::HashSet::new();
    files.retain(|file| seen.insert(file.clone()));
    // Dozens, of which the shortest tell most.
    files.sort_by_key(String::len);
    let others = files.split_off(files.len().min(NAMED));
    let names = match others.len() {
        0 => files.join(", "),
        others => format!("{} and {others} names like them", files.join(", ")),
    };
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_else(|_| "not set".into());
    DeviceError::NoLibrary { library, names, path, advice }
}

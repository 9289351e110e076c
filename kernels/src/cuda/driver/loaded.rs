//! Whether the libraries are there, with every function that is called: a library that lacks one would end the process at the call.

#![allow(unsafe_code, reason = "libraries are loaded here")]

use cudarc::{cublas, driver, nvrtc};

use super::super::device::DeviceError;
use super::super::nvrtc::missing;

/// What cudarc calls of the driver for what this crate asks of it. `kernels/src/cuda/tests/driver.rs` shows that nothing else is: its driver has
/// these alone.
pub(in crate::cuda) const DRIVER: [&str; 35] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// What is called of the compiler.
const NVRTC: [&str; 7] = [
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
];

/// What is called of cuBLAS.
const CUBLAS: [&str; 4] = ["cublasCreate_v2", "cublasDestroy_v2", "cublasGemmEx", "cublasSetStream_v2"];

/// The driver.
pub(in crate::cuda) fn driver() -> Result<(), DeviceError> {
    let name = "the NVIDIA driver";
    // SAFETY: loading the library runs its initializers; it is NVIDIA's, found by the system's loader as any other is.
    if !unsafe { driver::sys::is_culib_present() } {
        let advice = "Install it (its libcuda.so.1 comes with the kernel module), or use the CPU";
        return Err(missing(name, &["cuda", "nvcuda"], advice));
    }
    // SAFETY: as above; it is there. The functions are not called.
    let has = |function: &str| unsafe {
        driver::sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes()).is_ok()
    };
    complete(name, &DRIVER, has)
}

/// The compiler.
pub(in crate::cuda) fn compiler() -> Result<(), DeviceError> {
    let name = "NVRTC, the CUDA compiler,";
    // SAFETY: loading the library runs its initializers; it is NVIDIA's, found by the system's loader as any other is.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        let advice = "Install it (the package cuda-nvrtc of CUDA 13.0, or nvidia-cuda-nvrtc from PyPI with its lib folder in LD_LIBRARY_PATH), or use the CPU";
        return Err(missing(name, &["nvrtc"], advice));
    }
    // SAFETY: as above; it is there. The functions are not called.
    let has = |function: &str| unsafe {
        nvrtc::sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes()).is_ok()
    };
    complete(name, &NVRTC, has)
}

/// The library of matrix products.
pub(in crate::cuda) fn products() -> Result<(), DeviceError> {
    let name = "cuBLAS, the library of matrix products,";
    // SAFETY: loading the library runs its initializers; it is NVIDIA's, found by the system's loader as any other is.
    if !unsafe { cublas::sys::is_culib_present() } {
        let advice = "Install it (the package libcublas of CUDA 13.0, or nvidia-cublas from PyPI with its lib folder in LD_LIBRARY_PATH), or set workers.products to \"exact\"";
        return Err(missing(name, &["cublas"], advice));
    }
    // SAFETY: as above; it is there. The functions are not called.
    let has = |function: &str| unsafe {
        cublas::sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes()).is_ok()
    };
    complete(name, &CUBLAS, has)
}

fn complete(
    library: &'static str,
    functions: &[&str],
    has: impl Fn(&str) -> bool,
) -> Result<(), DeviceError> {
    match functions.iter().find(|function| !has(function)) {
        None => Ok(()),
        Some(function) => Err(DeviceError::OldLibrary { library, function: (*function).into() }),
    }
}

//! The invariants of `cuda`, without a GPU: kernels run on the host by the launch emulator, against their twins on the CPU, and compiled by
//! NVRTC for every kind of GPU that is promised. With `--features gpu-tests` the same comparisons run on a GPU.

mod comparisons;
mod driver;
mod emulated;
#[cfg(feature = "gpu-tests")]
mod gpu;
mod nvrtc;
mod overlap;
mod programs;
mod self_test;

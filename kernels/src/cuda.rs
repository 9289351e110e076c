//! Kernels for NVIDIA GPUs: the twins of this crate's arithmetic on the CPU, compiled when a GPU is opened.
//!
//! Nothing of CUDA is needed to build or to run without a GPU: the driver and NVRTC, its compiler, are looked for at run time
//! ([`Gpu::open`]). `docs/gpu.md` says what runs where and how all of it is tested without a GPU.
//!
//! Invariants:
//! 1. **The CPU's bits.** Unless [`Gpu::with_products`] says otherwise, every kernel here gives what its twin gives, bit for bit, the sign and payload of NaN aside: the same IEEE
//!    operations in the same order, none contracted but those written as `fmaf`, none flushed. Where that
//!    cannot be, the kernel says so.
//! 2. **Lengths are checked before a launch.** Kernels take their counts from [`Buffer`]s, never from a caller; a launch's
//!    arguments are held against the kernel's own parameters.
//! 3. **Geometry does not matter.** How many blocks a device runs at once is its own business ([`Device::blocks`]): no result depends
//!    on it.
//! 4. **Out of memory is an error that names the tensor**, and leaves everything as it was.

mod any;
mod attention;
mod batch_norm;
mod buffer;
mod codec;
mod device;
mod driver;
#[cfg(any(test, feature = "emulator"))]
pub mod emulator;
mod generate;
mod image;
mod layers;
mod library;
mod linear;
mod losses;
mod model;
mod network;
mod nvrtc;
mod operations;
mod self_test;
mod sequence;
mod source;
mod update;
mod weigh;

pub use any::{AnyDevice, AnyMemory};
pub use attention::{DeviceAttention, DeviceDrops};
pub use batch_norm::{DeviceBatchNorm, DeviceStatistics, sum_pixels};
pub use buffer::Buffer;
pub use codec::{decode, encode, encode_feedback};
pub use device::{Argument, Device, DeviceError, Fetch, Geometry, Product, Products, SCALARS, Scalars};
pub use driver::{Gpu, GpuMemory};
pub use generate::Generated;
pub use image::{DeviceConvolution, DevicePool, ImageSize};
pub use layers::{CrossEntropy, gelu, gelu_gradient, relu, relu_gradient, sum_examples};
pub use linear::DeviceLinear;
pub use losses::{binary_cross_entropy, squared_error};
pub use model::DeviceModel;
pub use network::{add_bias, add_rectified, copy, copy_to, fill, permute, sum_of};
pub use operations::{Votes, add, add_checked, divide, first_non_finite};
pub use self_test::self_test;
pub use sequence::{DeviceNorm, Tokens, dropout, positions_gradient};
pub use source::Source;
pub use update::{DeviceOptimizer, DeviceSlice};
pub use weigh::DeviceWeighing;

#[cfg(test)]
mod tests;

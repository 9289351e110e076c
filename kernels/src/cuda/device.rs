//! What runs kernels: a GPU, or, in tests, the launch emulator. The operations of this module are written once, for both.
//!
//! Work is in order, but for [`fetch`](Device::fetch): what it copies is what was launched before it, and what is launched after it need
//! not wait for the copy.

use std::sync::Arc;

use super::source::Source;
use crate::codec::CodecError;
use crate::optimizer::OptimizerError;
use crate::robust::AggregationError;

/// The most scalars that a generated optimizer takes: more than a program of the language has (its nodes are 256 at most).
pub const SCALARS: usize = 256;

/// A generated optimizer's scalars: `Scalars` of optimizer.cu.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Scalars(pub [f32; SCALARS]);

/// A copy to the host under way, which its device knows by a number. Its room is used again once it was collected or dropped.
#[derive(Debug)]
pub struct Fetch {
    number: usize,
    /// Shared with the device, which sees by it whether somebody still has this.
    _held: Arc<()>,
}

impl Fetch {
    /// The copy of that number, whose room is taken as long as `room` is shared.
    pub(super) fn holding(number: usize, room: &Arc<()>) -> Self {
        Self { number, _held: Arc::clone(room) }
    }

    /// Its number.
    pub(super) fn number(&self) -> usize {
        self.number
    }
}

/// Memory and launches. What is launched runs in order; [`read`](Device::read) waits for it.
pub trait Device: Send {
    /// Memory on the device.
    type Memory: Send + 'static;

    /// Makes room for `bytes` bytes of zero; `tensor` names it in errors.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]; nothing has changed then.
    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// Copies bytes into a memory that has at least as many from byte `at` on.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    fn write(&mut self, memory: &mut Self::Memory, at: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Copies bytes from byte `at` on of a memory that has at least as many there.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for what a launch before it met.
    fn read(&mut self, memory: &Self::Memory, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Begins to copy the first `bytes` bytes of a memory to the host, beside what is launched from now on. The memory may be read, and
    /// written again, and given back: what writes it waits for the copy, on the device.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    fn fetch(&mut self, memory: &Self::Memory, bytes: usize) -> Result<Fetch, DeviceError>;

    /// Waits for such a copy, and shows it.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also for what a launch before it met.
    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError>;

    /// A matrix product by a library of the device's, where it was opened to take one; `false` if it was not, and nothing was done.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    fn multiply(
        &mut self,
        _product: Product,
        _a: &Self::Memory,
        _b: &Self::Memory,
        _c: &mut Self::Memory,
    ) -> Result<bool, DeviceError> {
        Ok(false)
    }

    /// How many blocks of threads it runs at once, or somewhat more. Kernels go round as often as they must.
    fn blocks(&self) -> u32;

    /// Makes a source's kernels ready, so that what is wrong with them shows now. Others are made ready when they are first launched.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], [`DeviceError::Driver`].
    fn prepare(&mut self, _source: &Source) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// [`DeviceError`] if the source does not compile, the kernel takes other arguments, or the launch fails.
    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, Self::Memory>],
    ) -> Result<(), DeviceError>;
}

/// C = A B as BLAS has it (Dongarra et al., "A set of level 3 basic linear algebra subprograms", 1990): matrices column by column, each with
/// the distance of its columns, A and B transposed or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Product {
    /// Whether A and B are.
    pub transposed: [bool; 2],
    /// Rows of C, its columns, and the depth.
    pub sizes: [usize; 3],
    /// Distances of columns in A, B and C.
    pub distances: [usize; 3],
}

/// How matrix products are computed.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Products {
    /// By kernels of this crate: the CPU's bits.
    #[default]
    Exact,
    /// By cuBLAS, in f32, in an order of additions of its own.
    F32,
    /// By cuBLAS on tensor cores: factors are rounded to TF32 (8 bits of exponent, 10 of fraction), sums are f32.
    Tf32,
    /// By cuBLAS on tensor cores: factors are rounded to BF16 (8 and 7), sums are f32.
    Bf16,
}

/// How a kernel is launched: blocks and threads have one dimension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Blocks of threads.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory that each block has.
    pub shared_bytes: u32,
}

impl Geometry {
    /// Threads of a block where a kernel does not need another number.
    pub(super) const THREADS: u32 = 256;

    /// For `units` pieces of work of which a block does `a_block` at once.
    pub(super) fn new(units: usize, a_block: u32, threads: u32, most_blocks: u32) -> Self {
        let blocks = units.div_ceil(a_block.max(1) as usize).min(most_blocks as usize);
        Self { blocks: blocks.max(1) as u32, threads, shared_bytes: 0 }
    }

    /// For one thread an element.
    pub(super) fn each(elements: usize, most_blocks: u32) -> Self {
        Self::new(elements, Self::THREADS, Self::THREADS, most_blocks)
    }
}

/// An argument of a kernel.
#[derive(Debug)]
pub enum Argument<'a, M> {
    /// Memory that is read.
    In(&'a M),
    /// Memory that is read and written.
    InOut(&'a mut M),
    /// A number.
    F32(f32),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// A generated optimizer's scalars.
    Scalars(&'a Scalars),
}

/// What a device could not do.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum DeviceError {
    /// A library is not there.
    #[error(
        "{library} was not found: looked for {names} in the loader's folders and in LD_LIBRARY_PATH ({path}). {advice}"
    )]
    NoLibrary {
        /// What it is.
        library: &'static str,
        /// The file names that were tried.
        names: String,
        /// The value of `LD_LIBRARY_PATH`.
        path: String,
        /// What to do.
        advice: &'static str,
    },
    /// There is no GPU of this number.
    #[error(
        "cuda:{wanted} was asked for, but the driver, which looks at /dev/nvidia*, shows {found} GPUs, counted from cuda:0 (CUDA_VISIBLE_DEVICES, which hides others, is {visible})"
    )]
    NoDevice {
        /// The number asked for.
        wanted: u32,
        /// How many there are.
        found: u32,
        /// The value of `CUDA_VISIBLE_DEVICES`.
        visible: String,
    },
    /// A library lacks a function.
    #[error(
        "{library} has no function {function}: it is older than CUDA 13.0, or a stand-in for building. Install a newer one, or use the CPU"
    )]
    OldLibrary {
        /// What it is.
        library: &'static str,
        /// The first function that is missing.
        function: String,
    },
    /// A source does not compile.
    #[error("{source_name} does not compile for {architecture}: {log}")]
    Compile {
        /// The source.
        source_name: String,
        /// The GPU's kind.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// The device's memory is used up.
    #[error(
        "no memory on the GPU for tensor {tensor}: it takes {bytes} bytes, and {free} of {total} are free. Nothing was changed"
    )]
    OutOfMemory {
        /// What the memory was for.
        tensor: String,
        /// Its size.
        bytes: usize,
        /// What is free.
        free: usize,
        /// What the GPU has.
        total: usize,
    },
    /// The host has no memory that the GPU may copy to.
    #[error(
        "the host has no memory left that is locked for copies from and to the GPU: {bytes} bytes were asked for. Nothing was changed"
    )]
    OutOfHostMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// The driver refused.
    #[error("the GPU's driver failed to {doing}: {message}")]
    Driver {
        /// What was to be done.
        doing: String,
        /// What it said.
        message: String,
    },
    /// A tensor has another length than one it goes with.
    #[error("tensor {tensor} has {found} elements on the GPU, but must have {expected}")]
    Length {
        /// Which tensor.
        tensor: String,
        /// What it must have.
        expected: usize,
        /// What it has.
        found: usize,
    },
    /// A kernel was given what it does not take: a fault of this crate.
    #[error("kernel {kernel} of {source_name} does not take these arguments")]
    Arguments {
        /// The kernel.
        kernel: String,
        /// Its source.
        source_name: String,
    },
    /// Memory of another device: a fault of this crate.
    #[error("memory was given to a device that it is not on")]
    Foreign,
    /// A label is not below the number of classes.
    #[error("label {label} is not below the {classes} classes")]
    Label {
        /// The label.
        label: u32,
        /// How many classes there are.
        classes: usize,
    },
    /// What was computed has not the CPU's bits.
    #[error(
        "the GPU does not compute as the CPU does: element {element} of {what} has the bits {found:#010x}, and must have {expected:#010x}. Use the CPU"
    )]
    Arithmetic {
        /// What was computed.
        what: &'static str,
        /// Which element of it.
        element: usize,
        /// Its bits.
        found: u32,
        /// The CPU's.
        expected: u32,
    },
    /// As on the CPU.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// As on the CPU.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// As on the CPU.
    #[error(transparent)]
    Aggregation(#[from] AggregationError),
}

impl DeviceError {
    /// Other parameters than a network's: a fault of this crate, which checks them.
    pub(super) fn parameters() -> Self {
        Self::Length { tensor: "parameters".into(), expected: 0, found: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_a_block_at_least_and_as_many_as_run_at_once_at_most() {
        let blocks = |elements, most| Geometry::each(elements, most).blocks;
        assert_eq!((blocks(0, 9), blocks(1, 9), blocks(256, 9), blocks(257, 9)), (1, 1, 1, 2));
        assert_eq!((blocks(usize::MAX, 9), blocks(1 << 20, u32::MAX)), (9, 4096));
    }
}

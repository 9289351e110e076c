//! A GPU through the CUDA driver, which is loaded when it is asked for.

#![allow(
    unsafe_code,
    reason = "libraries are loaded and kernels launched here; each block says why it is sound"
)]

pub(super) mod loaded;
mod memory;

use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
};

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Fetch, Geometry, Product, Products, Scalars};
use super::library::Library;
use super::nvrtc;
use super::source::Source;
pub use memory::GpuMemory;
use memory::{Slot, Staging};

/// One GPU: its context, a stream of work, the sources that were compiled for it.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    architecture: String,
    blocks: u32,
    /// What was compiled, in this process: there is no cache on disk.
    modules: HashMap<Source, Module>,
    staging: [Staging; 2],
    /// Where copies run that others do not wait for.
    beside: Arc<CudaStream>,
    /// What multiplies matrices, if kernels of ours do not.
    library: Option<Library>,
    /// What they copy into, by their number; used again.
    fetched: Vec<Slot>,
}

/// A compiled source, with the kernels that were looked up in it.
#[derive(Debug)]
struct Module {
    module: Arc<CudaModule>,
    functions: HashMap<String, CudaFunction>,
}

/// Bytes of each staging buffer: a slice as the wire has it, 1 MiB, fits four times.
const STAGING_BYTES: usize = 4 << 20;

/// Blocks of threads for each of the GPU's multiprocessors: of 256 threads, as many as can be resident on any of them.
const BLOCKS_EACH: u32 = 8;

impl Gpu {
    /// The GPU of this number, as the driver counts them from 0.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] says what was looked for and where; [`DeviceError::NoDevice`] how many GPUs there are;
    /// [`DeviceError::Driver`] what the driver said.
    pub fn open(number: u32) -> Result<Self, DeviceError> {
        Self::libraries()?;
        let found = match CudaContext::device_count() {
            Ok(found) => u32::try_from(found).unwrap_or_default(),
            // The driver is there, and what it drives is not.
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => 0,
            Err(error) => return Err(failed("count the GPUs")(error)),
        };
        if number >= found {
            let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_else(|_| "not set".into());
            return Err(DeviceError::NoDevice { wanted: number, found, visible });
        }
        Self::make(number)
    }

    /// Whether the driver and what compiles kernels are there, without asking the driver for anything: nothing runs beside after it.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] says what was looked for and where, [`DeviceError::OldLibrary`] what a library lacks.
    pub fn libraries() -> Result<(), DeviceError> {
        loaded::driver()?;
        loaded::compiler()
    }

    fn make(number: u32) -> Result<Self, DeviceError> {
        let opening = failed("open the GPU");
        let context = CudaContext::new(number as usize).map_err(&opening)?;
        let (major, minor) = context.compute_capability().map_err(&opening)?;
        let processors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = context.attribute(processors).map_err(&opening)?;
        let stream = context.new_stream().map_err(&opening)?;
        let beside = context.new_stream().map_err(&opening)?;
        let staging = [Staging::new(&context, STAGING_BYTES)?, Staging::new(&context, STAGING_BYTES)?];
        Ok(Self {
            name: context.name().map_err(&opening)?,
            architecture: format!("compute_{major}{minor}"),
            blocks: u32::try_from(processors).unwrap_or(1).saturating_mul(BLOCKS_EACH),
            modules: HashMap::new(),
            context,
            stream,
            staging,
            beside,
            fetched: Vec::new(),
            library: None,
        })
    }

    /// With matrix products as `products` says; others than the exact ones have not the CPU's bits.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] if cuBLAS is needed and not there, [`DeviceError::Driver`].
    pub fn with_products(mut self, products: Products) -> Result<Self, DeviceError> {
        self.library = Library::new(&self.stream, products)?;
        Ok(self)
    }

    /// The GPU's name, as the driver says it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// With every source that ships compiled, so that nothing that is wrong with the compiler, the driver or a kernel shows later than here.
    ///
    /// # Errors
    /// As [`Device::prepare`].
    pub fn prepared(mut self) -> Result<Self, DeviceError> {
        Source::all().iter().try_for_each(|source| self.prepare(source))?;
        Ok(self)
    }

    /// Copies a tensor within the GPU's memory: what other kernels' bandwidth is measured by.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Driver`].
    pub fn copy<T: Pod>(
        &mut self,
        from: &Buffer<GpuMemory, T>,
        to: &mut Buffer<GpuMemory, T>,
    ) -> Result<(), DeviceError> {
        to.check(from.elements())?;
        let to = to.memory_mut().written(&self.stream)?;
        self.stream.memcpy_dtod(&from.memory().slice, to).map_err(failed("copy within the GPU"))
    }

    /// Waits until everything that was launched is over.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] with what a launch met.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(failed("finish"))
    }

    /// Whether everything that was launched is over, without waiting for it.
    #[cfg(test)]
    pub(in crate::cuda) fn is_idle(&self) -> bool {
        self.stream.record_event(None).is_ok_and(|end| end.is_complete())
    }

    fn function(&mut self, source: &Source, kernel: &str) -> Result<CudaFunction, DeviceError> {
        self.prepare(source)?;
        let finding = || failed(&format!("find kernel {kernel}"));
        let Some(Module { module, functions }) = self.modules.get_mut(source) else {
            return Err(finding()(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)));
        };
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let function = module.load_function(kernel).map_err(finding())?;
        functions.insert(kernel.into(), function.clone());
        Ok(function)
    }
}

impl Device for Gpu {
    type Memory = GpuMemory;

    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<GpuMemory, DeviceError> {
        // The driver knows no memory of no bytes.
        self.stream.alloc_zeros(bytes.max(1)).map(GpuMemory::new).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.context.mem_get_info().unwrap_or_default();
                DeviceError::OutOfMemory { tensor: tensor.into(), bytes, free, total }
            }
            _ => failed(&format!("make room for {tensor}"))(error),
        })
    }

    fn write(&mut self, memory: &mut GpuMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let copying = failed("copy to the GPU");
        let memory = memory.written(&self.stream)?;
        let mut start = at;
        for (index, chunk) in bytes.chunks(STAGING_BYTES).enumerate() {
            let staging = &mut self.staging[index % 2];
            let staged = &mut staging.wait()?[..chunk.len()];
            staged.copy_from_slice(chunk);
            let Some(mut part) = memory.try_slice_mut(start..start + chunk.len()) else {
                return Err(too_short("write"));
            };
            self.stream.memcpy_htod(staged, &mut part).map_err(&copying)?;
            staging.busy = Some(Arc::new(self.stream.record_event(None).map_err(&copying)?));
            start += chunk.len();
        }
        Ok(())
    }

    fn fetch(&mut self, memory: &GpuMemory, bytes: usize) -> Result<Fetch, DeviceError> {
        let copying = failed("copy from the GPU");
        let Some(part) = memory.slice.try_slice(..bytes) else { return Err(too_short("fetch")) };
        let fits = |(_, slot): &(usize, &Slot)| slot.is_free() && slot.staging.room() >= bytes;
        let free = self.fetched.iter().enumerate().filter(fits);
        let number = match free.min_by_key(|(_, slot)| slot.staging.room()) {
            Some((number, _)) => number,
            None => {
                let staging = Staging::new(&self.context, bytes.max(1))?;
                self.fetched.push(Slot { staging, bytes: 0, held: Arc::default() });
                self.fetched.len() - 1
            }
        };
        let Some(Slot { staging, bytes: copied, held }) = self.fetched.get_mut(number) else {
            return Err(too_short("fetch"));
        };
        if bytes > 0 {
            // The memory's own events make this stream wait for what was launched before; writers wait for the copy (memory.rs).
            self.beside.memcpy_dtoh(&part, &mut staging.wait()?[..bytes]).map_err(&copying)?;
            let over = Arc::new(self.beside.record_event(None).map_err(&copying)?);
            memory.is_copied(&over);
            staging.busy = Some(over);
        }
        *copied = bytes;
        Ok(Fetch::holding(number, held))
    }

    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        let Some(slot) = self.fetched.get_mut(fetch.number()) else { return Err(too_short("collect")) };
        show(&slot.staging.wait()?[..slot.bytes]);
        Ok(())
    }

    fn read(&mut self, memory: &GpuMemory, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let copying = failed("copy from the GPU");
        let mut start = at;
        // While one chunk comes, the one before is copied on.
        let mut before: Option<(usize, &mut [u8])> = None;
        for (index, chunk) in bytes.chunks_mut(STAGING_BYTES).enumerate() {
            let staging = &mut self.staging[index % 2];
            let staged = &mut staging.wait()?[..chunk.len()];
            let Some(part) = memory.slice.try_slice(start..start + chunk.len()) else {
                return Err(too_short("read"));
            };
            self.stream.memcpy_dtoh(&part, staged).map_err(&copying)?;
            staging.busy = Some(Arc::new(self.stream.record_event(None).map_err(&copying)?));
            start += chunk.len();
            if let Some((index, chunk)) = before.replace((index, chunk)) {
                chunk.copy_from_slice(&self.staging[index % 2].wait()?[..chunk.len()]);
            }
        }
        if let Some((index, chunk)) = before {
            chunk.copy_from_slice(&self.staging[index % 2].wait()?[..chunk.len()]);
        }
        Ok(())
    }

    fn multiply(
        &mut self,
        product: Product,
        a: &GpuMemory,
        b: &GpuMemory,
        c: &mut GpuMemory,
    ) -> Result<bool, DeviceError> {
        let Some(library) = &self.library else { return Ok(false) };
        library.multiply(product, &a.slice, &b.slice, c.written(&self.stream)?)?;
        Ok(true)
    }

    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn prepare(&mut self, source: &Source) -> Result<(), DeviceError> {
        if !self.modules.contains_key(source) {
            let ptx = nvrtc::compile(source, &self.architecture)?;
            let module = self.context.load_module(ptx);
            let module = module.map_err(failed(&format!("load {}", source.name())))?;
            self.modules.insert(source.clone(), Module { module, functions: HashMap::new() });
        }
        Ok(())
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, GpuMemory>],
    ) -> Result<(), DeviceError> {
        source.check(kernel, arguments)?;
        let function = self.function(source, kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::In(memory) => launch.arg(&memory.slice),
                Argument::InOut(memory) => launch.arg(memory.written(&self.stream)?),
                Argument::F32(value) => launch.arg(&*value),
                Argument::U32(value) => launch.arg(&*value),
                Argument::U64(value) => launch.arg(&*value),
                Argument::Scalars(values) => launch.arg(*values),
            };
        }
        let config = LaunchConfig {
            grid_dim: (geometry.blocks, 1, 1),
            block_dim: (geometry.threads, 1, 1),
            shared_mem_bytes: geometry.shared_bytes,
        };
        // SAFETY: the arguments are the kernel's own parameters in number and kind (`Source::check`), constant memory is
        // written by no kernel that declares it so, and the counts that bound every access come from the buffers themselves
        // (operations.rs, layers.rs, update.rs). The emulator runs the same kernels with every buffer between guard pages.
        unsafe { launch.launch(config) }.map_err(|error| failed(&format!("launch {kernel}"))(error))?;
        Ok(())
    }
}

// SAFETY: an array of floats has the same layout on either side.
unsafe impl DeviceRepr for Scalars {}

fn failed(doing: &str) -> impl Fn(DriverError) -> DeviceError + use<> {
    let doing = doing.to_owned();
    move |error| DeviceError::Driver { doing: doing.clone(), message: error.to_string() }
}

fn too_short(doing: &str) -> DeviceError {
    DeviceError::Driver { doing: doing.into(), message: "the memory is shorter than what is copied".into() }
}

//! A GPU through the CUDA driver, which is loaded when it is asked for.

#![allow(
    unsafe_code,
    reason = "libraries are loaded and kernels launched here; each block says why it is sound"
)]

use std::collections::HashMap;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError,
    LaunchConfig, PinnedHostSlice, PushKernelArg,
};

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Fetch, Geometry, Product, Products, Scalars};
use super::library::Library;
use super::nvrtc;
use super::source::Source;

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

/// Room for one copy beside others.
#[derive(Debug)]
struct Slot {
    staging: Staging,
    bytes: usize,
    taken: bool,
}

/// A compiled source, with the kernels that were looked up in it.
#[derive(Debug)]
struct Module {
    module: Arc<CudaModule>,
    functions: HashMap<String, CudaFunction>,
}

/// Memory of the host that the GPU copies from and to without the driver's help.
#[derive(Debug)]
struct Staging {
    bytes: PinnedHostSlice<u8>,
    /// The copy that uses it.
    busy: Option<CudaEvent>,
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
        let found = CudaContext::device_count().map_err(failed("count the GPUs"))?;
        let found = u32::try_from(found).unwrap_or_default();
        if number >= found {
            return Err(DeviceError::NoDevice { wanted: number, found });
        }
        Self::make(number)
    }

    /// Whether the driver and what compiles kernels are there, without asking the driver for anything: nothing runs beside after it.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] says what was looked for and where.
    pub fn libraries() -> Result<(), DeviceError> {
        // SAFETY: loading the library runs its initializers; it is NVIDIA's, found by the system's loader as any other is.
        let is_there = unsafe { sys::is_culib_present() };
        if !is_there {
            let names = ["cuda", "nvcuda"];
            return Err(nvrtc::missing(
                "the NVIDIA driver",
                &names,
                "Install it (its libcuda.so.1 comes with the kernel module), or use the CPU",
            ));
        }
        nvrtc::require()
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

    /// Compiles a source now rather than at its first launch.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], [`DeviceError::Driver`].
    pub fn prepare(&mut self, source: &Source) -> Result<(), DeviceError> {
        if !self.modules.contains_key(source) {
            let ptx = nvrtc::compile(source, &self.architecture)?;
            let module = self.context.load_module(ptx);
            let module = module.map_err(failed(&format!("load {}", source.name())))?;
            self.modules.insert(source.clone(), Module { module, functions: HashMap::new() });
        }
        Ok(())
    }

    /// Copies a tensor within the GPU's memory: what other kernels' bandwidth is measured by.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Driver`].
    pub fn copy<T: Pod>(
        &mut self,
        from: &Buffer<CudaSlice<u8>, T>,
        to: &mut Buffer<CudaSlice<u8>, T>,
    ) -> Result<(), DeviceError> {
        to.check(from.elements())?;
        if let (Argument::In(from), Argument::InOut(to)) = (from.input(), to.output()) {
            self.stream.memcpy_dtod(from, to).map_err(failed("copy within the GPU"))?;
        }
        Ok(())
    }

    /// Waits until everything that was launched is over.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] with what a launch met.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(failed("finish"))
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

impl Staging {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
        // Without flags: memory that is written around the cache is slow to read back.
        // SAFETY: the bytes are unset, and every value is a byte; they are written before they are read.
        let bytes = unsafe { context.alloc_pinned_with_flags(bytes, 0) };
        Ok(Self { bytes: bytes.map_err(failed("make staging buffers"))?, busy: None })
    }

    /// Its bytes, when the copy that used them is over.
    fn wait(&mut self) -> Result<&mut [u8], DeviceError> {
        if let Some(event) = self.busy.take() {
            event.synchronize().map_err(failed("copy"))?;
        }
        self.bytes.as_mut_slice().map_err(failed("copy"))
    }
}

impl Drop for Staging {
    /// The driver may still copy into it, or out of it.
    fn drop(&mut self) {
        if let Some(event) = self.busy.take() {
            let _ = event.synchronize();
        }
    }
}

impl Device for Gpu {
    type Memory = CudaSlice<u8>;

    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        // The driver knows no memory of no bytes.
        self.stream.alloc_zeros(bytes.max(1)).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.context.mem_get_info().unwrap_or_default();
                DeviceError::OutOfMemory { tensor: tensor.into(), bytes, free, total }
            }
            _ => failed(&format!("make room for {tensor}"))(error),
        })
    }

    fn write(&mut self, memory: &mut CudaSlice<u8>, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let copying = failed("copy to the GPU");
        let mut start = at;
        for (index, chunk) in bytes.chunks(STAGING_BYTES).enumerate() {
            let staging = &mut self.staging[index % 2];
            let staged = &mut staging.wait()?[..chunk.len()];
            staged.copy_from_slice(chunk);
            let Some(mut part) = memory.try_slice_mut(start..start + chunk.len()) else {
                return Err(too_short("write"));
            };
            self.stream.memcpy_htod(staged, &mut part).map_err(&copying)?;
            staging.busy = Some(self.stream.record_event(None).map_err(&copying)?);
            start += chunk.len();
        }
        Ok(())
    }

    fn fetch(&mut self, memory: &CudaSlice<u8>, bytes: usize) -> Result<Fetch, DeviceError> {
        let copying = failed("copy from the GPU");
        let fits = |(_, slot): &(usize, &Slot)| !slot.taken && slot.staging.bytes.len() >= bytes;
        let free = self.fetched.iter().enumerate().filter(fits);
        let slot = match free.min_by_key(|(_, slot)| slot.staging.bytes.len()) {
            Some((slot, _)) => slot,
            None => {
                let staging = Staging::new(&self.context, bytes.max(1))?;
                self.fetched.push(Slot { staging, bytes: 0, taken: false });
                self.fetched.len() - 1
            }
        };
        let Some(Slot { staging, bytes: copied, taken }) = self.fetched.get_mut(slot) else {
            return Err(too_short("fetch"));
        };
        let Some(part) = memory.try_slice(..bytes) else { return Err(too_short("fetch")) };
        if bytes > 0 {
            // The memory's own events make this stream wait for what was launched before, and later writers wait for this stream.
            self.beside.memcpy_dtoh(&part, &mut staging.wait()?[..bytes]).map_err(&copying)?;
            staging.busy = Some(self.beside.record_event(None).map_err(&copying)?);
        }
        (*copied, *taken) = (bytes, true);
        Ok(Fetch(slot))
    }

    fn collect(&mut self, Fetch(slot): Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        let Some(slot) = self.fetched.get_mut(slot) else { return Err(too_short("collect")) };
        slot.taken = false;
        show(&slot.staging.wait()?[..slot.bytes]);
        Ok(())
    }

    fn read(&mut self, memory: &CudaSlice<u8>, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let copying = failed("copy from the GPU");
        let mut start = at;
        // While one chunk comes, the one before is copied on.
        let mut before: Option<(usize, &mut [u8])> = None;
        for (index, chunk) in bytes.chunks_mut(STAGING_BYTES).enumerate() {
            let staging = &mut self.staging[index % 2];
            let staged = &mut staging.wait()?[..chunk.len()];
            let Some(part) = memory.try_slice(start..start + chunk.len()) else {
                return Err(too_short("read"));
            };
            self.stream.memcpy_dtoh(&part, staged).map_err(&copying)?;
            staging.busy = Some(self.stream.record_event(None).map_err(&copying)?);
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
        a: &CudaSlice<u8>,
        b: &CudaSlice<u8>,
        c: &mut CudaSlice<u8>,
    ) -> Result<bool, DeviceError> {
        match &self.library {
            Some(library) => library.multiply(product, a, b, c).map(|()| true),
            None => Ok(false),
        }
    }

    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, CudaSlice<u8>>],
    ) -> Result<(), DeviceError> {
        source.check(kernel, arguments)?;
        let function = self.function(source, kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Argument::In(memory) => launch.arg(&**memory),
                Argument::InOut(memory) => launch.arg(&mut **memory),
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

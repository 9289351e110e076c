//! Memory of a GPU, and memory of the host that it is copied from and to.
//!
//! 1. A copy to the host reads what was there when it was begun: whoever writes the memory, or gives it back, waits for it, whatever else has
//!    read it since. cudarc keeps one event of reading for each memory, the last, so that a read on the stream of work would hide the copy's.
//! 2. Room of the host that a copy uses is not used again, nor given back, before the copy is over.

#![allow(unsafe_code, reason = "memory is asked for here without its being set")]

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, PinnedHostSlice};

use super::{DeviceError, failed};

/// Memory of a [`Gpu`](super::Gpu).
#[derive(Debug)]
pub struct GpuMemory {
    pub(super) slice: CudaSlice<u8>,
    /// The end of the last copy that reads it beside the stream of work. Those before it end before it: they run in order.
    copied: Mutex<Option<Arc<CudaEvent>>>,
}

impl GpuMemory {
    pub(super) fn new(slice: CudaSlice<u8>) -> Self {
        Self { slice, copied: Mutex::default() }
    }

    /// A copy that ends with `event` reads it.
    pub(super) fn is_copied(&self, event: &Arc<CudaEvent>) {
        *self.copied.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(event));
    }

    /// The memory, for a writer on `stream`, which waits there for copies (invariant 1). The host waits for nothing.
    pub(super) fn written(&mut self, stream: &CudaStream) -> Result<&mut CudaSlice<u8>, DeviceError> {
        let copied = self.copied.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = copied.take() {
            stream.wait(&event).map_err(failed("wait for a copy"))?;
        }
        Ok(&mut self.slice)
    }
}

impl Drop for GpuMemory {
    /// Giving it back is work in order too.
    fn drop(&mut self) {
        let stream = Arc::clone(self.slice.stream());
        let _ = self.written(&stream);
    }
}

/// Memory of the host that the GPU copies from and to without the driver's help.
#[derive(Debug)]
pub(super) struct Staging {
    bytes: PinnedHostSlice<u8>,
    /// The copy that uses it.
    pub(super) busy: Option<Arc<CudaEvent>>,
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DeviceError> {
        // Without flags: memory that is written around the cache is slow to read back.
        // SAFETY: the bytes are unset, and every value is a byte; they are written before they are read.
        let room = unsafe { context.alloc_pinned_with_flags(bytes, 0) };
        let room = room.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfHostMemory { bytes },
            _ => failed("make room for copies")(error),
        });
        Ok(Self { bytes: room?, busy: None })
    }

    /// Its size.
    pub(super) fn room(&self) -> usize {
        self.bytes.len()
    }

    /// Its bytes, when the copy that used them is over.
    pub(super) fn wait(&mut self) -> Result<&mut [u8], DeviceError> {
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

/// Room for one copy beside others: taken as long as its [`Fetch`](crate::cuda::Fetch) is in somebody's hands.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) staging: Staging,
    pub(super) bytes: usize,
    pub(super) held: Arc<()>,
}

impl Slot {
    pub(super) fn is_free(&self) -> bool {
        Arc::strong_count(&self.held) == 1
    }
}

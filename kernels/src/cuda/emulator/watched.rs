//! An emulator whose launches a test watches.

use super::{Argument, Device, DeviceError, Emulator, Fetch, Geometry, Source};

/// An emulator, and what is told of each kernel after it has run, by name and with what it wrote: a test may note it, or spoil it.
pub struct Watched<F> {
    emulator: Emulator,
    launched: F,
}

impl Emulator {
    /// The same, without its library of matrix products, and watched by `launched`.
    pub fn watched<F>(self, launched: F) -> Watched<F>
    where
        F: FnMut(&str, &mut [Argument<'_, Vec<u8>>]) + Send,
    {
        Watched { emulator: self, launched }
    }
}

impl<F: FnMut(&str, &mut [Argument<'_, Vec<u8>>]) + Send> Device for Watched<F> {
    type Memory = Vec<u8>;

    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        self.emulator.allocate(tensor, bytes)
    }

    fn write(&mut self, memory: &mut Vec<u8>, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.emulator.write(memory, at, bytes)
    }

    fn read(&mut self, memory: &Vec<u8>, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.emulator.read(memory, at, bytes)
    }

    fn fetch(&mut self, memory: &Vec<u8>, bytes: usize) -> Result<Fetch, DeviceError> {
        self.emulator.fetch(memory, bytes)
    }

    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        self.emulator.collect(fetch, show)
    }

    fn blocks(&self) -> u32 {
        self.emulator.blocks()
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, Vec<u8>>],
    ) -> Result<(), DeviceError> {
        self.emulator.launch(source, kernel, geometry, arguments)?;
        (self.launched)(kernel, arguments);
        Ok(())
    }
}

//! Whether a device that computes wrongly is found out.

use crate::cuda::emulator::{Emulator, is_there};
use crate::cuda::{Argument, Device, DeviceError, Fetch, Geometry, Source, self_test};

/// The emulator, with a bit of what one kernel makes turned.
struct Spoilt {
    emulator: Emulator,
    kernel: &'static str,
    met: bool,
}

impl Device for Spoilt {
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
        let made = arguments.iter_mut().find_map(|argument| match argument {
            // The lowest bit of a number in the middle, of either width.
            Argument::InOut(memory) => {
                let middle = memory.len() / 16 * 8;
                memory.get_mut(middle)
            }
            _ => None,
        });
        if let (true, Some(byte)) = (kernel == self.kernel, made) {
            *byte ^= 1;
            self.met = true;
        }
        Ok(())
    }
}

#[test]
fn a_device_that_computes_wrongly_is_found_out() {
    if !is_there() {
        return;
    }
    let sources = [
        Source::aggregate(),
        Source::codec(),
        Source::layers(),
        Source::losses(),
        Source::linear(),
        Source::robust(),
    ];
    let emulator = Emulator::new(&sources);
    assert_eq!(self_test(&mut emulator.another()), Ok(()));
    for kernel in [
        "add",
        "gelu",
        "gelu_gradient",
        "binary_losses",
        "bf16_encode",
        "f16_encode",
        "binary_slopes",
        "linear_forward",
        "self_test_update",
        "inner_products",
        "combine",
        "clip",
    ] {
        let mut spoilt = Spoilt { emulator: emulator.another(), kernel, met: false };
        let result = self_test(&mut spoilt);
        assert!(spoilt.met && matches!(result, Err(DeviceError::Arithmetic { .. })), "{kernel}: {result:?}");
    }
}

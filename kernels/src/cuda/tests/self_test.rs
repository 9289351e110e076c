//! Whether a device that computes wrongly is found out.

use crate::cuda::emulator::{Emulator, is_there};
use crate::cuda::{Argument, DeviceError, Source, self_test};

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
        let mut met = false;
        let mut spoilt = emulator.another().watched(|launched, arguments| {
            let made = arguments.iter_mut().find_map(|argument| match argument {
                // The lowest bit of a number in the middle, of either width.
                Argument::InOut(memory) => {
                    let middle = memory.len() / 16 * 8;
                    memory.get_mut(middle)
                }
                _ => None,
            });
            if let (true, Some(byte)) = (launched == kernel, made) {
                *byte ^= 1;
                met = true;
            }
        });
        let result = self_test(&mut spoilt);
        assert!(met && matches!(result, Err(DeviceError::Arithmetic { .. })), "{kernel}: {result:?}");
    }
}

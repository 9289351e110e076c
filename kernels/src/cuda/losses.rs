//! Losses of numbers on a device: the twins of [`crate::losses`], with the same bits.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;
use crate::losses::{sum, sum_of_squares};

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// As [`crate::losses::squared_error`].
///
/// # Errors
/// [`DeviceError::Length`] if the three differ in length, and what a launch may meet.
pub fn squared_error<D: Device>(
    device: &mut D,
    outputs: &Numbers<D>,
    targets: &Numbers<D>,
    gradient: &mut Numbers<D>,
) -> Result<f64, DeviceError> {
    launch(device, "differences", outputs, targets, gradient)?;
    // Their squares are exact in double; the host adds them, while the gradient is finished.
    let differences = gradient.to_vec(device)?;
    let elements = gradient.elements();
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [gradient.output(), Argument::U64(elements as u64)];
    device.launch(&Source::losses(), "doubled", geometry, arguments)?;
    Ok(sum_of_squares(&differences))
}

/// As [`crate::losses::binary_cross_entropy`].
///
/// # Errors
/// [`DeviceError::Length`] if the three differ in length, and what a launch may meet.
pub fn binary_cross_entropy<D: Device>(
    device: &mut D,
    logits: &Numbers<D>,
    targets: &Numbers<D>,
    gradient: &mut Numbers<D>,
) -> Result<f64, DeviceError> {
    // First the losses: the room is there.
    launch(device, "binary_losses", logits, targets, gradient)?;
    let losses = gradient.to_vec(device)?;
    launch(device, "binary_slopes", logits, targets, gradient)?;
    Ok(sum(&losses))
}

fn launch<D: Device>(
    device: &mut D,
    kernel: &str,
    outputs: &Numbers<D>,
    targets: &Numbers<D>,
    gradient: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = outputs.elements();
    targets.check(elements)?;
    gradient.check(elements)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments =
        &mut [outputs.input(), targets.input(), gradient.output(), Argument::U64(elements as u64)];
    device.launch(&Source::losses(), kernel, geometry, arguments)
}

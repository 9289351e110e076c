//! Layers on a device, on values row by row.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;
use crate::model::Loss;

/// Zero for what is negative; NaN stays.
///
/// # Errors
/// What a launch may meet.
pub fn relu<D: Device>(device: &mut D, values: &mut Buffer<D::Memory, f32>) -> Result<(), DeviceError> {
    let elements = values.elements();
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [values.output(), Argument::U64(elements as u64)];
    device.launch(&Source::layers(), "relu", geometry, arguments)
}

/// The gradient through [`relu`] whose results are `outputs`: zero where they are not positive.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn relu_gradient<D: Device>(
    device: &mut D,
    gradient: &mut Buffer<D::Memory, f32>,
    outputs: &Buffer<D::Memory, f32>,
) -> Result<(), DeviceError> {
    let elements = gradient.elements();
    outputs.check(elements)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [gradient.output(), outputs.input(), Argument::U64(elements as u64)];
    device.launch(&Source::layers(), "relu_gradient", geometry, arguments)
}

/// The Gaussian error linear unit in its tanh form: `out` becomes the unit of `values`.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn gelu<D: Device>(
    device: &mut D,
    values: &Buffer<D::Memory, f32>,
    out: &mut Buffer<D::Memory, f32>,
) -> Result<(), DeviceError> {
    let elements = values.elements();
    out.check(elements)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [values.input(), out.output(), Argument::U64(elements as u64)];
    device.launch(&Source::layers(), "gelu", geometry, arguments)
}

/// `gradient`, of the results of [`gelu`], becomes the gradient of `values`.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn gelu_gradient<D: Device>(
    device: &mut D,
    values: &Buffer<D::Memory, f32>,
    gradient: &mut Buffer<D::Memory, f32>,
) -> Result<(), DeviceError> {
    let elements = values.elements();
    gradient.check(elements)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [values.input(), gradient.output(), Argument::U64(elements as u64)];
    device.launch(&Source::layers(), "gelu_gradient", geometry, arguments)
}

/// Features and interleaved sums of a block of threads, as layers.cu has them.
const BIAS_FEATURES: u32 = 32;
const BIAS_SUMS: u32 = 16;

/// A bias's gradient: `out` becomes the sum of the rows of `gradient`, in the order of `layers/bias.rs`.
///
/// # Errors
/// [`DeviceError::Length`] unless `gradient` holds `examples` times what `out` holds, and what a launch may meet.
pub fn sum_examples<D: Device>(
    device: &mut D,
    gradient: &Buffer<D::Memory, f32>,
    examples: usize,
    out: &mut Buffer<D::Memory, f32>,
) -> Result<(), DeviceError> {
    let features = out.elements();
    gradient.check(examples.saturating_mul(features))?;
    let threads = BIAS_FEATURES * BIAS_SUMS;
    let geometry = Geometry::new(features, BIAS_FEATURES, threads, device.blocks());
    let arguments =
        &mut [gradient.input(), out.output(), Argument::U32(features as u32), Argument::U64(examples as u64)];
    device.launch(&Source::layers(), "sum_examples", geometry, arguments)
}

/// Threads of a block, as layers.cu has them.
const SOFTMAX_THREADS: u32 = 128;

/// Turns logits (examples x `classes`) into the gradient of softmax with cross-entropy in place, and says the loss: the CPU's bits,
/// which `layers/softmax.rs` defines.
///
/// # Errors
/// [`DeviceError::Label`] if a label is not below `classes`, [`DeviceError::Length`], and what a launch may meet.
pub fn cross_entropy<D: Device>(
    device: &mut D,
    logits: &mut Buffer<D::Memory, f32>,
    labels: &[u32],
    classes: usize,
) -> Result<Loss, DeviceError> {
    logits.check(labels.len().saturating_mul(classes))?;
    if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
        return Err(DeviceError::Label { label: *label, classes });
    }
    let examples = labels.len();
    let labels = Buffer::of(device, "labels", labels)?;
    let mut losses = Buffer::<_, f32>::zeros(device, "losses", examples)?;
    let mut correct = Buffer::<_, u32>::zeros(device, "correct", examples)?;
    let geometry = Geometry::new(examples, 1, SOFTMAX_THREADS, device.blocks());
    let arguments = &mut [
        logits.output(),
        labels.input(),
        losses.output(),
        correct.output(),
        Argument::U32(classes as u32),
        Argument::U64(examples as u64),
    ];
    device.launch(&Source::layers(), "cross_entropy", geometry, arguments)?;
    let loss_sum = losses.to_vec(device)?.into_iter().fold(0.0, |sum, loss| sum + f64::from(loss));
    let correct = correct.to_vec(device)?.into_iter().sum();
    Ok(Loss { loss_sum, correct, examples: examples as u32 })
}

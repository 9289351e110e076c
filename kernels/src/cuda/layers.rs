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

/// Softmax with cross-entropy, its gradient and the loss: the CPU's bits, which `layers/softmax.rs` defines.
#[derive(Debug)]
pub struct CrossEntropy<M> {
    classes: usize,
    labels: Buffer<M, u32>,
    losses: Buffer<M, f32>,
    correct: Buffer<M, u32>,
}

impl<M> CrossEntropy<M> {
    /// With room for `targets` targets of `classes` classes each.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        classes: usize,
        targets: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            classes,
            labels: Buffer::zeros(device, "labels", targets)?,
            losses: Buffer::zeros(device, "losses", targets)?,
            correct: Buffer::zeros(device, "correct", targets)?,
        })
    }

    /// Turns logits (a row of classes for each label) into their gradient in place. The part `smoothing`, from 0 to below 1, of what is
    /// asked for is all classes alike.
    ///
    /// # Errors
    /// [`DeviceError::Label`] if a label is no class, [`DeviceError::Length`], and what a launch may meet.
    pub fn launch<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        smoothing: f32,
        logits: &mut Buffer<M, f32>,
        labels: &[u32],
    ) -> Result<(), DeviceError> {
        let (classes, targets) = (self.classes, labels.len());
        logits.check(targets.saturating_mul(classes))?;
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(DeviceError::Label { label: *label, classes });
        }
        self.labels.resize(targets)?;
        self.losses.resize(targets)?;
        self.correct.resize(targets)?;
        self.labels.write(device, labels)?;
        let geometry = Geometry::new(targets, 1, SOFTMAX_THREADS, device.blocks());
        let arguments = &mut [
            logits.output(),
            self.labels.input(),
            self.losses.output(),
            self.correct.output(),
            Argument::F32(smoothing),
            Argument::U32(classes as u32),
            Argument::U64(targets as u64),
        ];
        device.launch(&Source::layers(), "cross_entropy", geometry, arguments)
    }

    /// The loss of the last launch, whose targets count as examples.
    ///
    /// # Errors
    /// What a launch may meet.
    pub fn loss<D: Device<Memory = M>>(&self, device: &mut D) -> Result<Loss, DeviceError> {
        let losses = self.losses.to_vec(device)?;
        let loss_sum = losses.iter().fold(0.0, |sum, loss| sum + f64::from(*loss));
        let correct = self.correct.to_vec(device)?.into_iter().sum();
        Ok(Loss { loss_sum, correct, examples: losses.len() as u32 })
    }
}

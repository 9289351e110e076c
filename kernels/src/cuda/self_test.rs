//! Whether a device computes what it must: a sample of the operations that kernels are made of, on numbers on which arithmetic breaks, against
//! the CPU. A node that says of itself that it has the CPU's bits looks first: one that has not would be blamed for lying.
//!
//! What is not tried: convolution and pooling, attention, norms of batches and layers, dropout, other losses and activations, medians and
//! trimmed means, other optimizers and their reductions. The emulator's tests and `gpu-tests` compare those.

use super::buffer::Buffer;
use super::codec::encode;
use super::device::{Device, DeviceError};
use super::layers::{gelu, gelu_gradient};
use super::linear::DeviceLinear;
use super::losses::binary_cross_entropy;
use super::operations::add;
use super::update::{DeviceOptimizer, DeviceSlice};
use super::weigh::DeviceWeighing;
use crate::codec::Codec;
use crate::linear::{Linear, Panels};
use crate::optimizer::{Optimizer, OptimizerError, Slice, StepInputs, shipped};
use crate::robust::products::Products;
use crate::robust::weigh::{Weights, clip};
use crate::{layers, losses};

/// Numbers of each vector.
const ELEMENTS: usize = 4096;
/// The optimizer whose kernel is tried: it has products, sums, quotients, roots and fused operations.
const OPTIMIZER: &str = "adam";

/// Compares a device with the CPU: sums, GELU and binary cross-entropy (`exp`, `ln`, `tanh`), numbers in two bytes, a matrix product, Adam,
/// inner products and a combination in double, clipped.
///
/// # Errors
/// [`DeviceError::Arithmetic`] with the first bits that differ, and what memory or a launch may meet.
pub fn self_test<D: Device>(device: &mut D) -> Result<(), DeviceError> {
    let [any, other] = [1, 2].map(|seed| any_bits(ELEMENTS, seed));
    let [x, y] = [3, 4].map(|seed| ordinary(ELEMENTS, seed));
    let (d_other, d_x, d_y) =
        (Buffer::of(device, "other", &other)?, Buffer::of(device, "x", &x)?, Buffer::of(device, "y", &y)?);

    let mut sum = Buffer::of(device, "sum", &any)?;
    add(device, &mut sum, &d_other)?;
    let mut expected = any.clone();
    crate::add(&mut expected, &other);
    compare(device, "sums", &sum, &expected)?;

    let mut out = Buffer::zeros(device, "out", ELEMENTS)?;
    gelu(device, &d_x, &mut out)?;
    layers::gelu(&x, &mut expected);
    compare(device, "GELU", &out, &expected)?;
    gelu_gradient(device, &d_x, &mut sum)?;
    let mut through = any.clone();
    crate::add(&mut through, &other);
    layers::gelu_gradient(&x, &mut through);
    compare(device, "GELU's gradient", &sum, &through)?;

    let loss = binary_cross_entropy(device, &d_x, &d_y, &mut out)?;
    // Lengths are equal.
    let of_cpu = losses::binary_cross_entropy(&x, &y, &mut expected).unwrap_or_default();
    compare(device, "binary cross-entropy's gradient", &out, &expected)?;
    if loss.to_bits() != of_cpu.to_bits() {
        let (found, expected) = ((loss.to_bits() >> 32) as u32, (of_cpu.to_bits() >> 32) as u32);
        return Err(DeviceError::Arithmetic { what: "binary cross-entropy", element: 0, found, expected });
    }

    encoded(device, &any)?;
    product(device, &x, &y)?;
    update(device, &x, &y)?;
    weigh(device, &any, &x)
}

/// Numbers as they travel, where devices encode.
fn encoded<D: Device>(device: &mut D, any: &[f32]) -> Result<(), DeviceError> {
    let values = Buffer::of(device, "values", any)?;
    for (codec, what) in [(Codec::F16, "halves"), (Codec::Bf16, "bfloat16")] {
        let mut expected = vec![0; codec.encoded_len(any.len())];
        codec.encode(any, &mut expected)?;
        let mut bytes = Buffer::zeros(device, "bytes", expected.len())?;
        encode(device, codec, &values, &mut bytes)?;
        let words = |bytes: &[u8]| bytemuck::pod_collect_to_vec::<u8, u32>(bytes);
        let mut pairs = words(&bytes.to_vec(device)?).into_iter().zip(words(&expected)).enumerate();
        if let Some((element, (found, expected))) = pairs.find(|(_, (found, expected))| found != expected) {
            return Err(DeviceError::Arithmetic { what, element, found, expected });
        }
    }
    Ok(())
}

/// A product of matrices that no tile fits.
fn product<D: Device>(device: &mut D, x: &[f32], y: &[f32]) -> Result<(), DeviceError> {
    let (examples, inputs, outputs) = (65, 33, 66);
    let (x, weights, bias) = (&x[..examples * inputs], &y[..inputs * outputs], &y[..outputs]);
    let panels = Panels::new(examples);
    let mut in_panels = vec![0.0; panels.elements(inputs)];
    panels.fill(x, inputs, &mut in_panels);
    let mut made = vec![0.0; panels.elements(outputs)];
    Linear { inputs, outputs }.forward(weights, bias, panels, &in_panels, &mut made);
    let mut expected = vec![0.0; examples * outputs];
    panels.empty(&made, outputs, &mut expected);

    let (d_weights, d_bias) = (Buffer::of(device, "weights", weights)?, Buffer::of(device, "bias", bias)?);
    let d_x = Buffer::of(device, "x", x)?;
    let mut out = Buffer::zeros(device, "out", expected.len())?;
    DeviceLinear { inputs, outputs }.forward(device, examples, (&d_weights, &d_bias), &d_x, &mut out)?;
    compare(device, "a matrix product", &out, &expected)
}

/// A step of an optimizer.
fn update<D: Device>(device: &mut D, weights: &[f32], gradient: &[f32]) -> Result<(), DeviceError> {
    let Some(Ok(program)) = shipped::program(OPTIMIZER) else {
        return Err(OptimizerError::StateCount { expected: 1, found: 0 }.into());
    };
    let mut host = Optimizer::new(&program, &[])?;
    let inputs = StepInputs { step: 3, learning_rate: 0.01, divisor: 30.0 };
    let tensors = program.state_tensors().len();
    let mut state: Vec<Vec<f32>> = (0..tensors).map(|_| gradient.iter().map(|g| g.abs()).collect()).collect();
    let d_weights = Buffer::of(device, "weights", weights)?;
    let mut out = Buffer::of(device, "gradient", gradient)?;
    let mut d_state = Vec::new();
    for values in &state {
        d_state.push(Buffer::of(device, "state", values)?);
    }
    let slice = DeviceSlice { weights: &d_weights, gradient_to_weights: &mut out, state: &mut d_state };
    DeviceOptimizer::new("self_test", host.clone())?.update(device, inputs, slice, &mut [])?;
    let mut expected = gradient.to_vec();
    host.update(inputs, Slice { weights, gradient_to_weights: &mut expected, state: &mut state }, &mut [])?;
    compare(device, "a step of Adam", &out, &expected)?;
    d_state.iter().zip(&state).try_for_each(|(found, state)| compare(device, "Adam's state", found, state))
}

/// What is done in double.
fn weigh<D: Device>(device: &mut D, any: &[f32], x: &[f32]) -> Result<(), DeviceError> {
    let vectors = Buffer::of(device, "vectors", &[any, x].concat())?;
    let (mut found, mut expected) = (Products::new(2, false), Products::new(2, false));
    let mut weighing = DeviceWeighing::new(device, &found, any.len())?;
    weighing.add_products(device, &mut found, 0, &vectors)?;
    expected.add(0, &[any, x])?;
    let words = |products: &Products| bytemuck::pod_collect_to_vec::<u8, u32>(&products.to_bytes());
    let mut pairs = words(&found).into_iter().zip(words(&expected)).enumerate();
    if let Some((element, (found, expected))) = pairs.find(|(_, (a, b))| a != b) {
        return Err(DeviceError::Arithmetic { what: "inner products", element, found, expected });
    }
    let weights = Weights { of: vec![0.3, 1e-30], clip: 1.0 };
    let mut out = Buffer::zeros(device, "combination", any.len())?;
    weighing.combine(device, &weights, &vectors, &mut out)?;
    let mut expected = weights.combine(vec![any.to_vec(), x.to_vec()])?;
    compare(device, "a combination", &out, &expected)?;
    weighing.clip(device, &mut out, 0.3)?;
    clip(&mut expected, 0.3);
    compare(device, "a clipped gradient", &out, &expected)
}

fn compare<D: Device>(
    device: &mut D,
    what: &'static str,
    found: &Buffer<D::Memory, f32>,
    expected: &[f32],
) -> Result<(), DeviceError> {
    let found = found.to_vec(device)?;
    found.iter().zip(expected).enumerate().try_for_each(|(at, (a, b))| same(what, at, *a, *b))
}

/// The payload of NaN is unspecified.
fn same(what: &'static str, element: usize, found: f32, expected: f32) -> Result<(), DeviceError> {
    if found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan() {
        return Ok(());
    }
    let (found, expected) = (found.to_bits(), expected.to_bits());
    Err(DeviceError::Arithmetic { what, element, found, expected })
}

/// Scattered bits.
fn scattered(elements: usize, seed: u32) -> impl Iterator<Item = u32> {
    (0..elements as u32).map(move |at| {
        let bits = (at ^ seed << 24).wrapping_mul(0x9e37_79b1);
        (bits ^ bits >> 15).wrapping_mul(0x85eb_ca77)
    })
}

/// Any numbers below 2 in size, subnormal ones among them.
fn any_bits(elements: usize, seed: u32) -> Vec<f32> {
    scattered(elements, seed).map(|bits| f32::from_bits(bits & 0xbfff_ffff)).collect()
}

/// From -8 to 8.
fn ordinary(elements: usize, seed: u32) -> Vec<f32> {
    scattered(elements, seed).map(|bits| (bits >> 8) as f32 / 1_048_576.0 - 8.0).collect()
}

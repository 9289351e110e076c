//! A parameter's description: name, shape, and how its first values are drawn.
//!
//! Invariant 1: element i of a parameter is a function of (seed, name, i) alone, so that any slicing of a tensor over
//! servers gives the same bits.

use serde::{Deserialize, Serialize};

use super::ModelError;
use crate::optimizer::OptimizerError;
use crate::random::{Philox, Purpose};
use crate::shape::Shape;
use crate::simd::vectorized;

/// One parameter tensor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ParameterSpec {
    /// Unique within the model, like `fc1.weight`.
    pub name: String,
    /// Its dimensions, row-major.
    pub shape: Shape,
    /// How its first values are drawn.
    pub initial: Initial,
    /// How each step changes it.
    #[serde(default)]
    pub update: Update,
}

/// How each step changes a parameter.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Update {
    /// The job's optimizer, by the gradient.
    #[default]
    Learn,
    /// No optimizer: it is a running mean, such as batch norm's statistics. What is handed over as its gradient is a
    /// shard's value times the shard's examples; with `mean` the sum of these divided by all examples, its next value is
    /// `(1 - momentum) value + momentum mean` (see [`average`]).
    Average {
        /// The part that a step replaces, above 0 and at most 1.
        momentum: f32,
    },
}

/// One step of a running mean. On entry `sums_to_values` holds sums over examples; on return, the new values:
/// `fma(momentum, sum / divisor, (1 - momentum) value)`, so the bits of an element depend on its own numbers alone.
///
/// # Errors
/// [`OptimizerError::Length`] if the two differ in length; then nothing has changed.
pub fn average(
    momentum: f32,
    divisor: f32,
    values: &[f32],
    sums_to_values: &mut [f32],
) -> Result<(), OptimizerError> {
    if values.len() != sums_to_values.len() {
        let (expected, found) = (values.len(), sums_to_values.len());
        return Err(OptimizerError::Length { tensor: "statistics".into(), expected, found });
    }
    blend(momentum, divisor, values, sums_to_values);
    Ok(())
}

vectorized! {
    fn blend<'a>(momentum: f32, divisor: f32, values: &'a [f32], sums_to_values: &'a mut [f32]) {
        let keep = 1.0 - momentum;
        for (sum, value) in sums_to_values.iter_mut().zip(values) {
            *sum = momentum.mul_add(*sum / divisor, keep * *value);
        }
    }
}

/// How a parameter's first values are drawn.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Initial {
    /// All zero.
    Zeros,
    /// Uniform in [-bound, bound).
    Uniform {
        /// The greatest magnitude.
        bound: f32,
    },
    /// Normal of mean 0.
    Normal {
        /// The standard deviation.
        std: f32,
    },
    /// All one.
    Ones,
}

impl ParameterSpec {
    /// Writes elements `first .. first + out.len()` of the tensor's initial values.
    pub fn initialize(&self, seed: u64, first: usize, out: &mut [f32]) {
        match self.initial {
            Initial::Zeros => return out.fill(0.0),
            Initial::Ones => return out.fill(1.0),
            Initial::Uniform { .. } | Initial::Normal { .. } => {}
        }
        let name = hash(&self.name);
        let mut first = first as u64;
        let mut out = out;
        // Blocks of four elements; a stream has 2^32 of them, and the next stream continues where it ends.
        while !out.is_empty() {
            let (block, skip) = (first / 4, (first % 4) as usize);
            let stream = Philox::new(seed, Purpose::Initialize, block >> 32, name);
            let in_stream = ((1u64 << 32) - (block & 0xffff_ffff)) * 4 - skip as u64;
            let count = usize::try_from(in_stream).unwrap_or(usize::MAX).min(out.len());
            let (head, rest) = std::mem::take(&mut out).split_at_mut(count);
            draw(self.initial, &stream, block as u32, skip, head);
            first += count as u64;
            out = rest;
        }
    }
}

vectorized! {
    /// Elements `skip ..` of the stream's blocks from `block` on; `skip` is below 4.
    fn draw<'a>(initial: Initial, stream: &'a Philox, block: u32, skip: usize, out: &'a mut [f32]) {
        let (partial, whole) = out.split_at_mut(((4 - skip) % 4).min(out.len()));
        for (out, value) in partial.iter_mut().zip(four(initial, stream, block).iter().skip(skip)) {
            *out = *value;
        }
        let mut counter = block.wrapping_add(u32::from(skip > 0));
        for out in whole.chunks_mut(4) {
            for (out, value) in out.iter_mut().zip(four(initial, stream, counter)) {
                *out = value;
            }
            counter = counter.wrapping_add(1);
        }
    }
}

#[inline(always)]
fn four(initial: Initial, stream: &Philox, counter: u32) -> [f32; 4] {
    match initial {
        Initial::Zeros => [0.0; 4],
        Initial::Ones => [1.0; 4],
        // Exact up to the last product.
        Initial::Uniform { bound } => stream.uniform(counter).map(|u| (u * 2.0 - 1.0) * bound),
        Initial::Normal { std } => stream.normal(counter).map(|n| n * std),
    }
}

/// A layer's `weight` of these dimensions, outputs first, and its `bias` of as many outputs, uniform within
/// 1/sqrt(inputs of an output), as PyTorch's `nn.Linear` and `nn.Conv2d` draw them.
pub(super) fn uniform_layer(name: &str, dims: &[usize]) -> Result<[ParameterSpec; 2], ModelError> {
    let (outputs, inputs) = dims.split_at(dims.len().min(1));
    let fan_in: f64 = inputs.iter().map(|&dim| dim as f64).product();
    let initial = Initial::Uniform { bound: (1.0 / fan_in.sqrt()) as f32 };
    let spec = |kind: &str, dims: &[usize]| {
        let name = format!("{name}.{kind}");
        match Shape::new(dims) {
            Ok(shape) => Ok(ParameterSpec { name, shape, initial, update: Update::Learn }),
            Err(source) => Err(ModelError::Shape { parameter: name, source }),
        }
    };
    Ok([spec("weight", dims)?, spec("bias", outputs)?])
}

/// FNV-1a, 64 bits: tells parameters' streams apart by name. Not a defence against chosen names; a job is signed.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, initial: Initial) -> ParameterSpec {
        ParameterSpec {
            name: name.into(),
            shape: Shape::new(&[101]).unwrap(),
            initial,
            update: Update::Learn,
        }
    }

    /// Invariant 1, for every start and length.
    #[test]
    fn slicing_does_not_matter() {
        for initial in [Initial::Uniform { bound: 0.5 }, Initial::Normal { std: 2.0 }] {
            let spec = spec("fc1.weight", initial);
            let mut whole = vec![f32::NAN; 101];
            spec.initialize(5, 0, &mut whole);
            for first in 0..40 {
                for len in 0..40 {
                    let mut part = vec![f32::NAN; len];
                    spec.initialize(5, first, &mut part);
                    assert_eq!(part, whole[first..first + len], "{first} {len}");
                }
            }
        }
    }

    #[test]
    fn width_does_not_matter() {
        for initial in [Initial::Uniform { bound: 0.5 }, Initial::Normal { std: 2.0 }] {
            crate::simd::forced::assert_same(|| {
                let mut values = vec![0.0; 1001];
                spec("w", initial).initialize(9, 2, &mut values);
                values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            });
        }
    }

    #[test]
    fn running_means_are_blended() {
        let values = [1.0, -2.0, 0.5];
        crate::simd::forced::assert_same(|| {
            let mut sums = [8.0, 4.0, -1.0];
            average(0.25, 4.0, &values, &mut sums).unwrap();
            assert_eq!(sums, [0.75 + 0.5, -1.5 + 0.25, 0.375 - 0.0625]);
            sums.map(f32::to_bits)
        });
        assert!(average(0.1, 1.0, &values, &mut [0.0; 2]).is_err());
    }

    #[test]
    fn streams_follow_each_other() {
        let spec = spec("w", Initial::Uniform { bound: 1.0 });
        let edge = 1usize << 34;
        let mut across = [0.0; 11];
        spec.initialize(5, edge - 6, &mut across);
        let (mut before, mut after) = ([0.0; 6], [0.0; 5]);
        spec.initialize(5, edge - 6, &mut before);
        spec.initialize(5, edge, &mut after);
        assert_eq!(across, [&before[..], &after].concat()[..]);
    }

    #[test]
    fn seeds_and_names_differ_and_ranges_hold() {
        let draw = |name: &str, seed, initial| {
            let mut values = vec![0.0; 4000];
            spec(name, initial).initialize(seed, 0, &mut values);
            values
        };
        let uniform = Initial::Uniform { bound: 0.25 };
        let values = draw("a", 1, uniform);
        assert!(values.iter().all(|value| (-0.25..0.25).contains(value)));
        assert!((values.iter().sum::<f32>() / 4000.0).abs() < 0.01);
        assert_ne!(values, draw("b", 1, uniform));
        assert_ne!(values, draw("a", 2, uniform));
        let normal = draw("a", 1, Initial::Normal { std: 3.0 });
        let variance = normal.iter().map(|value| value * value).sum::<f32>() / 4000.0;
        assert!((variance - 9.0).abs() < 0.6, "{variance}");
        assert!(draw("a", 1, Initial::Zeros).iter().all(|value| *value == 0.0));
        assert!(draw("a", 1, Initial::Ones).iter().all(|value| *value == 1.0));
    }
}

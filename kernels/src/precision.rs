//! What matrix products and convolutions are computed in: `f32`, or bfloat16 under `f32` master weights.
//!
//! Mixed precision (Micikevicius et al., "Mixed precision training", ICLR 2018): parameters are kept, averaged and updated in
//! `f32`, and a pass computes with a rounded copy of them. Invariants under [`Precision::Bf16`]:
//! 1. Every operand of a product is a bfloat16: weights (each parameter of two dimensions or more, once a pass), activations, and
//!    gradients of activations. Each is rounded once, to the nearest, ties to even, subnormals kept, before anything is made of
//!    it. What is rounded is an `f32` whose lower half is zero.
//! 2. Products accumulate in `f32`, in the orders that they state. The product of two bfloat16s has 16 bits of fraction and is
//!    exact in `f32`, so a chain of fused multiply-adds is a chain of additions of exact terms. Only its order is left for other
//!    hardware to choose.
//! 3. Everything else is `f32`: norms, softmax, attention's greatest scores and sums, losses, GELU, residual streams, sums over
//!    examples, and what is handed over as gradient. Nothing is rounded after the last product's result, the logits.
//!
//! Losses are not scaled: a bfloat16 has the exponent of an `f32`, so gradients that binary16 would flush to zero, which is what
//! scaling is against (Micikevicius et al., section 3.2), stay numbers (Kalamkar et al., "A study of BFLOAT16 for deep learning
//! training", 2019).
//!
//! Instructions that multiply bfloat16s (AVX512-BF16's `VDPBF16PS`) are not used: they add pairs in an order of their own and
//! flush subnormals, so that bits would depend on the processor. What is won on a CPU is memory: activations are kept for the
//! backward pass in two bytes each (`layers/kept.rs`).

use serde::{Deserialize, Serialize};

use crate::simd::vectorized;

/// What the products of a forward and backward pass are computed in. Parameters are `f32` either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// bfloat16 operands, sums in binary32.
    Bf16,
}

impl Precision {
    /// Its name in a cluster file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Makes operands of a product of these values.
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Precision::Bf16 {
            round(values);
        }
    }
}

/// The nearest bfloat16, ties to even. Beyond the largest is infinity, as IEEE 754 has it; a NaN stays one.
#[inline(always)]
fn nearest(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN whose payload lies in the lower half alone must not become an infinity.
    (if value.is_nan() { bits | 0x0040_0000 } else { rounded }) & 0xffff_0000
}

vectorized! {
    fn round<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = f32::from_bits(nearest(*value));
        }
    }

    /// `to` becomes what [`Precision::round`] would make of `from`.
    pub(crate) fn round_into<'a>(from: &'a [f32], to: &'a mut [f32]) {
        for (from, to) in from.iter().zip(to) {
            *to = f32::from_bits(nearest(*from));
        }
    }

    /// The upper halves of what is rounded.
    pub(crate) fn pack<'a>(values: &'a [f32], halves: &'a mut [u16]) {
        for (value, half) in values.iter().zip(halves) {
            *half = (nearest(*value) >> 16) as u16;
        }
    }

    /// What was packed.
    pub(crate) fn unpack<'a>(halves: &'a [u16], values: &'a mut [f32]) {
        for (half, value) in halves.iter().zip(values) {
            *value = f32::from_bits(u32::from(*half) << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn rounded(bits: u32) -> u32 {
        let mut values = [f32::from_bits(bits); 9];
        Precision::Bf16.round(&mut values);
        values[8].to_bits()
    }

    /// Invariant 1: the neighbours of every middle between two numbers, subnormals among them.
    #[test]
    fn what_lies_between_goes_to_the_nearest() {
        for upper in (0..0x7f7fu32).step_by(3).chain(0..0x200) {
            let (low, high) = (upper << 16, (upper + 1) << 16);
            let even = if upper % 2 == 0 { low } else { high };
            let found = [0, 0x7fff, 0x8000, 0x8001, 0xffff].map(|part| rounded(low | part));
            assert_eq!(found, [low, low, even, high, high], "{upper:#x}");
            assert_eq!(rounded(low | 0x8001 | 1 << 31), high | 1 << 31);
        }
    }

    #[test]
    fn what_is_beyond_is_infinite_and_nan_stays() {
        let infinity = f32::INFINITY.to_bits();
        assert_eq!([0x7f7f_7fff, 0x7f7f_8000, infinity].map(rounded), [0x7f7f_0000, infinity, infinity]);
        assert_eq!(rounded(infinity | 1 << 31), infinity | 1 << 31);
        for nan in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff] {
            assert!(f32::from_bits(rounded(nan)).is_nan(), "{nan:#x}");
        }
    }

    #[test]
    fn halves_are_what_is_rounded_at_every_width() {
        let values: Vec<f32> = (0..5000u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .filter(|v| !v.is_nan())
            .collect();
        forced::assert_same(|| {
            let (mut whole, mut copy) = (values.clone(), vec![0.0; values.len()]);
            let (mut halves, mut again) = (vec![0; values.len()], vec![0.0; values.len()]);
            Precision::Bf16.round(&mut whole);
            round_into(&values, &mut copy);
            pack(&values, &mut halves);
            unpack(&halves, &mut again);
            assert!(whole == copy && whole == again);
            whole.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
        let mut same = values.clone();
        Precision::F32.round(&mut same);
        assert_eq!(same, values);
    }
}

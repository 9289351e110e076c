//! IEEE 754 binary16: a sign, 5 bits of exponent, 10 of fraction; two bytes, the lower first.
//!
//! Rounding is to the nearest, ties to even, subnormals included. Finite numbers beyond 65,504 become plus or minus 65,504, where
//! IEEE 754 (and NumPy and PyTorch) would have infinities: a gradient that is too large stays a direction, and the error shows in
//! the metric. Infinities and NaN stay what they are, for whoever checks that values are finite.

use super::{INFINITY, MAGNITUDE, halves};
use crate::simd::vectorized;

/// The largest finite number, 65,504.
const LARGEST: u32 = 0x7bff;
/// The least normal binary16, 2^-14, as a binary32.
const LEAST_NORMAL: u32 = 0x3880_0000;
/// Exponents are biased by 127 in binary32 and by 15 in binary16.
const BIAS: u32 = 127 - 15;

/// The nearest binary16.
#[inline(always)]
fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    // 13 bits go. Adding half of their range, or that less one where the last kept bit is even, carries as rounding must.
    let rounded = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)) >> 13;
    let normal = rounded.wrapping_sub(BIAS << 10);
    // One half has 2^-24, the least subnormal binary16, in its last place: the addition rounds as the conversion must.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if magnitude < LEAST_NORMAL { subnormal } else { normal }.min(LARGEST);
    let other = if magnitude > INFINITY { 0x7e00 } else { 0x7c00 };
    let half = if magnitude < INFINITY { finite } else { other };
    ((bits >> 16) & 0x8000 | half) as u16
}

/// The same number as a binary32.
#[inline(always)]
fn widen(half: u16) -> f32 {
    let magnitude = u32::from(half & 0x7fff);
    let normal = (magnitude << 13).wrapping_add(BIAS << 23);
    let subnormal = (magnitude as i32 as f32 * 2f32.powi(-24)).to_bits();
    let other = magnitude << 13 | INFINITY;
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    let wide = if magnitude < 0x7c00 { finite } else { other };
    f32::from_bits(u32::from(half & 0x8000) << 16 | wide)
}

vectorized! {
    pub(super) fn encode<'a>(values: &'a [f32], bytes: &'a mut [u8]) {
        halves::encode(values, bytes, narrow);
    }

    pub(super) fn decode<'a>(bytes: &'a [u8], values: &'a mut [f32]) {
        halves::decode(bytes, values, widen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every binary16 there is comes back, and those between two neighbours go to the nearer, or to the even one.
    #[test]
    fn every_number_is_kept_and_all_between_go_to_the_nearest() {
        for half in 0..0x7c00u16 {
            for sign in [0, 0x8000] {
                assert_eq!(narrow(widen(half | sign)), half | sign, "{half:#x}");
            }
            if u32::from(half) == LARGEST {
                break;
            }
            let (low, high) = (f64::from(widen(half)), f64::from(widen(half + 1)));
            // Exact: neighbours are 11 bits long, so the middle is 12.
            let middle = ((low + high) / 2.0) as f32;
            let even = if half.is_multiple_of(2) { half } else { half + 1 };
            let beside = |by: i32| f32::from_bits(middle.to_bits().wrapping_add_signed(by));
            assert_eq!([beside(-1), middle, beside(1)].map(narrow), [half, even, half + 1], "{half:#x}");
        }
    }

    #[test]
    fn what_is_beyond_saturates_and_what_is_no_number_stays_none() {
        let of = |value: f32| narrow(value);
        assert_eq!([of(65_504.0), of(65_519.99), of(65_520.0), of(f32::MAX)], [0x7bff; 4]);
        assert_eq!([of(-65_520.0), of(f32::INFINITY), of(f32::NEG_INFINITY)], [0xfbff, 0x7c00, 0xfc00]);
        assert!(widen(of(f32::NAN)).is_nan() && widen(of(f32::from_bits(0x7f80_0001))).is_nan());
        assert_eq!([widen(0x7c00), widen(0xfc00)], [f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!([of(0.0), of(-0.0), of(f32::from_bits(1)), of(2f32.powi(-25))], [0, 0x8000, 0, 0]);
        assert_eq!(of(f32::from_bits(2f32.powi(-25).to_bits() + 1)), 1);
    }
}

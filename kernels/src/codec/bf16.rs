//! bfloat16: the upper half of a binary32, so of its range, with 7 bits of fraction; two bytes, the lower first.
//!
//! Rounding is to the nearest, ties to even, subnormals included. Finite numbers that would round to infinity become the largest
//! finite number instead. Infinities and NaN stay what they are.

use super::{INFINITY, MAGNITUDE, halves};
use crate::simd::vectorized;

/// The largest finite number.
const LARGEST: u32 = 0x7f7f;

/// The nearest bfloat16.
#[inline(always)]
fn narrow(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    let rounded = (magnitude.wrapping_add(0x7fff + ((magnitude >> 16) & 1)) >> 16).min(LARGEST);
    // A NaN whose payload lies in the lower half alone must not become an infinity.
    let other = magnitude >> 16 | if magnitude > INFINITY { 0x40 } else { 0 };
    let upper = if magnitude < INFINITY { rounded } else { other };
    ((bits >> 16) & 0x8000 | upper) as u16
}

vectorized! {
    pub(super) fn encode<'a>(values: &'a [f32], bytes: &'a mut [u8]) {
        halves::encode(values, bytes, narrow);
    }

    pub(super) fn decode<'a>(bytes: &'a [u8], values: &'a mut [f32]) {
        halves::decode(bytes, values, |half| f32::from_bits(u32::from(half) << 16));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_between_two_numbers_go_to_the_nearest() {
        for upper in 0..0x7f7fu16 {
            let bits = u32::from(upper) << 16;
            let even = if upper.is_multiple_of(2) { upper } else { upper + 1 };
            let of = |low: u32| narrow(f32::from_bits(bits | low));
            assert_eq!([of(0), of(0x7fff), of(0x8000), of(0x8001)], [upper, upper, even, upper + 1]);
            assert_eq!(narrow(-f32::from_bits(bits | 0x7fff)), upper | 0x8000);
        }
    }

    #[test]
    fn what_is_beyond_saturates_and_what_is_no_number_stays_none() {
        let of = |bits: u32| narrow(f32::from_bits(bits));
        assert_eq!(
            [of(0x7f7f_7fff), of(0x7f7f_8000), of(0x7f7f_ffff), of(0xff7f_ffff)],
            [0x7f7f, 0x7f7f, 0x7f7f, 0xff7f]
        );
        assert_eq!([of(0x7f80_0000), of(0xff80_0000)], [0x7f80, 0xff80]);
        assert_eq!([of(0x7f80_0001), of(0xffc0_1234)], [0x7fc0, 0xffc0]);
    }
}

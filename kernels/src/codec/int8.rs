//! Eight bits an element: a symmetric linear code in units of its own for every block of 256 elements, counted from the slice's
//! start.
//!
//! On the wire: the blocks' scales (binary32), then a signed byte for each element, -127 to 127. An element is its code times its
//! block's scale. The scale is a 127th of the block's largest magnitude, so an element is off by half a scale at most.
//!
//! In a block whose scale would be subnormal (largest magnitudes below some 1.5e-36) all is coded as nothing, with scale 0; with
//! feedback, it stays in the residual.

use super::{CodecError, MAGNITUDE};
use crate::simd::vectorized;

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// The largest code.
const LARGEST: f32 = 127.0;

/// 1.5 * 2^23. Its last place is one: a number below 2^22 in magnitude that is added to it is rounded to the nearest whole number, ties to
/// even, and that is in the lowest bits of the sum in two's complement.
const ROUNDER: f32 = 12_582_912.0;

/// The scale of a block of finite values.
#[inline(always)]
fn scale(block: &[f32]) -> f32 {
    let largest = block.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & MAGNITUDE));
    let scale = f32::from_bits(largest) / LARGEST;
    if scale < f32::MIN_POSITIVE {
        return 0.0;
    }
    // A scale that was rounded up could take the largest numbers there are beyond what f32 holds.
    if (scale * LARGEST).is_finite() { scale } else { f32::from_bits(scale.to_bits() - 1) }
}

/// What a scale's values are multiplied by.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// `value` in units of the scale, to the nearest.
#[inline(always)]
fn code(value: f32, inverse: f32) -> f32 {
    let units = value * inverse;
    let units = if units > LARGEST { LARGEST } else { units };
    let units = if units < -LARGEST { -LARGEST } else { units };
    units + ROUNDER
}

vectorized! {
    pub(super) fn encode<'a>(values: &'a [f32], bytes: &'a mut [u8]) {
        let (scales, codes) = bytes.split_at_mut(values.len().div_ceil(BLOCK) * 4);
        let (scales, _) = scales.as_chunks_mut::<4>();
        for ((values, codes), place) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
            let scale = scale(values);
            let inverse = inverse(scale);
            *place = scale.to_le_bytes();
            for (byte, value) in codes.iter_mut().zip(values) {
                *byte = code(*value, inverse).to_bits() as u8;
            }
        }
    }

    /// Writes what is in `residual`, and leaves what is lost.
    pub(super) fn encode_feedback<'a>(residual: &'a mut [f32], bytes: &'a mut [u8]) {
        let (scales, codes) = bytes.split_at_mut(residual.len().div_ceil(BLOCK) * 4);
        let (scales, _) = scales.as_chunks_mut::<4>();
        for ((residual, codes), place) in residual.chunks_mut(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
            let scale = scale(residual);
            let inverse = inverse(scale);
            *place = scale.to_le_bytes();
            for (byte, residual) in codes.iter_mut().zip(residual) {
                let code = code(*residual, inverse);
                *byte = code.to_bits() as u8;
                *residual -= (code - ROUNDER) * scale;
            }
        }
    }

    /// Whether there is a code of -128, which no encoder writes.
    fn has_lowest<'a>(codes: &'a [u8]) -> bool {
        codes.iter().fold(false, |found, code| found | (*code == 0x80))
    }

    fn scaled<'a>(scales: &'a [[u8; 4]], codes: &'a [u8], values: &'a mut [f32]) {
        for ((values, codes), scale) in values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
            let scale = f32::from_le_bytes(*scale);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = f32::from(*code as i8) * scale;
            }
        }
    }
}

/// Whether every scale is one, and every code has a meaning.
pub(super) fn check(bytes: &[u8], elements: usize) -> Result<(), CodecError> {
    let (scales, codes) = parts(bytes, elements);
    let is_scale = |scale: &[u8; 4]| {
        let scale = f32::from_le_bytes(*scale);
        scale.is_sign_positive() && (scale * LARGEST).is_finite()
    };
    if let Some(block) = scales.iter().position(|scale| !is_scale(scale)) {
        return Err(CodecError::Scale(block));
    }
    if has_lowest(codes) {
        let at = codes.iter().position(|code| *code == 0x80).unwrap_or(0);
        return Err(CodecError::Code(scales.len() * 4 + at));
    }
    Ok(())
}

/// Reads what has been checked.
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
    let (scales, codes) = parts(bytes, values.len());
    scaled(scales, codes, values);
}

/// The scales, and the codes.
fn parts(bytes: &[u8], elements: usize) -> (&[[u8; 4]], &[u8]) {
    let (scales, codes) = bytes.split_at((elements.div_ceil(BLOCK) * 4).min(bytes.len()));
    (scales.as_chunks::<4>().0, codes)
}

//! MXNet's `1bit`: on which side of the threshold what has come together is.
//!
//! Thirty-two elements take a word of four bytes, the first element in the most significant bit of the first byte. A last word that is
//! not full ends in zeros. Each element r of the residual, the new value added, is 1 if r is above the threshold, which decodes to
//! plus one, and else 0, which decodes to minus one; and it loses what its reader decodes.
//!
//! So every element moves by one in every step: gradients are sums over a shard's examples, and the learning rate must be chosen for
//! that scale.

use super::CodecError;
use super::two_bit::padded;
use crate::simd::vectorized;

/// Elements in a word of four bytes.
pub(super) const IN_WORD: usize = 32;

/// Elements in a byte.
const IN_BYTE: usize = 8;

vectorized! {
    /// Emits from `residual`.
    pub(super) fn encode<'a>(threshold: f32, residual: &'a mut [f32], bytes: &'a mut [u8]) {
        let emit = |residual: &mut f32| {
            let above = *residual > threshold;
            *residual -= if above { 1.0 } else { -1.0 };
            u8::from(above)
        };
        let used = residual.len().div_ceil(IN_BYTE);
        for (residual, byte) in residual.chunks_mut(IN_BYTE).zip(bytes.iter_mut()) {
            let mut bits = 0;
            for (at, residual) in residual.iter_mut().enumerate() {
                bits |= emit(residual) << (7 - at);
            }
            *byte = bits;
        }
        bytes.get_mut(used..).unwrap_or_default().fill(0);
    }

    fn spread<'a>(bytes: &'a [u8], values: &'a mut [f32]) {
        for (values, byte) in values.chunks_mut(IN_BYTE).zip(bytes) {
            for (at, value) in values.iter_mut().enumerate() {
                *value = if byte >> (7 - at) & 1 == 1 { 1.0 } else { -1.0 };
            }
        }
    }
}

/// Whether what follows the last element is zero.
pub(super) fn check(bytes: &[u8], elements: usize) -> Result<(), CodecError> {
    padded(elements, IN_BYTE, bytes)
}

/// Reads what has been checked.
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
    spread(bytes, values);
}

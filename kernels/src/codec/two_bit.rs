//! MXNet's `2bit`: what has come together is emitted in portions of the threshold, at most one a time.
//!
//! Sixteen elements take a word of four bytes, the first element in the most significant bits of the first byte: `11` is the threshold,
//! `10` minus the threshold, `00` nothing. A last word that is not full ends in zeros. Each element r of the residual, the new value
//! added, emits the threshold if r is that or more, minus the threshold if r is minus that or less, and loses what it emitted.

use super::CodecError;
use crate::simd::vectorized;

/// Elements in a word of four bytes.
pub(super) const IN_WORD: usize = 16;

/// Elements in a byte.
const IN_BYTE: usize = 4;

vectorized! {
    /// Emits from `residual`.
    pub(super) fn encode<'a>(threshold: f32, residual: &'a mut [f32], bytes: &'a mut [u8]) {
        let emit = |residual: &mut f32| {
            let (above, below) = (*residual >= threshold, *residual <= -threshold);
            let emitted = if above { threshold } else if below { -threshold } else { 0.0 };
            *residual -= emitted;
            u8::from(above | below) << 1 | u8::from(above)
        };
        let used = residual.len().div_ceil(IN_BYTE);
        let (whole, last) = residual.as_chunks_mut::<IN_BYTE>();
        for ([a, b, c, d], byte) in whole.iter_mut().zip(bytes.iter_mut()) {
            *byte = emit(a) << 6 | emit(b) << 4 | emit(c) << 2 | emit(d);
        }
        if !last.is_empty()
            && let Some(byte) = bytes.get_mut(used - 1)
        {
            *byte = 0;
            for (at, residual) in last.iter_mut().enumerate() {
                *byte |= emit(residual) << (6 - 2 * at);
            }
        }
        bytes.get_mut(used..).unwrap_or_default().fill(0);
    }

    /// Whether a code is `01`.
    fn has_no_meaning<'a>(bytes: &'a [u8]) -> bool {
        bytes.iter().fold(0, |found, byte| found | (byte & !(byte >> 1) & 0x55)) != 0
    }

    fn spread<'a>(threshold: f32, bytes: &'a [u8], values: &'a mut [f32]) {
        let of = |byte: u8, at: usize| {
            let code = byte >> (6 - 2 * at);
            let magnitude = if code & 2 == 2 { threshold } else { 0.0 };
            if code & 3 == 2 { -magnitude } else { magnitude }
        };
        for (values, byte) in values.chunks_mut(IN_BYTE).zip(bytes) {
            for (at, value) in values.iter_mut().enumerate() {
                *value = of(*byte, at);
            }
        }
    }
}

/// Whether every code has a meaning.
pub(super) fn check(bytes: &[u8], elements: usize) -> Result<(), CodecError> {
    if has_no_meaning(bytes) {
        let at = bytes.iter().position(|byte| byte & !(byte >> 1) & 0x55 != 0);
        return Err(CodecError::Code(at.unwrap_or(0)));
    }
    padded(elements, IN_BYTE, bytes)
}

/// Reads what has been checked.
pub(super) fn decode(threshold: f32, bytes: &[u8], values: &mut [f32]) {
    spread(threshold, bytes, values);
}

/// Whether all that follows the last element is zero, with `in_byte` elements in a byte.
pub(super) fn padded(elements: usize, in_byte: usize, bytes: &[u8]) -> Result<(), CodecError> {
    let (whole, over) = (elements / in_byte, elements % in_byte);
    // Of the byte in which the last element is, the bits below it.
    let rest = if over > 0 { 0xff >> (over * 8 / in_byte) } else { 0xff };
    for (at, byte) in bytes.iter().enumerate().skip(whole) {
        if byte & (if at == whole { rest } else { 0xff }) != 0 {
            return Err(CodecError::Code(at));
        }
    }
    Ok(())
}

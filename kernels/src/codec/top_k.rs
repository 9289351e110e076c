//! The k largest magnitudes with their places; all else stays in the residual.
//!
//! On the wire: k indices (unsigned, four bytes), strictly ascending, then k values (binary32) in the same order. k is the nearest whole
//! number to the fraction of the elements, at least 1. Of equal magnitudes, those with the lower indices are sent.

use super::{CodecError, MAGNITUDE};

/// How many of `elements` elements are sent.
pub(super) fn kept(elements: usize, fraction: f32) -> usize {
    // One multiplication and one rounding: the same everywhere. A negative product, or none, becomes 0.
    let share = (elements as f64 * f64::from(fraction)).round() as usize;
    share.clamp(usize::from(elements > 0), elements.max(usize::from(elements > 0)))
}

/// A digit of a magnitude: so many bits, from that bit on. Three of them are its 31 bits.
const DIGITS: [(u32, u32); 3] = [(11, 20), (11, 9), (9, 0)];
/// Values of a digit at most.
const DIGIT: usize = 1 << 11;

/// The magnitude, as bits, of which `k` are that or larger, and how many of those that are equal are among the k; by three passes over the
/// values that each settle a digit, so that no memory is taken.
fn threshold(values: &[f32], k: usize) -> (u32, usize) {
    let (mut found, mut above, mut left) = (0u32, 0u32, k);
    for (bits, shift) in DIGITS {
        let mut counts = [0usize; DIGIT];
        for value in values {
            let magnitude = value.to_bits() & MAGNITUDE;
            // Only what shares the digits that are settled.
            if magnitude & above == found {
                let digit = (magnitude >> shift) as usize & ((1 << bits) - 1);
                if let Some(count) = counts.get_mut(digit) {
                    *count += 1;
                }
            }
        }
        for (digit, count) in counts.iter().enumerate().rev() {
            if *count >= left {
                found |= (digit as u32) << shift;
                break;
            }
            left -= count;
        }
        above |= ((1 << bits) - 1) << shift;
    }
    (found, left)
}

/// Emits from `residual` as many as `bytes` have room for.
pub(super) fn encode(residual: &mut [f32], bytes: &mut [u8]) {
    let k = bytes.len() / 8;
    let (indices, values) = bytes.split_at_mut(k * 4);
    let (indices, values) = (indices.as_chunks_mut::<4>().0, values.as_chunks_mut::<4>().0);
    let mut places = indices.iter_mut().zip(values);
    let (threshold, mut equals) = threshold(residual, k);
    for (at, residual) in residual.iter_mut().enumerate() {
        let magnitude = residual.to_bits() & MAGNITUDE;
        if magnitude < threshold || (magnitude == threshold && equals == 0) {
            continue;
        }
        equals -= usize::from(magnitude == threshold);
        let Some((index, value)) = places.next() else { return };
        *index = (at as u32).to_le_bytes();
        *value = residual.to_le_bytes();
        *residual = 0.0;
    }
}

/// Whether the indices ascend and lie among `elements` elements.
pub(super) fn check(bytes: &[u8], elements: usize) -> Result<(), CodecError> {
    let (indices, _) = halves(bytes);
    let mut next = 0u64;
    for (at, index) in indices.iter().enumerate() {
        let index = u64::from(u32::from_le_bytes(*index));
        if index < next || index >= elements as u64 {
            return Err(CodecError::Index(at));
        }
        next = index + 1;
    }
    Ok(())
}

/// Reads what has been checked.
pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
    let (indices, kept) = halves(bytes);
    values.fill(0.0);
    for (index, value) in indices.iter().zip(kept) {
        if let Some(place) = values.get_mut(u32::from_le_bytes(*index) as usize) {
            *place = f32::from_le_bytes(*value);
        }
    }
}

/// The indices, and the values.
fn halves(bytes: &[u8]) -> (&[[u8; 4]], &[[u8; 4]]) {
    let (indices, kept) = bytes.split_at(bytes.len() / 2);
    (indices.as_chunks::<4>().0, kept.as_chunks::<4>().0)
}

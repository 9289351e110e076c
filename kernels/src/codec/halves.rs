//! Numbers of two bytes, the lower first: the loops of `bf16` and `f16` around how each narrows and widens a number.

/// Writes each value narrowed.
#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut [u8], narrow: impl Fn(f32) -> u16) {
    let (halves, _) = bytes.as_chunks_mut::<2>();
    for (half, value) in halves.iter_mut().zip(values) {
        *half = narrow(*value).to_le_bytes();
    }
}

/// Reads each value and widens it.
#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32], widen: impl Fn(u16) -> f32) {
    let (halves, _) = bytes.as_chunks::<2>();
    for (value, half) in values.iter_mut().zip(halves) {
        *value = widen(u16::from_le_bytes(*half));
    }
}

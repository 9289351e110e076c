//! f32 values as wire payloads and back, without copying where the owner allows it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use testudo_kernels::{Codec, CodecError};
use testudo_transport::Payload;

/// Values that lend their bytes to a [`Bytes`].
#[derive(Clone, Debug)]
struct Owner(Arc<Vec<f32>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Shared values as payload bytes; nothing is copied.
#[must_use]
pub fn share(values: &Arc<Vec<f32>>) -> Bytes {
    Bytes::from_owner(Owner(Arc::clone(values)))
}

/// Buffers of slices that are on their way out, used again when they have been sent.
#[derive(Clone, Debug, Default)]
pub struct SlicePool(Arc<Mutex<Vec<Vec<f32>>>>);

/// Buffers that a pool keeps: as many slices as are under way at a time.
const POOLED: usize = 64;

/// A pooled buffer on its way out; of its bytes, the first `len`.
struct Pooled {
    values: Vec<f32>,
    len: usize,
    pool: SlicePool,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.values).get(..self.len).unwrap_or_default()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut buffers = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < POOLED {
            buffers.push(std::mem::take(&mut self.values));
        }
    }
}

impl SlicePool {
    /// A copy of `values` as payload bytes, in a buffer of the pool.
    #[must_use]
    pub fn copy(&self, values: &[f32]) -> Bytes {
        let mut buffer = self.buffer();
        buffer.clear();
        buffer.extend_from_slice(values);
        let len = values.len() * 4;
        Bytes::from_owner(Pooled { values: buffer, len, pool: self.clone() })
    }

    /// What `fill` writes into `len` bytes of a buffer of the pool.
    ///
    /// # Errors
    /// What `fill` says.
    pub fn fill<E>(&self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
        let mut buffer = self.buffer();
        buffer.resize(len.div_ceil(4), 0.0);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
        fill(bytes.get_mut(..len).unwrap_or_default())?;
        Ok(Bytes::from_owner(Pooled { values: buffer, len, pool: self.clone() }))
    }

    fn buffer(&self) -> Vec<f32> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }
}

/// A payload that is not a whole number of f32 values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {0} bytes is not a whole number of 4-byte values")]
pub struct NotValues(pub usize);

/// The values of a received payload; nothing is copied, and the sender's credit for it is given back.
///
/// # Errors
/// [`NotValues`] when the length is no multiple of four.
pub fn take(payload: Payload) -> Result<Vec<f32>, NotValues> {
    let len = payload.len();
    payload.into_words().map(bytemuck::cast_vec).map_err(|_| NotValues(len))
}

/// A received payload's values in place.
///
/// # Errors
/// [`NotValues`] when the length is no multiple of four.
pub fn view(payload: &Payload) -> Result<&[f32], NotValues> {
    payload.as_words().map(bytemuck::cast_slice).ok_or(NotValues(payload.len()))
}

/// As many values as the payload must hold in `codec`; where that is `f32`, nothing is copied. The sender's credit for it is given
/// back.
///
/// # Errors
/// [`CodecError`] when it does not hold them. Memory is taken only for what an encoder may have written.
pub fn decode(payload: Payload, codec: Codec, elements: usize) -> Result<Vec<f32>, CodecError> {
    let (expected, found) = (codec.encoded_len(elements), payload.len());
    let wrong = CodecError::Length { elements, expected, found };
    if found != expected {
        return Err(wrong);
    }
    if codec.is_lossless() {
        return take(payload).map_err(|_| wrong);
    }
    codec.decode_new(payload.as_bytes(), elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A push of a few bytes that no encoder wrote must not have the server take memory for a slice of any size.
    #[test]
    fn hostile_bytes_are_refused_before_memory_is_taken() {
        const SLICE: usize = 1 << 16;
        let sparse = Codec::TopK { fraction: 1.0 / SLICE as f32 };
        let (two, one) = (Codec::TwoBit { threshold: 0.5 }, Codec::OneBit { threshold: 0.0 });
        let bytes = |codec: Codec, elements: usize, at: usize, word: [u8; 4]| {
            let mut bytes = vec![0; codec.encoded_len(elements)];
            bytes[at..at + 4].copy_from_slice(&word);
            bytes
        };
        let last = |codec: Codec, elements: usize| codec.encoded_len(elements) - 4;
        let hostile = [
            // Beyond the slice.
            (sparse, SLICE, bytes(sparse, SLICE, 0, u32::MAX.to_le_bytes()), CodecError::Index(0)),
            // A scale that is NaN, and a code of -128.
            (Codec::Int8, SLICE, bytes(Codec::Int8, SLICE, 4, f32::NAN.to_le_bytes()), CodecError::Scale(1)),
            (
                Codec::Int8,
                SLICE,
                bytes(Codec::Int8, SLICE, SLICE / 256 * 4, [0x80, 0, 0, 0]),
                CodecError::Code(SLICE / 256 * 4),
            ),
            // A code without a meaning, and padding that is not zero.
            (two, SLICE, bytes(two, SLICE, 0, [0b0100_0000, 0, 0, 0]), CodecError::Code(0)),
            (
                one,
                SLICE - 1,
                bytes(one, SLICE - 1, last(one, SLICE - 1), [0, 0, 0, 1]),
                CodecError::Code(8191),
            ),
            // A lying count.
            (sparse, SLICE, vec![0; 16], CodecError::Length { elements: SLICE, expected: 8, found: 16 }),
        ];
        for (codec, elements, bytes, expected) in hostile {
            let payload = Payload::copy_from(&bytes);
            let mut found = Ok(Vec::new());
            let counted = allocation_counter::measure(|| found = decode(payload, codec, elements));
            assert_eq!(found, Err(expected), "{codec}");
            assert_eq!(counted.count_total, 0, "{codec}: {counted:?}");
        }
        // What an encoder writes is decoded, into one vector.
        let mut payload = None;
        let honest = bytes(sparse, SLICE, 4, 2.0f32.to_le_bytes());
        let counted =
            allocation_counter::measure(|| payload = decode(Payload::copy_from(&honest), sparse, SLICE).ok());
        assert_eq!(payload.unwrap()[..2], [2.0, 0.0]);
        assert!(counted.bytes_max >= 4 * SLICE as u64);
    }
}

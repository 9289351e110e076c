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
/// [`CodecError`] when it does not hold them. Memory is taken only for a payload of the right length.
pub fn decode(payload: Payload, codec: Codec, elements: usize) -> Result<Vec<f32>, CodecError> {
    let (expected, found) = (codec.encoded_len(elements), payload.len());
    let wrong = CodecError::Length { elements, expected, found };
    if found != expected {
        return Err(wrong);
    }
    if codec.is_lossless() {
        return take(payload).map_err(|_| wrong);
    }
    let mut values = vec![0.0; elements];
    codec.decode(payload.as_bytes(), &mut values)?;
    Ok(values)
}

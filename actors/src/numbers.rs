//! f32 values as wire payloads and back, without copying where the owner allows it.

use std::sync::Arc;

use bytes::Bytes;
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

/// Owned values as payload bytes; nothing is copied.
#[must_use]
pub fn own(values: Vec<f32>) -> Bytes {
    share(&Arc::new(values))
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

//! A received payload: aligned bytes, and the sender's credit that they hold.
//!
//! Invariants:
//!
//! 1. Bytes lie at a 4-byte boundary, so that they read as words without a copy.
//! 2. The credit is held exactly as long as the bytes are: dropping the payload, or taking its words,
//!    releases it.

use std::fmt;

use crate::codec::WireError;
use crate::session::Charge;

/// The received bytes of one message.
#[derive(Default)]
pub struct Payload {
    words: Vec<u32>,
    len: usize,
    charge: Option<Charge>,
}

impl Payload {
    pub(crate) fn from_parts(words: Vec<u32>, len: usize, charge: Option<Charge>) -> Self {
        Payload { words, len, charge }
    }

    /// A payload that holds nobody's credit: for simulations and tests.
    pub fn copy_from(bytes: &[u8]) -> Self {
        let mut words = vec![0u32; bytes.len().div_ceil(4)];
        for (slot, byte) in bytemuck::cast_slice_mut::<u32, u8>(&mut words).iter_mut().zip(bytes) {
            *slot = *byte;
        }
        Payload { words, len: bytes.len(), charge: None }
    }

    pub(crate) fn charged(self, charge: Option<Charge>) -> Self {
        Payload { charge, ..self }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, as they were on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(..self.len).unwrap_or_default()
    }

    /// The payload as 4-byte words in the wire's byte order; `None` when it is not a whole number of them.
    pub fn as_words(&self) -> Option<&[u32]> {
        if self.len.is_multiple_of(4) { self.words.get(..self.len / 4) } else { None }
    }

    /// The payload as numbers: little-endian words on the wire, native words here. Releases the credit.
    ///
    /// # Errors
    /// [`WireError::NotWords`] when the length is not a multiple of 4.
    pub fn into_words(mut self) -> Result<Vec<u32>, WireError> {
        if !self.len.is_multiple_of(4) {
            return Err(WireError::NotWords { len: self.len });
        }
        let mut words = std::mem::take(&mut self.words);
        words.truncate(self.len / 4);
        if cfg!(target_endian = "big") {
            words.iter_mut().for_each(|word| *word = u32::from_le(*word));
        }
        Ok(words)
    }

    /// Whether this payload still holds its sender's credit.
    pub fn is_charged(&self) -> bool {
        self.charge.is_some()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Payload {}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 1.
    #[test]
    fn bytes_and_words_agree() {
        let payload = Payload::copy_from(&[1, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(payload.as_bytes(), [1, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(payload.as_bytes().as_ptr().align_offset(4), 0);
        assert_eq!(payload.into_words(), Ok(vec![1, 258]));
    }

    #[test]
    fn a_length_that_is_not_words_is_refused() {
        for len in [1, 2, 3, 5, 7] {
            let payload = Payload::copy_from(&vec![9; len]);
            assert_eq!((payload.len(), payload.as_words()), (len, None));
            assert_eq!(payload.into_words(), Err(WireError::NotWords { len }));
        }
        assert_eq!(Payload::default().into_words(), Ok(Vec::new()));
    }
}

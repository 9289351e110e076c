//! Wire codecs: how the elements of a slice become bytes, and back.
//!
//! Invariants:
//! 1. A codec's number on the wire never changes and is never given to another.
//! 2. The length of an encoding is a function of the number of elements alone, so that a receiver can check an
//!    announced length before it reads a byte.
//! 3. Bytes are little-endian on every machine, and [`Codec::F32`] keeps every bit, NaN payloads included.
//!
//! A lossy codec is one more variant here and one file beside this one; who may use it is the caller's policy.

use serde::{Deserialize, Serialize};

/// A way to write elements as bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Each element as its four bytes of IEEE 754 binary32. Lossless.
    #[default]
    F32,
}

impl Codec {
    /// The number that stands for this codec on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Codec::F32 => 0,
        }
    }

    /// The codec of a number read from the wire; `None` if there is none.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Codec::F32),
            _ => None,
        }
    }

    /// Bytes that `elements` elements take. Saturates, so that no real buffer has the length of an absurd count.
    pub const fn encoded_len(self, elements: usize) -> usize {
        match self {
            Codec::F32 => elements.saturating_mul(4),
        }
    }

    /// Writes `values` into `bytes`, whose length is [`Codec::encoded_len`] of their number.
    ///
    /// # Errors
    /// [`CodecError::Length`] if it is not; nothing is written then.
    pub fn encode(self, values: &[f32], bytes: &mut [u8]) -> Result<(), CodecError> {
        self.check(values.len(), bytes.len())?;
        match self {
            Codec::F32 => {
                let (words, _) = bytes.as_chunks_mut::<4>();
                for (word, value) in words.iter_mut().zip(values) {
                    *word = value.to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// Reads `bytes`, whose length is [`Codec::encoded_len`] of the number of `values`, into `values`.
    ///
    /// # Errors
    /// [`CodecError::Length`] if it is not; nothing is written then.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) -> Result<(), CodecError> {
        self.check(values.len(), bytes.len())?;
        match self {
            Codec::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                for (value, word) in values.iter_mut().zip(words) {
                    *value = f32::from_le_bytes(*word);
                }
            }
        }
        Ok(())
    }

    fn check(self, elements: usize, found: usize) -> Result<(), CodecError> {
        let expected = self.encoded_len(elements);
        if found == expected { Ok(()) } else { Err(CodecError::Length { elements, expected, found }) }
    }
}

/// Why bytes and elements do not fit each other.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// The buffer of bytes has the wrong length.
    #[error("{elements} elements take {expected} bytes in this codec, not {found}")]
    Length {
        /// Elements to be read or written.
        elements: usize,
        /// Bytes they take.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 1: the numbers are part of the wire format.
    #[test]
    fn ids_are_stable() {
        assert_eq!((Codec::F32.id(), Codec::from_id(0)), (0, Some(Codec::F32)));
        assert!((1..=255).all(|id| Codec::from_id(id).is_none()));
        assert_eq!(serde_json::to_string(&Codec::F32).unwrap(), "\"f32\"");
    }

    /// Invariants 2 and 3.
    #[test]
    fn f32_keeps_every_bit() {
        let values = [1.0f32, -0.0, f32::INFINITY, f32::from_bits(0x7fc0_1234), f32::from_bits(1)];
        let mut bytes = [0u8; 20];
        Codec::F32.encode(&values, &mut bytes).unwrap();
        assert_eq!(&bytes[..8], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]);
        let mut back = [0f32; 5];
        Codec::F32.decode(&bytes, &mut back).unwrap();
        assert_eq!(values.map(f32::to_bits), back.map(f32::to_bits));
    }

    #[test]
    fn refuses_other_lengths() {
        let error = Codec::F32.decode(&[0; 7], &mut [0.0; 2]).unwrap_err();
        assert_eq!(error.to_string(), "2 elements take 8 bytes in this codec, not 7");
        assert!(Codec::F32.encode(&[0.0; 2], &mut [0; 9]).is_err());
        assert_eq!(Codec::F32.encoded_len(usize::MAX), usize::MAX);
    }
}

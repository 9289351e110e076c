//! How structures become bytes: postcard, in exactly one way.
//!
//! Invariant 1: [`decode_canonical`] accepts a byte string only if [`encode`] of the result gives that byte
//! string back. Trailing bytes, padded varints and every other second spelling are refused, so that the hash
//! of a message's bytes is a hash of what it means.
//!
//! Source: postcard's wire format, <https://postcard.jamesmunns.com/wire-format>.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a structure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// They end too early, or hold a value that the type cannot have.
    #[error("{type_name} does not decode from these {len} bytes: {why}")]
    Malformed {
        /// The type expected.
        type_name: &'static str,
        /// How many bytes there were.
        len: usize,
        /// The decoder's reason.
        why: String,
    },
    /// They decode, but not all of them were used, or there is a shorter or other spelling.
    #[error("{type_name} is not in its canonical form: {len} bytes where its own encoding differs")]
    NotCanonical {
        /// The type expected.
        type_name: &'static str,
        /// How many bytes there were.
        len: usize,
    },
    /// A payload that should be whole 4-byte words is not.
    #[error("payload of {len} bytes is not a whole number of 4-byte words")]
    NotWords {
        /// How many bytes there were.
        len: usize,
    },
}

/// The bytes of `value`. Types that postcard cannot write (maps of unknown length) give no bytes at all,
/// which no type with a field decodes from.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

/// Reads a `T` that fills `bytes` exactly and canonically.
///
/// # Errors
/// [`WireError::Malformed`] or [`WireError::NotCanonical`].
pub fn decode_canonical<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, rest) = decode_prefix(bytes)?;
    if rest.is_empty() {
        return Ok(value);
    }
    Err(WireError::NotCanonical { type_name: std::any::type_name::<T>(), len: bytes.len() })
}

/// Reads a canonical `T` from the front of `bytes`, and gives what follows it.
///
/// # Errors
/// [`WireError::Malformed`] or [`WireError::NotCanonical`].
pub fn decode_prefix<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    let type_name = std::any::type_name::<T>();
    let (value, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|why| WireError::Malformed {
        type_name,
        len: bytes.len(),
        why: why.to_string(),
    })?;
    let used = bytes.get(..bytes.len() - rest.len()).unwrap_or_default();
    if encode(&value) != used {
        return Err(WireError::NotCanonical { type_name, len: bytes.len() });
    }
    Ok((value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
        list: Vec<u32>,
        choice: Option<[u8; 4]>,
    }

    fn sample() -> Sample {
        Sample { number: 300, text: "slice".into(), list: vec![1, 2, 70_000], choice: Some([1, 2, 3, 4]) }
    }

    /// Invariant 1.
    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&sample());
        assert_eq!(decode_canonical::<Sample>(&bytes), Ok(sample()));
        bytes.push(0);
        assert!(matches!(decode_canonical::<Sample>(&bytes), Err(WireError::NotCanonical { .. })));
    }

    /// Invariant 1.
    #[test]
    fn padded_varints_are_refused() {
        assert_eq!(decode_canonical::<u64>(&[0x05]), Ok(5));
        for padded in [&[0x85, 0x00][..], &[0x85, 0x80, 0x00], &[0x85, 0x80, 0x80, 0x00]] {
            assert!(matches!(decode_canonical::<u64>(padded), Err(WireError::NotCanonical { .. })));
        }
    }

    #[test]
    fn a_length_beyond_the_input_allocates_nothing() {
        // A vector of 2^63 items, announced in ten bytes.
        let bomb = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(decode_canonical::<Vec<u32>>(&bomb).is_err());
        assert!(decode_canonical::<String>(&bomb).is_err());
        assert!(decode_canonical::<Vec<Vec<u8>>>(&bomb).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = encode(&sample());
        for len in 0..bytes.len() {
            assert!(decode_canonical::<Sample>(&bytes[..len]).is_err(), "accepted {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn round_trip(number: u64, text in ".{0,40}", list: Vec<u32>, choice: Option<[u8; 4]>) {
            let value = Sample { number, text, list, choice };
            prop_assert_eq!(decode_canonical::<Sample>(&encode(&value)), Ok(value));
        }

        /// Invariant 1.
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: Vec<u8>) {
            if let Ok(value) = decode_canonical::<Sample>(&bytes) {
                prop_assert_eq!(encode(&value), bytes);
            }
        }
    }
}

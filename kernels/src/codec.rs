//! Wire codecs: how the elements of a slice become bytes, and back.
//!
//! | codec | bytes for n elements | what is lost | feedback | source |
//! |---|---|---|---|---|
//! | [`Codec::F32`] | 4 n | nothing | | IEEE 754 binary32 |
//! | [`Codec::F16`] | 2 n | all but 11 bits of precision, and what is beyond 65,504 | | IEEE 754 binary16 |
//! | [`Codec::Bf16`] | 2 n | all but 8 bits of precision | | bfloat16 |
//! | [`Codec::Int8`] | n + 4 ceil(n / 256) | at most half of a 127th of a block's largest magnitude | on pushes | Dettmers: "8-Bit Approximations for Parallelism in Deep Learning", ICLR 2016, in its linear form |
//! | [`Codec::TwoBit`] | 4 ceil(n / 16) | all but a sign, or nothing, against a threshold | always | MXNet's gradient compression `2bit`, after Strom, Interspeech 2015 |
//! | [`Codec::OneBit`] | 4 ceil(n / 32) | all but a side of a threshold | always | MXNet's `1bit`, after Seide et al., Interspeech 2014 |
//! | [`Codec::TopK`] | 8 k | all but the k largest magnitudes | always | Stich, Cordonnier, Jaggi: "Sparsified SGD with Memory", NeurIPS 2018 |
//!
//! A codec with **error feedback** keeps what it could not say in a residual, and says it later: what is encoded is the sum of
//! residual and values, and the new residual is that sum less what its reader will decode.
//!
//! Invariants:
//! 1. A codec's number on the wire never changes and is never given to another.
//! 2. The length of an encoding is a function of the number of elements and of the codec's parameters alone, and grows with that
//!    number, so that a receiver can check an announced length before it reads a byte or sets a byte of memory aside.
//! 3. Bytes are little-endian on every machine, and [`Codec::F32`] keeps every bit, NaN payloads included.
//! 4. Every bit is specified: encodings and residuals are a function of the values and the residual before, whatever the vector width.
//! 5. What no encoder writes is refused: a scale that is no finite number, a code without a meaning, an index out of order or out of
//!    range, padding that is not zero. Nothing is decoded then, and no memory taken.
//! 6. Finite values decode to finite values: half precision saturates instead of turning large numbers into infinities.
//! 7. With feedback, nothing is lost: what was decoded and the residual together are what went in, but for the rounding of `f32`.
//!
//! Who may use which codec is the caller's policy. A codec is one more variant here and one file beside its siblings.

mod bf16;
mod distortion;
mod f16;
mod halves;
mod int8;
mod one_bit;
mod top_k;
mod two_bit;

use serde::{Deserialize, Serialize};

use crate::simd::vectorized;

pub use distortion::Distortion;
pub use int8::BLOCK;

/// A way to write elements as bytes.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Each element as its four bytes of IEEE 754 binary32. Lossless.
    #[default]
    F32,
    /// Each element rounded to IEEE 754 binary16.
    F16,
    /// Each element rounded to bfloat16: the upper half of a binary32.
    Bf16,
    /// Eight bits each, in units that every block of [`BLOCK`] elements chooses for itself.
    Int8,
    /// Minus the threshold, nothing, or the threshold: two bits each.
    TwoBit {
        /// What is emitted, and the magnitude from which on it is: above 0.
        threshold: f32,
    },
    /// Plus one above the threshold, else minus one: one bit each.
    OneBit {
        /// Any finite number.
        threshold: f32,
    },
    /// The largest magnitudes with their places.
    TopK {
        /// The share of the elements that is sent, above 0 and at most [`MOST_KEPT`].
        fraction: f32,
    },
}

/// The largest share of elements that [`Codec::TopK`] sends: with more, `f32` would be no longer.
pub const MOST_KEPT: f32 = 0.5;

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
    /// The residual is of another slice.
    #[error("a residual of {found} numbers for {elements} elements")]
    Residual {
        /// Elements to be written.
        elements: usize,
        /// Numbers in the residual.
        found: usize,
    },
    /// The codec drops so much that it is of no use without a residual.
    #[error("this codec takes error feedback")]
    NeedsFeedback,
    /// NaN or infinity, which this codec cannot write.
    #[error("element {0} is not finite")]
    NotFinite(usize),
    /// A block's scale that no encoder writes.
    #[error("the scale of block {0} is no finite number of 0 or more")]
    Scale(usize),
    /// A code that no encoder writes, or padding that is not zero.
    #[error("byte {0} holds a code without a meaning")]
    Code(usize),
    /// Indices that do not ascend, or lie beyond the slice.
    #[error("index {0} is out of order or out of range")]
    Index(usize),
    /// A parameter of the codec that it cannot work with.
    #[error("{0}")]
    Parameter(&'static str),
}

impl Codec {
    /// The number that stands for this codec on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Codec::F32 => 0,
            Codec::F16 => 1,
            Codec::Bf16 => 2,
            Codec::Int8 => 3,
            Codec::TwoBit { .. } => 4,
            Codec::OneBit { .. } => 5,
            Codec::TopK { .. } => 6,
        }
    }

    /// Its name in cluster files and for people.
    pub const fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::F16 => "f16",
            Codec::Bf16 => "bf16",
            Codec::Int8 => "int8",
            Codec::TwoBit { .. } => "2bit",
            Codec::OneBit { .. } => "1bit",
            Codec::TopK { .. } => "topk",
        }
    }

    /// Whether every bit comes back.
    pub const fn is_lossless(self) -> bool {
        matches!(self, Codec::F32)
    }

    /// Whether a sender that has a residual keeps in it what this codec drops.
    pub const fn feeds_back(self) -> bool {
        !matches!(self, Codec::F32 | Codec::F16 | Codec::Bf16)
    }

    /// Whether it makes sense without a residual: for values that are sent anew each time, such as parameters.
    pub const fn stands_alone(self) -> bool {
        matches!(self, Codec::F32 | Codec::F16 | Codec::Bf16 | Codec::Int8)
    }

    /// How many elements are encoded as one: what begins at a multiple of it within a slice can be encoded by itself.
    pub const fn block(self) -> usize {
        match self {
            Codec::Int8 => BLOCK,
            _ => 1,
        }
    }

    /// Whether its parameters are such that it works.
    ///
    /// # Errors
    /// [`CodecError::Parameter`] saying what is needed.
    pub fn validate(self) -> Result<(), CodecError> {
        let holds = match self {
            Codec::F32 | Codec::F16 | Codec::Bf16 | Codec::Int8 => return Ok(()),
            Codec::TwoBit { threshold } => threshold.is_normal() && threshold > 0.0,
            Codec::OneBit { threshold } => threshold.is_finite(),
            Codec::TopK { fraction } => fraction > 0.0 && fraction <= MOST_KEPT,
        };
        let needed = match self {
            Codec::OneBit { .. } => "the threshold of 1bit must be a finite number",
            Codec::TopK { .. } => "the fraction of topk must be above 0 and at most 0.5",
            _ => "the threshold of 2bit must be a number above 0",
        };
        if holds { Ok(()) } else { Err(CodecError::Parameter(needed)) }
    }

    /// Bytes that `elements` elements take. Saturates, so that no real buffer has the length of an absurd count.
    pub fn encoded_len(self, elements: usize) -> usize {
        match self {
            Codec::F32 => elements.saturating_mul(4),
            Codec::F16 | Codec::Bf16 => elements.saturating_mul(2),
            Codec::Int8 => elements.div_ceil(BLOCK).saturating_mul(4).saturating_add(elements),
            Codec::TwoBit { .. } => elements.div_ceil(two_bit::IN_WORD).saturating_mul(4),
            Codec::OneBit { .. } => elements.div_ceil(one_bit::IN_WORD).saturating_mul(4),
            Codec::TopK { fraction } => top_k::kept(elements, fraction).saturating_mul(8),
        }
    }

    /// Writes `values` into `bytes`, whose length is [`Codec::encoded_len`] of their number.
    ///
    /// # Errors
    /// [`CodecError::Length`] if it is not; [`CodecError::NeedsFeedback`]; [`CodecError::NotFinite`] under [`Codec::Int8`]. `bytes` are of
    /// no use then.
    pub fn encode(self, values: &[f32], bytes: &mut [u8]) -> Result<(), CodecError> {
        self.check(values.len(), bytes.len())?;
        match self {
            Codec::F32 => {
                let (words, _) = bytes.as_chunks_mut::<4>();
                for (word, value) in words.iter_mut().zip(values) {
                    *word = value.to_le_bytes();
                }
            }
            Codec::F16 => f16::encode(values, bytes),
            Codec::Bf16 => bf16::encode(values, bytes),
            Codec::Int8 => {
                finite(magnitude(values), values)?;
                int8::encode(values, bytes);
            }
            Codec::TwoBit { .. } | Codec::OneBit { .. } | Codec::TopK { .. } => {
                return Err(CodecError::NeedsFeedback);
            }
        }
        Ok(())
    }

    /// Writes the sum of `residual` and `values` into `bytes`, and leaves in `residual` what its reader will not know. A codec
    /// without feedback writes `values` alone and leaves `residual` as it is.
    ///
    /// # Errors
    /// As [`encode`](Codec::encode), and [`CodecError::Residual`] if there is not one number for each value; after
    /// [`CodecError::NotFinite`], which names an element of the sum, the residual is of no use.
    pub fn encode_feedback(
        self,
        values: &[f32],
        residual: &mut [f32],
        bytes: &mut [u8],
    ) -> Result<(), CodecError> {
        if !self.feeds_back() {
            return self.encode(values, bytes);
        }
        self.check(values.len(), bytes.len())?;
        if residual.len() != values.len() {
            return Err(CodecError::Residual { elements: values.len(), found: residual.len() });
        }
        let largest = accumulate(residual, values);
        finite(largest, residual)?;
        match self {
            Codec::Int8 => int8::encode_feedback(residual, bytes),
            Codec::TwoBit { threshold } => two_bit::encode(threshold, residual, bytes),
            Codec::OneBit { threshold } => one_bit::encode(threshold, residual, bytes),
            Codec::TopK { .. } => top_k::encode(residual, bytes),
            Codec::F32 | Codec::F16 | Codec::Bf16 => {}
        }
        Ok(())
    }

    /// Refuses bytes that no encoder writes for `elements` elements. Takes no memory, so that a receiver can ask before it sets aside
    /// what they would decode to.
    ///
    /// # Errors
    /// [`CodecError::Length`], and what else is wrong with them (invariant 5).
    pub fn check_bytes(self, bytes: &[u8], elements: usize) -> Result<(), CodecError> {
        self.check(elements, bytes.len())?;
        match self {
            Codec::F32 | Codec::F16 | Codec::Bf16 => Ok(()),
            Codec::Int8 => int8::check(bytes, elements),
            Codec::TwoBit { .. } => two_bit::check(bytes, elements),
            Codec::OneBit { .. } => one_bit::check(bytes, elements),
            Codec::TopK { .. } => top_k::check(bytes, elements),
        }
    }

    /// Reads `bytes`, whose length is [`Codec::encoded_len`] of the number of `values`, into `values`.
    ///
    /// # Errors
    /// [`CodecError::Length`] if it is not, and what else no encoder writes (invariant 5); nothing is written then.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) -> Result<(), CodecError> {
        self.check_bytes(bytes, values.len())?;
        self.read(bytes, values);
        Ok(())
    }

    /// Reads `bytes` into `elements` values of their own.
    ///
    /// # Errors
    /// As [`decode`](Codec::decode). Memory is taken only for bytes that an encoder may have written.
    pub fn decode_new(self, bytes: &[u8], elements: usize) -> Result<Vec<f32>, CodecError> {
        self.check_bytes(bytes, elements)?;
        let mut values = vec![0.0; elements];
        self.read(bytes, &mut values);
        Ok(values)
    }

    /// Reads bytes that have been checked.
    fn read(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Codec::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                for (value, word) in values.iter_mut().zip(words) {
                    *value = f32::from_le_bytes(*word);
                }
            }
            Codec::F16 => f16::decode(bytes, values),
            Codec::Bf16 => bf16::decode(bytes, values),
            Codec::Int8 => int8::decode(bytes, values),
            Codec::TwoBit { threshold } => two_bit::decode(threshold, bytes, values),
            Codec::OneBit { .. } => one_bit::decode(bytes, values),
            Codec::TopK { .. } => top_k::decode(bytes, values),
        }
    }

    fn check(self, elements: usize, found: usize) -> Result<(), CodecError> {
        let expected = self.encoded_len(elements);
        if found == expected { Ok(()) } else { Err(CodecError::Length { elements, expected, found }) }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything but a number's sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The magnitude of infinity; whatever is above it is NaN.
const INFINITY: u32 = 0x7f80_0000;

/// Whether all of `values`, the largest of whose magnitudes is `largest`, are finite.
fn finite(largest: u32, values: &[f32]) -> Result<(), CodecError> {
    if largest < INFINITY {
        return Ok(());
    }
    Err(CodecError::NotFinite(values.iter().position(|value| !value.is_finite()).unwrap_or(0)))
}

vectorized! {
    /// The largest magnitude, as bits: those of magnitudes are in the magnitudes' order, and an integer maximum has no order to keep.
    fn magnitude<'a>(values: &'a [f32]) -> u32 {
        values.iter().fold(0, |largest, value| largest.max(value.to_bits() & MAGNITUDE))
    }

    /// Adds `values` to `residual`; the largest magnitude of the sums, as bits.
    fn accumulate<'a>(residual: &'a mut [f32], values: &'a [f32]) -> u32 {
        let mut largest = 0;
        for (residual, value) in residual.iter_mut().zip(values) {
            *residual += *value;
            largest = largest.max(residual.to_bits() & MAGNITUDE);
        }
        largest
    }
}

#[cfg(test)]
mod tests;

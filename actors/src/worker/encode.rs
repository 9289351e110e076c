//! A worker's gradients in the job's push codec.
//!
//! 1. Under a lossy codec, what is encoded is one logical shard's gradient of one slice, so its bytes are a function of the shard and
//!    of what was encoded of it before, whoever computes it.
//! 2. Residuals belong to (logical shard, slice): see [`residuals`](super::residuals).
//! 3. Nothing that is not finite is encoded where the codec could not say it: the shard, the parameter and the element are named.
//! 4. A gradient that a device has encoded is cut into slices as it is: the bytes are those that would be made here.
//! 5. Memory: a copy of the parameters for each logical shard computed here, under a codec with feedback; none under others.

use bytes::Bytes;
use testudo_kernels::{Codec, CodecError, Distortion};

use crate::numbers::SlicePool;
use crate::placement::{Slice, SliceId};
use crate::witness::Choice;
use crate::worker::residuals::Residuals;

/// Elements of a slice whose error is measured.
const SAMPLE: usize = Distortion::SAMPLE;

/// What the scheduler witnesses, and its values in the sum under way.
pub(super) struct Witnessed {
    pub(super) choice: Choice,
    pub(super) values: Vec<f32>,
    /// Under a lossy codec: a tensor as servers will decode it.
    pub(super) decoded: Vec<f32>,
}

/// What encodes.
#[derive(Debug)]
pub(super) struct Encoder {
    codec: Codec,
    pool: SlicePool,
    /// What the servers have not been told.
    residuals: Residuals,
    meant: Vec<f32>,
    sent: Vec<f32>,
    distortion: Distortion,
}

impl Encoder {
    pub(super) fn new(codec: Codec, residuals: Residuals) -> Encoder {
        Encoder {
            codec,
            pool: SlicePool::default(),
            residuals,
            meant: Vec::new(),
            sent: Vec::new(),
            distortion: Distortion::default(),
        }
    }

    /// Hands over every slice of a parameter whose gradient, summed over the node that begins with `shard`, is `sum`, and keeps what
    /// is witnessed of it: what the servers will decode.
    ///
    /// # Errors
    /// The first element of the slice that cannot be encoded, and why.
    pub(super) fn hand_over(
        &mut self,
        slices: &[Slice],
        shard: u32,
        sum: &[f32],
        mut witnessed: Option<&mut Witnessed>,
        mut emit: impl FnMut(SliceId, Bytes),
    ) -> Result<(), (usize, CodecError)> {
        let lossless = self.codec.is_lossless();
        for slice in slices {
            let place = slice.first..slice.first + slice.elements;
            let Some(part) = sum.get(place.clone()) else { continue };
            let values = self.encode(shard, slice, part).map_err(|error| (slice.first, error))?;
            if let Some(Witnessed { decoded, .. }) = witnessed.as_deref_mut()
                && !lossless
            {
                decoded.resize(sum.len(), 0.0);
                let place = decoded.get_mut(place).unwrap_or_default();
                self.codec.decode(&values, place).map_err(|error| (slice.first, error))?;
            }
            emit(slice.id, values);
        }
        if let (Some(Witnessed { choice, values, decoded }), Some(slice)) = (witnessed, slices.first()) {
            choice.gather(slice.id.parameter as usize, if lossless { sum } else { decoded }, values);
        }
        Ok(())
    }

    /// The same of a gradient of one logical shard that was encoded whole, in a codec that takes each number by itself: `bytes`, of numbers
    /// that begin with `start`.
    ///
    /// # Errors
    /// As [`hand_over`](Encoder::hand_over).
    pub(super) fn hand_over_encoded(
        &mut self,
        slices: &[Slice],
        (bytes, start): (&[u8], &[f32]),
        mut witnessed: Option<&mut Witnessed>,
        mut emit: impl FnMut(SliceId, Bytes),
    ) -> Result<(), (usize, CodecError)> {
        let codec = self.codec;
        let place = |first: usize, elements: usize| {
            bytes.get(codec.encoded_len(first)..codec.encoded_len(first.saturating_add(elements)))
        };
        for slice in slices {
            let Some(part) = place(slice.first, slice.elements) else { continue };
            if let Some(Witnessed { decoded, .. }) = witnessed.as_deref_mut() {
                decoded.resize(decoded.len().max(slice.first + slice.elements), 0.0);
                let into = decoded.get_mut(slice.first..slice.first + slice.elements).unwrap_or_default();
                codec.decode(part, into).map_err(|error| (slice.first, error))?;
            }
            let copied: Result<Bytes, CodecError> = self.pool.fill(part.len(), |bytes| {
                bytes.copy_from_slice(part);
                Ok(())
            });
            emit(slice.id, copied.map_err(|error| (slice.first, error))?);
        }
        self.sent.resize(start.len(), 0.0);
        codec
            .decode(place(0, start.len()).unwrap_or_default(), &mut self.sent)
            .map_err(|error| (0, error))?;
        let lost = self.sent.iter().zip(start).map(|(sent, value)| value - sent);
        self.distortion.add(Distortion::new(lost, start.iter().copied()));
        if let (Some(Witnessed { choice, values, decoded }), Some(slice)) = (witnessed, slices.first()) {
            choice.gather(slice.id.parameter as usize, decoded, values);
        }
        Ok(())
    }

    /// `values` as they travel: of `slice`, summed over the logical shard `shard` under a lossy codec.
    fn encode(&mut self, shard: u32, slice: &Slice, values: &[f32]) -> Result<Bytes, CodecError> {
        let codec = self.codec;
        if codec.is_lossless() {
            return Ok(self.pool.copy(values));
        }
        let len = codec.encoded_len(values.len());
        let sample = values.len().min(SAMPLE);
        if !codec.feeds_back() {
            let bytes = self.pool.fill(len, |bytes| codec.encode(values, bytes))?;
            self.sent.resize(sample, 0.0);
            // These codecs take elements one by one, so the first bytes are the first elements'.
            let first = bytes.get(..codec.encoded_len(sample)).unwrap_or_default();
            codec.decode(first, &mut self.sent)?;
            let lost = self.sent.iter().zip(values).map(|(sent, value)| value - sent);
            self.distortion.add(Distortion::new(lost, values.iter().take(sample).copied()));
            return Ok(bytes);
        }
        let place = slice.first..slice.first + slice.elements;
        let residual = self.residuals.slice(shard, slice.id.parameter as usize, place);
        let residual = residual.ok_or(CodecError::Residual { elements: values.len(), found: 0 })?;
        self.meant.clear();
        self.meant.extend(residual.iter().zip(values).take(sample).map(|(residual, value)| residual + value));
        let bytes = self.pool.fill(len, |bytes| codec.encode_feedback(values, residual, bytes))?;
        let lost = residual.iter().take(sample).copied();
        self.distortion.add(Distortion::new(lost, self.meant.iter().copied()));
        Ok(bytes)
    }

    /// `shard` is about to be computed in `step`.
    pub(super) fn begin(&mut self, shard: u32, step: u64) {
        if self.codec.feeds_back() {
            self.residuals.begin(shard, step);
        }
    }

    /// What is kept back.
    pub(super) fn residuals(&mut self) -> &mut Residuals {
        &mut self.residuals
    }

    /// What was lost since the last call, as sampled.
    pub(super) fn take_distortion(&mut self) -> Distortion {
        std::mem::take(&mut self.distortion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(first: usize, elements: usize) -> Slice {
        Slice { id: SliceId { parameter: 1, index: 0 }, first, elements, server: 0 }
    }

    /// For two parameters, the second of which has `elements`.
    fn encoder(codec: Codec, elements: usize) -> Encoder {
        Encoder::new(codec, Residuals::new(vec![1, elements], 0, 0))
    }

    /// Invariants 1 and 2: what a shard's slice begins with is its own, and only that.
    #[test]
    fn a_residual_is_of_one_shard_and_slice() {
        let mut encoder = encoder(Codec::TwoBit { threshold: 1.0 }, 8);
        for shard in [0, 3, 7] {
            encoder.begin(shard, 0);
        }
        let mut emitted = |shard, first| encoder.encode(shard, &slice(first, 4), &[0.75; 4]).unwrap()[0];
        assert_eq!([emitted(0, 0), emitted(0, 4), emitted(3, 0)], [0; 3], "0.75 is below the threshold");
        assert_eq!([emitted(0, 0), emitted(3, 0)], [0xff; 2], "and twice that is not");
        assert_eq!([emitted(0, 0), emitted(0, 4), emitted(7, 0)], [0xff, 0xff, 0]);
    }

    #[test]
    fn what_is_lost_is_measured() {
        let values: Vec<f32> = (0..3000).map(|at| (at % 7) as f32 + 0.01).collect();
        let mut lost = |codec| {
            let mut encoder = encoder(codec, 3000);
            encoder.begin(0, 0);
            encoder.encode(0, &slice(0, 3000), &values).unwrap();
            let lost = encoder.take_distortion().relative();
            assert_eq!(encoder.take_distortion(), Distortion::default());
            lost
        };
        assert_eq!(lost(Codec::F32), 0.0);
        let halves = [Codec::F16, Codec::Bf16, Codec::Int8].map(&mut lost);
        assert!(
            halves[0] > 1e-5 && halves[0] < halves[1] && halves[1] < 5e-3 && halves[2] < 5e-3,
            "{halves:?}"
        );
        // The seventh part that is largest is sent whole.
        let sparse = lost(Codec::TopK { fraction: 1.0 / 7.0 });
        assert!((sparse - (55.0f64 / 91.0).sqrt()).abs() < 0.01, "{sparse}");
    }

    /// Invariant 4: slices that end anywhere, and what is witnessed of them.
    #[test]
    fn what_was_encoded_whole_is_cut_into_the_same_bytes() {
        let values: Vec<f32> = (0..3000).map(|at| (at % 11) as f32 / 7.0 - 0.5).collect();
        let slices = [(0, 1500), (1500, 7), (1507, 1493)].map(|(first, elements)| slice(first, elements));
        for codec in [Codec::F16, Codec::Bf16] {
            let mut whole = vec![0; codec.encoded_len(values.len())];
            codec.encode(&values, &mut whole).unwrap();
            let (mut here, mut there) = (encoder(codec, 3000), encoder(codec, 3000));
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            here.hand_over(&slices, 0, &values, None, |_, bytes| expected.push(bytes)).unwrap();
            let encoded = (&whole[..], &values[..1024]);
            there.hand_over_encoded(&slices, encoded, None, |_, bytes| found.push(bytes)).unwrap();
            assert_eq!(found, expected);
            assert_eq!(expected.len(), 3);
            let (here, there) = (here.take_distortion(), there.take_distortion());
            assert!(there.lost > 0.0 && there.lost < here.lost && there.meant > 0.0, "one sample for three");
        }
    }

    /// Invariant 3.
    #[test]
    fn what_is_no_number_is_named() {
        let mut encoder = encoder(Codec::Int8, 8);
        encoder.begin(0, 0);
        let error = encoder.encode(0, &slice(0, 4), &[0.0, 1.0, f32::NAN, 0.0]).unwrap_err();
        assert_eq!(error, CodecError::NotFinite(2));
    }
}

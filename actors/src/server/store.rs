//! The versions of the slices that a server keeps, shared with the tasks that answer its connections.
//!
//! 1. A version, once there, never changes: a pull of version s reads the same bits whatever is pushed for s + 1.
//! 2. The current version and the one before are kept. No more can be wanted: a slice reaches s + 2 only after every
//!    worker held every slice at s + 1.
//! 3. A connection's task answers with a version only once the core has heard of it: else a worker could push for the next step
//!    before the core knows that this one is over, and would be refused.
//! 4. A version is encoded in the job's pull codec once, when it is put here: every reader decodes the same bytes. The values themselves
//!    stay, for the next update, the hash, checkpoints and whoever asks for every bit.

use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;
use testudo_kernels::{Codec, CodecError, Distortion};

use crate::message::PullRefusal;
use crate::numbers;
use crate::placement::SliceId;

/// A slice's values at one version.
#[derive(Debug)]
struct Values {
    exact: Arc<Vec<f32>>,
    /// What is given out where that is not the values themselves.
    encoded: Option<Bytes>,
    /// The BLAKE3 hash of what is given out: hashed once, for every reader's MAC.
    hash: [u8; 32],
    /// What readers do not learn of it, as sampled.
    lost: Distortion,
}

#[derive(Debug)]
struct Versions {
    number: u64,
    /// The newest version that the core has heard of.
    told: u64,
    current: Values,
    previous: Option<Values>,
}

/// All slices of one server, by name.
#[derive(Debug, Default)]
pub struct Store {
    codec: Codec,
    slices: DashMap<SliceId, Versions>,
}

/// Why a version is not in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreMiss {
    /// It is the next version: whoever asks may wait for it.
    Next,
    /// It will not come.
    Refused(PullRefusal),
}

impl Store {
    /// A store that gives versions out in `codec`, which [stands alone](Codec::stands_alone).
    #[must_use]
    pub fn new(codec: Codec) -> Store {
        Store { codec, ..Store::default() }
    }

    /// What versions are given out in.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    fn encode(&self, values: Vec<f32>) -> Result<Values, CodecError> {
        let lost = Distortion::of_start(self.codec, &values)?;
        let encoded = if self.codec.is_lossless() {
            None
        } else {
            let mut bytes = vec![0; self.codec.encoded_len(values.len())];
            self.codec.encode(&values, &mut bytes)?;
            Some(Bytes::from(bytes))
        };
        let given = encoded.as_deref().unwrap_or_else(|| bytemuck::cast_slice(&values));
        let hash = *blake3::hash(given).as_bytes();
        Ok(Values { exact: Arc::new(values), encoded, hash, lost })
    }

    /// Puts the next version of `slice` in place; the one before the current is dropped and returned for reuse, unless
    /// someone still reads it.
    ///
    /// # Errors
    /// [`CodecError::NotFinite`] when the codec cannot say a value; nothing has changed then.
    pub fn put(&self, slice: SliceId, values: Vec<f32>) -> Result<Option<Vec<f32>>, CodecError> {
        let values = self.encode(values)?;
        Ok(match self.slices.entry(slice) {
            dashmap::Entry::Vacant(vacant) => {
                vacant.insert(Versions { number: 0, told: 0, current: values, previous: None });
                None
            }
            dashmap::Entry::Occupied(mut occupied) => {
                let versions = occupied.get_mut();
                let before = std::mem::replace(&mut versions.current, values);
                versions.number += 1;
                versions.previous.replace(before).and_then(|old| Arc::try_unwrap(old.exact).ok())
            }
        })
    }

    /// Puts the first version of `slice` in place, under the number `version`.
    ///
    /// # Errors
    /// As [`put`](Store::put).
    pub fn begin(&self, slice: SliceId, version: u64, values: Vec<f32>) -> Result<(), CodecError> {
        let current = self.encode(values)?;
        self.slices.insert(slice, Versions { number: version, told: version, current, previous: None });
        Ok(())
    }

    /// The core has heard of `version`, and connections' tasks may give it out.
    pub fn tell(&self, slice: SliceId, version: u64) {
        if let Some(mut versions) = self.slices.get_mut(&slice) {
            versions.told = versions.told.max(version);
        }
    }

    /// Whether a connection's task may answer with that version (invariant 3).
    #[must_use]
    pub fn may_answer(&self, slice: SliceId, version: u64) -> bool {
        let told = self.slices.get(&slice).is_some_and(|versions| version <= versions.told);
        told && self.read(slice, version).is_ok()
    }

    /// The current version of `slice` and its number.
    #[must_use]
    pub fn current(&self, slice: SliceId) -> Option<(u64, Arc<Vec<f32>>)> {
        self.slices.get(&slice).map(|v| (v.number, Arc::clone(&v.current.exact)))
    }

    /// What those who pull do not learn of the current versions, relative to them: the root mean square over the first
    /// [`Distortion::SAMPLE`] values of every slice. 0 under a lossless codec.
    #[must_use]
    pub fn pull_error(&self) -> f64 {
        let mut all = Distortion::default();
        for slice in &self.slices {
            all.add(slice.current.lost);
        }
        all.relative()
    }

    /// That version's bytes in the store's codec, shared with the store, and their hash.
    ///
    /// # Errors
    /// [`StoreMiss`] when it is not there.
    pub fn read(&self, slice: SliceId, version: u64) -> Result<(Bytes, [u8; 32]), StoreMiss> {
        self.find(slice, version, |values| {
            let bytes = values.encoded.clone().unwrap_or_else(|| numbers::share(&values.exact));
            (bytes, values.hash)
        })
    }

    /// That version's values themselves, shared with the store, and the hash of their bytes if that is known.
    ///
    /// # Errors
    /// [`StoreMiss`] when it is not there.
    pub fn read_exact(&self, slice: SliceId, version: u64) -> Result<(Bytes, Option<[u8; 32]>), StoreMiss> {
        self.find(slice, version, |values| {
            (numbers::share(&values.exact), values.encoded.is_none().then_some(values.hash))
        })
    }

    fn find<T>(&self, slice: SliceId, version: u64, of: impl Fn(&Values) -> T) -> Result<T, StoreMiss> {
        let Some(versions) = self.slices.get(&slice) else {
            return Err(StoreMiss::Refused(PullRefusal::UnknownSlice));
        };
        let number = versions.number;
        match &versions.previous {
            _ if version == number => Ok(of(&versions.current)),
            Some(previous) if version.checked_add(1) == Some(number) => Ok(of(previous)),
            _ if version < number => Err(StoreMiss::Refused(PullRefusal::Gone { version: number })),
            _ if version == number + 1 => Err(StoreMiss::Next),
            _ => Err(StoreMiss::Refused(PullRefusal::NotYetPossible { version: number })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 3.
    #[test]
    fn a_version_is_given_out_when_the_core_has_heard_of_it() {
        let (store, slice) = (Store::default(), SliceId { parameter: 0, index: 0 });
        assert!(!store.may_answer(slice, 0));
        store.put(slice, vec![0.0]).unwrap();
        assert!(store.may_answer(slice, 0));
        store.put(slice, vec![1.0]).unwrap();
        assert!(store.read(slice, 1).is_ok(), "it is there");
        assert_eq!([0, 1, 2].map(|version| store.may_answer(slice, version)), [true, false, false]);
        store.tell(slice, 1);
        assert_eq!([0, 1, 2].map(|version| store.may_answer(slice, version)), [true, true, false]);
        let resumed = SliceId { parameter: 0, index: 1 };
        store.begin(resumed, 40, vec![0.0]).unwrap();
        assert_eq!([39, 40, 41].map(|version| store.may_answer(resumed, version)), [false, true, false]);
    }

    /// Invariant 4.
    #[test]
    fn a_version_is_given_out_in_the_codec_and_kept_as_it_is() {
        let (store, slice) = (Store::new(Codec::Bf16), SliceId { parameter: 0, index: 0 });
        store.begin(slice, 3, vec![1.0, 0.1]).unwrap();
        let given = [0x80, 0x3f, 0xcd, 0x3d];
        let (bytes, hash) = store.read(slice, 3).unwrap();
        assert_eq!((&bytes[..], hash), (&given[..], *blake3::hash(&given).as_bytes()));
        let (exact, hash) = store.read_exact(slice, 3).unwrap();
        assert_eq!((&exact[..], hash), (bytemuck::cast_slice(&[1.0f32, 0.1]), None));
        assert_eq!(*store.current(slice).unwrap().1, [1.0, 0.1]);
        // Of 1.0 nothing is lost, of 0.1 what bfloat16 has not.
        let expected =
            f64::from(f32::from_bits(0x3dcd_0000) - 0.1) / (1.0 + f64::from(0.1f32).powi(2)).sqrt();
        assert!((store.pull_error() / expected - 1.0).abs() < 1e-9, "{} {expected}", store.pull_error());
        assert_eq!(store.read_exact(slice, 4), Err(StoreMiss::Next));
        // The newest version is what counts.
        store.put(slice, vec![1.0, 0.5]).unwrap();
        assert_eq!(store.pull_error(), 0.0);
        let int8 = Store::new(Codec::Int8);
        assert_eq!(int8.begin(slice, 0, vec![f32::NAN]), Err(CodecError::NotFinite(0)));
        assert!(int8.current(slice).is_none());
    }

    /// Invariants 1 and 2, and semantics.md, line 4.
    #[test]
    fn two_versions_are_kept_and_never_change() {
        let (store, slice) = (Store::default(), SliceId { parameter: 0, index: 0 });
        assert_eq!(store.read(slice, 0), Err(StoreMiss::Refused(PullRefusal::UnknownSlice)));
        store.put(slice, vec![0.0]).unwrap();
        assert_eq!(store.read(slice, 1), Err(StoreMiss::Next));
        assert_eq!(store.read(slice, 2), Err(StoreMiss::Refused(PullRefusal::NotYetPossible { version: 0 })));
        let (zero, hash) = store.read(slice, 0).unwrap();
        assert_eq!(hash, *blake3::hash(&[0; 4]).as_bytes());
        store.put(slice, vec![1.0]).unwrap();
        store.put(slice, vec![2.0]).unwrap();
        assert_eq!(zero[..], [0; 4], "a reader keeps its version");
        assert_eq!(store.read(slice, 0), Err(StoreMiss::Refused(PullRefusal::Gone { version: 2 })));
        assert_eq!(store.read(slice, 1).unwrap().0[..], 1f32.to_le_bytes());
        assert_eq!(store.read(slice, 2).unwrap().0[..], 2f32.to_le_bytes());
        assert_eq!(
            store.read(slice, u64::MAX),
            Err(StoreMiss::Refused(PullRefusal::NotYetPossible { version: 2 }))
        );
    }
}

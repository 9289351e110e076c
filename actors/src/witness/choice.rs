//! Which values are witnessed: blocks drawn by a key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use testudo_kernels::Codec;
use zeroize::Zeroize;

use crate::placement::{Slice, SliceId, SliceMap};

/// Values in a block at least: 256 bytes, so that chosen values are spread over every slice and yet move together.
pub const BLOCK: usize = 64;

/// Values that are chosen at most. They travel, once a step and node, with the messages that keep a run going, which must not
/// wait for them: 64 KiB.
pub const MOST: usize = 16 << 10;

/// Domain separation: what is drawn with a key means nothing elsewhere.
const CONTEXT: &[u8] = b"testudo 2026-11 witnessed blocks";

/// What decides the choice. Servers never see it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key([u8; 32]);

impl Key {
    /// A new one, from the operating system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn new() -> Result<Key, String> {
        let mut key = Key([0; 32]);
        aws_lc_rs::rand::fill(&mut key.0).map_err(|_| "the system gives no random bytes".to_owned())?;
        Ok(key)
    }

    /// One that is known: for tests and simulations.
    #[must_use]
    pub fn known(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The chosen values, in the model's order: the same for everybody who has the key and the job.
#[derive(Clone, PartialEq, Eq)]
pub struct Choice {
    /// Each within one slice, or a whole tensor where one is updated as a whole; named by its parameter and its first element there.
    blocks: Vec<Slice>,
    elements: usize,
}

impl std::fmt::Debug for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Choice").field("elements", &self.elements).finish_non_exhaustive()
    }
}

impl Choice {
    /// What `key` chooses among the values of `map`: each block with probability `rate`, and of every server at least one;
    /// [`MOST`] values at most, and none at a rate of 0. Where tensors are updated as a whole, no part of one can be computed by
    /// itself: whole tensors of at most [`MOST`] values are chosen then, and a server that has none of these is not witnessed.
    /// Blocks are whole blocks of `pull`, in which versions are given out, so that each can be encoded by itself.
    #[must_use]
    pub fn new(key: &Key, map: &SliceMap, rate: f64, pull: Codec) -> Choice {
        let mut draws = blake3::Hasher::new_keyed(&key.0).update(CONTEXT).finalize_xof();
        let mut draw = || {
            let mut bytes = [0; 8];
            draws.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let mut chosen: Vec<(u64, Slice)> = Vec::new();
        // By server: its lowest draw.
        let mut lowest: BTreeMap<u32, (u64, Slice)> = BTreeMap::new();
        let mut offer = |block: Slice| {
            let ticket = draw();
            if (ticket as f64) < rate * 2f64.powi(64) {
                chosen.push((ticket, block));
            }
            let least = lowest.entry(block.server).or_insert((ticket, block));
            if ticket < least.0 {
                *least = (ticket, block);
            }
        };
        if rate > 0.0 {
            candidates(map, pull.block()).for_each(&mut offer);
        }
        // Every server's lowest, then whichever was drawn lowest, as long as there is room.
        chosen.sort_by_key(|(ticket, block)| (*ticket, block.id));
        let (mut blocks, mut elements) = (Vec::new(), 0);
        for (_, block) in lowest.values().chain(&chosen) {
            if elements + block.elements <= MOST && !blocks.contains(block) {
                elements += block.elements;
                blocks.push(*block);
            }
        }
        blocks.sort_by_key(|block| block.id);
        Choice { blocks, elements }
    }

    /// The blocks, in the model's order.
    #[must_use]
    pub fn blocks(&self) -> &[Slice] {
        &self.blocks
    }

    /// Values in them all.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Values of `server` among them.
    #[must_use]
    pub fn of_server(&self, server: u32) -> usize {
        self.blocks.iter().filter(|b| b.server == server).map(|b| b.elements).sum()
    }

    /// Puts the chosen values of one parameter, whose values are `values`, at their places in `out`, which holds
    /// [`elements`](Choice::elements).
    pub fn gather(&self, parameter: usize, values: &[f32], out: &mut [f32]) {
        let mut at = 0;
        for block in &self.blocks {
            if block.id.parameter as usize == parameter
                && let Some(from) = values.get(block.first..block.first + block.elements)
                && let Some(to) = out.get_mut(at..at + block.elements)
            {
                to.copy_from_slice(from);
            }
            at += block.elements;
        }
    }
}

/// What can be chosen, in the model's order: blocks of slices, or tensors.
fn candidates(map: &SliceMap, encoded: usize) -> impl Iterator<Item = Slice> {
    let size = BLOCK.next_multiple_of(encoded);
    let blocks = move |slice: &Slice| {
        let Slice { id, first, elements, server } = *slice;
        (0..elements).step_by(size).filter_map(move |offset| {
            let first = first + offset;
            let id = SliceId { parameter: id.parameter, index: u32::try_from(first).ok()? };
            Some(Slice { id, first, elements: size.min(elements - offset), server })
        })
    };
    let tensor = move |slices: &[Slice]| {
        let elements = slices.iter().map(|slice| slice.elements).sum();
        // Encoded slice by slice as it would be in one.
        let (_, before) = slices.split_last()?;
        let aligned = before.iter().all(|slice| slice.elements.is_multiple_of(encoded));
        slices.first().filter(|_| aligned && elements <= MOST).map(|first| Slice { elements, ..*first })
    };
    let same = |a: &Slice, b: &Slice| a.id.parameter == b.id.parameter;
    let whole = map.slices().chunk_by(same).filter(|_| map.is_whole()).filter_map(tensor);
    whole.chain(map.slices().iter().filter(|_| !map.is_whole()).flat_map(blocks))
}

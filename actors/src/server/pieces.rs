//! Which versions of its slices a server hashes, and what it tells the scheduler of them. Pure.
//!
//! 1. Of every version that is due, each slice is hashed once: the first version, every `every`-th, the last planned one, and any
//!    that the scheduler orders.
//! 2. A version is told once every slice has reached it, in messages of at most [`MOST`] pieces.

use std::collections::{BTreeMap, VecDeque};

use crate::message::ParameterPieces;
use crate::params_hash::{Piece, Stream};
use crate::placement::Slice;
use crate::plan::HashPlan;

/// Pieces in a message: each has less than 2 KiB of edges and few hashes, so a message stays under 256 KiB.
const MOST: usize = 64;

/// The pieces of one server.
#[derive(Debug)]
pub(super) struct Pieces {
    stream: Stream,
    plan: HashPlan,
    slices: usize,
    open: BTreeMap<u64, Vec<Piece>>,
    ready: VecDeque<ParameterPieces>,
}

impl Pieces {
    /// For a server that keeps so many slices of `stream`.
    pub(super) fn new(stream: Stream, plan: HashPlan, slices: usize) -> Pieces {
        Pieces { stream, plan, slices, open: BTreeMap::new(), ready: VecDeque::new() }
    }

    /// Whether the slice that has just reached `version` is to be hashed.
    pub(super) fn wants(&self, version: u64) -> bool {
        self.plan.is_due(version)
    }

    /// Hashes a slice that is at `version`.
    pub(super) fn hash(&mut self, version: u64, slice: &Slice, values: &[f32]) {
        let Some(range) = self.stream.range(slice) else { return };
        let pieces = self.open.entry(version).or_default();
        pieces.push(range.piece(slice.id, bytemuck::cast_slice(values)));
        if pieces.len() < self.slices {
            return;
        }
        let mut pieces = self.open.remove(&version).unwrap_or_default().into_iter();
        while pieces.len() > 0 {
            // Each message in memory of its own: a part of what was split off keeps room for all of it.
            let pieces = pieces.by_ref().take(MOST).collect();
            self.ready.push_back(ParameterPieces { version, pieces });
        }
    }

    /// `version`, which no slice has gone beyond, is due too; says whether it was not before.
    pub(super) fn order(&mut self, version: u64) -> bool {
        let is_new = self.plan.is_wanted() && !self.plan.is_due(version);
        self.plan.order(version);
        is_new
    }

    /// The next message to the scheduler.
    pub(super) fn poll(&mut self) -> Option<ParameterPieces> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::SliceMap;

    /// Invariant 2, and no message holds the memory of another.
    #[test]
    fn many_pieces_go_in_messages_of_their_own_size() {
        const SLICES: usize = 10 * MOST + 1;
        let (map, stream) = (SliceMap::new(&[SLICES], 4, &[0]).unwrap(), Stream::new([("w", SLICES)]));
        let mut pieces = Pieces::new(stream, HashPlan::every(1), SLICES);
        map.slices().iter().for_each(|slice| pieces.hash(1, slice, &[0.5]));
        let told: Vec<ParameterPieces> = std::iter::from_fn(|| pieces.poll()).collect();
        assert_eq!(
            told.iter().map(|told| told.pieces.len()).collect::<Vec<_>>(),
            [vec![MOST; 10], vec![1]].concat()
        );
        assert!(told.iter().all(|told| told.pieces.capacity() <= 2 * MOST));
    }
}

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
        let mut pieces = self.open.remove(&version).unwrap_or_default();
        while !pieces.is_empty() {
            let rest = pieces.split_off(pieces.len().min(MOST));
            self.ready.push_back(ParameterPieces { version, pieces });
            pieces = rest;
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

//! The hash of the parameters at each version, out of what the servers tell of their slices. Pure.
//!
//! 1. A hash is formed of exactly one piece of every slice, each told by the server that keeps it.
//! 2. A server that tells what is not its, twice, of a version that is not due or that cannot be there yet, or in another form,
//!    is named.
//! 3. What is kept is bounded: once pieces of [`MAX_OPEN`] versions wait for the others', no further step begins
//!    ([`withheld`](Parameters::withheld)), and no piece is ahead of the steps.

use std::collections::BTreeMap;

use crate::job::JobSpec;
use crate::message::ParameterPieces;
use crate::params_hash::{Piece, Range, Stream, combine};
use crate::placement::SliceMap;
use crate::plan::HashPlan;

/// Versions that may wait for pieces before training does too. Servers hash as they go, so honest ones are a few apart; a
/// packet that was lost on the way of one may make it some dozens.
const MAX_OPEN: usize = 64;

/// What is known of the parameters' hashes.
#[derive(Debug)]
pub(super) struct Parameters {
    plan: HashPlan,
    map: Option<SliceMap>,
    stream: Stream,
    open: BTreeMap<u64, BTreeMap<u64, (Range, Piece)>>,
    newest: Option<(u64, [u8; 32])>,
}

impl Parameters {
    pub(super) fn new(job: &JobSpec) -> Parameters {
        // A job's model was checked with it; of one that cannot be placed, nothing is ever told.
        let parameters = job.model.parameters().unwrap_or_default();
        Parameters {
            plan: HashPlan::new(job),
            map: SliceMap::of(job, &parameters).ok(),
            stream: Stream::of(&parameters),
            open: BTreeMap::new(),
            newest: None,
        }
    }

    /// Servers are told to hash `version` too; says whether they have to be.
    pub(super) fn order(&mut self, version: u64) -> bool {
        let has_to = self.plan.is_wanted() && !self.plan.is_due(version);
        if has_to {
            self.plan.order(version);
        }
        has_to
    }

    /// Takes what `server` tells; no slice is further than version `ahead`. The answer is the hash of a version that is now
    /// whole.
    ///
    /// # Errors
    /// The text says what is wrong with it (invariant 2).
    pub(super) fn tell(
        &mut self,
        server: u32,
        told: ParameterPieces,
        ahead: u64,
    ) -> Result<Option<(u64, [u8; 32])>, String> {
        let version = told.version;
        let is_new = self.newest.is_none_or(|(newest, _)| version > newest);
        if !self.plan.is_due(version) || version > ahead || !is_new {
            return Err(format!("it hashes its parameters at step {version}, which is not due"));
        }
        let Some(map) = &self.map else { return Ok(None) };
        let open = self.open.entry(version).or_default();
        for piece in told.pieces {
            let id = piece.slice;
            let slice = map.slice(id).filter(|slice| slice.server == server);
            let range = slice.and_then(|slice| self.stream.range(slice));
            let Some(range) = range.filter(|range| range.admits(&piece)) else {
                return Err(format!(
                    "it hashes {id}, which is not its, or in another form than is asked for"
                ));
            };
            if open.insert(range.start(), (range, piece)).is_some() {
                return Err(format!("it hashes {id} at step {version} twice"));
            }
        }
        if open.len() < map.slices().len() {
            return Ok(None);
        }
        let hash = combine(open, &self.stream).map_err(|error| error.to_string())?;
        self.newest = Some((version, hash));
        self.open = self.open.split_off(&version.saturating_add(1));
        Ok(Some((version, hash)))
    }

    /// The hash at `version`, the last one of the run. `None` while it is owed; `Some(None)` if there is to be none.
    pub(super) fn last(&self, version: u64) -> Option<Option<[u8; 32]>> {
        match self.newest {
            _ if !self.plan.is_wanted() => Some(None),
            Some((newest, hash)) if newest == version => Some(Some(hash)),
            _ => None,
        }
    }

    /// The oldest version that is told in part, once so many are that training waits for it.
    pub(super) fn withheld(&self) -> Option<u64> {
        self.open.first_key_value().filter(|_| self.open.len() >= MAX_OPEN).map(|(version, _)| *version)
    }

    /// The servers that have not told all of `version`.
    pub(super) fn owing(&self, version: u64) -> Vec<u32> {
        let told = self.open.get(&version);
        let mut owing: Vec<u32> = Vec::new();
        for slice in self.map.iter().flat_map(|map| map.slices()) {
            let start = self.stream.range(slice).map(|range| range.start());
            let is_told = start.zip(told).is_some_and(|(start, told)| told.contains_key(&start));
            if !is_told && !owing.contains(&slice.server) {
                owing.push(slice.server);
            }
        }
        owing
    }
}

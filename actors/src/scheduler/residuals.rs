//! Whose residuals of error feedback are stored for one checkpoint. Pure.
//!
//! 1. They are whole when those of every logical shard are in one worker's part, and in no other's.
//! 2. A worker that is given more to store says so again; what it says twice changes nothing.

use std::collections::BTreeMap;

use crate::checkpoint::{PartReceipt, StoredResiduals};
use crate::message::PartOutcome;

/// What workers say of one version.
#[derive(Debug, Default)]
pub(super) struct Residuals(BTreeMap<u32, (Vec<u32>, PartOutcome)>);

impl Residuals {
    /// A worker says what has become of its part with these shards. Whether it had said nothing of it before.
    pub(super) fn add(&mut self, worker: u32, shards: Vec<u32>, outcome: PartOutcome) -> bool {
        let former = self.0.get(&worker);
        if former.is_some_and(|(held, former)| *held == shards && *former != PartOutcome::Skipped) {
            return false;
        }
        self.0.insert(worker, (shards, outcome)).is_none()
    }

    /// What a worker stored does not count.
    pub(super) fn forget(&mut self, worker: u32) {
        self.0.remove(&worker);
    }

    /// Whether those of `shards` logical shards are stored.
    pub(super) fn are_whole(&self, shards: u32) -> bool {
        let mut all: Vec<u32> = self.written().flat_map(|(_, shards, _)| shards.iter().copied()).collect();
        all.sort_unstable();
        all.into_iter().eq(0..shards)
    }

    /// Whether a worker has stored exactly these shards'.
    pub(super) fn has(&self, worker: u32, shards: &[u32]) -> bool {
        self.written().any(|(of, held, _)| of == worker && held == shards)
    }

    /// Whether a worker has said anything.
    pub(super) fn knows(&self, worker: u32) -> bool {
        self.0.contains_key(&worker)
    }

    /// Who could not store its part, and why.
    pub(super) fn failed(&self) -> Option<String> {
        self.0.iter().find_map(|(worker, (_, outcome))| match outcome {
            PartOutcome::Failed(why) => Some(format!("worker/{worker}: {why}")),
            _ => None,
        })
    }

    /// Who was still writing the one before.
    pub(super) fn skipped(&self) -> Option<String> {
        let skipped = self.0.iter().find(|(_, (_, outcome))| *outcome == PartOutcome::Skipped);
        skipped.map(|(worker, _)| format!("worker/{worker} was still writing the one before"))
    }

    /// The parts, for the manifest.
    pub(super) fn stored(&self) -> Vec<StoredResiduals> {
        let stored = |(worker, shards, receipt): (u32, &[u32], PartReceipt)| StoredResiduals {
            worker,
            shards: shards.to_vec(),
            receipt,
        };
        self.written().map(stored).collect()
    }

    fn written(&self) -> impl Iterator<Item = (u32, &[u32], PartReceipt)> {
        self.0.iter().filter_map(|(worker, (shards, outcome))| match outcome {
            PartOutcome::Written { bytes, blake3, .. } => {
                Some((*worker, shards.as_slice(), PartReceipt { bytes: *bytes, blake3: *blake3 }))
            }
            PartOutcome::Skipped | PartOutcome::Failed(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(byte: u8) -> PartOutcome {
        PartOutcome::Written { bytes: 9, blake3: [byte; 32], slices: 1 }
    }

    /// Invariants 1 and 2.
    #[test]
    fn every_shard_is_stored_once() {
        let mut all = Residuals::default();
        assert!(all.add(1, vec![1, 3], written(1)) && !all.are_whole(4));
        assert!(all.add(0, Vec::new(), PartOutcome::Skipped));
        assert!(all.skipped().is_some_and(|text| text.contains("worker/0")));
        assert!(!all.add(0, vec![0, 2], written(2)) && all.are_whole(4) && all.skipped().is_none());
        all.add(0, vec![0, 2], written(3));
        assert_eq!(all.stored()[0].receipt.blake3, [2; 32], "what is said twice changes nothing");
        all.add(2, vec![2], written(4));
        assert!(!all.are_whole(4), "a shard in two parts");
        all.forget(2);
        assert!(all.are_whole(4) && !all.are_whole(5) && !all.are_whole(3));
        assert!(all.has(1, &[1, 3]) && !all.has(1, &[1]) && !all.has(2, &[2]));
        all.forget(1);
        all.add(0, vec![0, 1, 2, 3], PartOutcome::Failed("no space".into()));
        assert_eq!((all.are_whole(4), all.failed().unwrap()), (false, "worker/0: no space".into()));
    }
}

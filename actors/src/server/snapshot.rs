//! Which versions of its slices a server keeps for a checkpoint. Pure.
//!
//! 1. A snapshot is every slice at one version: slices reach it one by one, each is kept as it does.
//! 2. One snapshot at a time is taken or being written, so the memory that checkpoints take is bounded. One that falls due
//!    meanwhile is skipped, and said to be: training never waits for a disk.
//! 3. What is ordered is not skipped: it is taken as soon as the one before is written.
//! 4. Of each version there is at most one snapshot, and for each that falls due exactly one event.

use std::collections::VecDeque;

use crate::checkpoint::{SliceSnapshot, Snapshot};

/// What has become of a version that fell due.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotEvent {
    /// It is whole, and to be written.
    Ready(Snapshot),
    /// The one before is still under way.
    Skipped(u64),
}

/// The snapshots of one server.
#[derive(Debug)]
pub struct Snapshots {
    server: u32,
    slices: usize,
    every: u64,
    taking: Option<Snapshot>,
    writing: Option<u64>,
    /// The newest version that was written, or tried to be.
    done: u64,
    /// The newest version that was skipped.
    skipped: u64,
    ordered: Option<u64>,
    events: VecDeque<SnapshotEvent>,
}

impl Snapshots {
    /// For server `server`, which keeps so many slices; one falls due every `every` steps after `first`, or never if 0.
    #[must_use]
    pub fn new(server: u32, slices: usize, every: u64, first: u64) -> Snapshots {
        Snapshots {
            server,
            slices,
            every,
            taking: None,
            writing: None,
            done: first,
            skipped: first,
            ordered: None,
            events: VecDeque::new(),
        }
    }

    /// Whether the slice that has just reached `version` is to be kept.
    pub fn wants(&mut self, version: u64) -> bool {
        if self.every == 0 || !version.is_multiple_of(self.every) || version <= self.done.max(self.skipped) {
            return false;
        }
        match &self.taking {
            Some(taking) if taking.version == version => true,
            None if self.writing.is_none() => {
                self.begin(version);
                true
            }
            _ => {
                self.skipped = version;
                self.events.push_back(SnapshotEvent::Skipped(version));
                false
            }
        }
    }

    /// Keeps a slice of the version that [`wants`](Snapshots::wants) or [`order`](Snapshots::order) asked for.
    pub fn keep(&mut self, slice: SliceSnapshot) {
        let Some(taking) = &mut self.taking else { return };
        taking.slices.push(slice);
        self.complete();
    }

    /// The scheduler wants `version`, at which every slice is now. Whether every slice is to be kept at once.
    pub fn order(&mut self, version: u64) -> bool {
        if self.done >= version || self.writing == Some(version) {
            return false;
        }
        // Every slice is at `version`, so nothing older is still being taken.
        if self.writing.is_some() {
            self.ordered = Some(version);
            return false;
        }
        self.begin(version);
        self.complete();
        true
    }

    /// The snapshot under way is written, or could not be. The version that waited for that, if one did: every slice of it
    /// is to be kept now.
    pub fn written(&mut self) -> Option<u64> {
        self.done = self.writing.take().unwrap_or(self.done);
        let ordered = self.ordered.take()?;
        self.order(ordered).then_some(ordered)
    }

    /// What has become of versions that fell due.
    pub fn poll(&mut self) -> Option<SnapshotEvent> {
        self.events.pop_front()
    }

    fn begin(&mut self, version: u64) {
        let slices = Vec::with_capacity(self.slices);
        self.taking = Some(Snapshot { version, server: self.server, slices });
    }

    fn complete(&mut self) {
        if let Some(mut whole) = self.taking.take_if(|taking| taking.slices.len() >= self.slices) {
            whole.slices.sort_by_key(|s| s.slice.id);
            self.writing = Some(whole.version);
            self.events.push_back(SnapshotEvent::Ready(whole));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::placement::{Slice, SliceId};

    fn slice(index: u32) -> SliceSnapshot {
        let id = SliceId { parameter: 0, index };
        let slice = Slice { id, first: index as usize, elements: 1, server: 0 };
        SliceSnapshot { slice, weights: Arc::new(vec![0.0]), state: Vec::new(), scalars: Vec::new() }
    }

    fn ready(snapshots: &mut Snapshots) -> Option<(u64, usize)> {
        match snapshots.poll() {
            Some(SnapshotEvent::Ready(snapshot)) => Some((snapshot.version, snapshot.slices.len())),
            Some(SnapshotEvent::Skipped(version)) => panic!("{version} is skipped"),
            None => None,
        }
    }

    /// Invariant 1.
    #[test]
    fn a_snapshot_is_every_slice_at_one_version() {
        let mut snapshots = Snapshots::new(0, 2, 3, 0);
        for version in 1..3 {
            assert!(!snapshots.wants(version));
        }
        assert!(snapshots.wants(3));
        snapshots.keep(slice(1));
        assert!(!snapshots.wants(4), "the slice goes on while the other is behind");
        assert_eq!(ready(&mut snapshots), None);
        assert!(snapshots.wants(3));
        snapshots.keep(slice(0));
        let Some(SnapshotEvent::Ready(whole)) = snapshots.poll() else { panic!("not whole") };
        assert_eq!((whole.version, whole.slices), (3, vec![slice(0), slice(1)]), "in the model's order");
    }

    /// Invariants 2 and 4.
    #[test]
    fn what_falls_due_while_one_is_written_is_skipped_once() {
        let mut snapshots = Snapshots::new(0, 2, 1, 0);
        for index in 0..2 {
            assert!(snapshots.wants(1));
            snapshots.keep(slice(index));
        }
        assert_eq!(ready(&mut snapshots), Some((1, 2)));
        assert!(!snapshots.wants(2));
        assert_eq!(snapshots.poll(), Some(SnapshotEvent::Skipped(2)));
        assert_eq!(snapshots.written(), None);
        assert!(!snapshots.wants(2), "one slice has passed it, so it can no longer be whole");
        assert_eq!(snapshots.poll(), None);
        assert!(snapshots.wants(3));
    }

    /// Invariant 3.
    #[test]
    fn an_order_waits_for_the_one_before_and_is_not_repeated() {
        let mut snapshots = Snapshots::new(0, 1, 2, 0);
        assert!(snapshots.wants(2));
        snapshots.keep(slice(0));
        assert_eq!(ready(&mut snapshots), Some((2, 1)));
        assert!(!snapshots.order(2), "it is being written");
        assert!(!snapshots.order(3), "it waits");
        assert_eq!(snapshots.written(), Some(3));
        snapshots.keep(slice(0));
        assert_eq!(ready(&mut snapshots), Some((3, 1)));
        assert_eq!(snapshots.written(), None);
        assert!(!snapshots.order(3), "it is there");
        assert!(!snapshots.wants(2), "and nothing older is taken");
    }

    #[test]
    fn a_server_without_slices_has_an_empty_part() {
        let mut snapshots = Snapshots::new(3, 0, 0, 0);
        assert!(snapshots.order(1));
        assert_eq!(ready(&mut snapshots), Some((1, 0)));
    }

    /// A resumed run does not write again what it began with.
    #[test]
    fn the_version_that_a_run_begins_with_is_there_already() {
        let mut snapshots = Snapshots::new(0, 1, 2, 4);
        assert!(!snapshots.wants(4) && !snapshots.order(4));
        assert!(snapshots.wants(6));
    }
}

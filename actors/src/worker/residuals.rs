//! What a worker's error feedback has kept back, and what of it goes into checkpoints. Pure.
//!
//! 1. Residuals belong to (logical shard, slice), and are those after one step. What is encoded in a step begins with those after
//!    the step before; a shard that was not computed here then begins with none.
//! 2. A snapshot is the residuals of every shard that was computed here in one step, all after that step: a copy, so that the next step
//!    may begin.
//! 3. One snapshot at a time is being written, so the memory that checkpoints take is bounded. One that falls due meanwhile is
//!    skipped, and said to be; one that is ordered waits until the writer is free.
//! 4. The same shards at the same version are written once: what may have been reported is not written over.
//! 5. Memory: a copy of the parameters for each logical shard that is computed here, and one more for each in a snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::checkpoint::{ResidualSnapshot, ShardResiduals};

/// What has become of a version that fell due.
#[derive(Clone, Debug, PartialEq)]
pub enum ResidualEvent {
    /// It is whole, and to be written.
    Ready(ResidualSnapshot),
    /// The one before is still being written.
    Skipped(u64),
}

/// One logical shard's.
#[derive(Debug, Default)]
struct Kept {
    /// The steps taken by then.
    version: u64,
    /// By parameter; empty where nothing was encoded yet.
    values: Vec<Vec<f32>>,
}

/// The residuals that one worker holds.
#[derive(Debug)]
pub(super) struct Residuals {
    /// Elements of each parameter, in the model's order.
    sizes: Vec<usize>,
    every: u64,
    shards: BTreeMap<u32, Kept>,
    writing: bool,
    /// The snapshot that was taken last: its version and its shards.
    taken: (u64, Vec<u32>),
    /// The newest version that was skipped.
    skipped: u64,
    ordered: Option<(u64, Vec<u32>)>,
    events: VecDeque<ResidualEvent>,
}

impl Residuals {
    /// For parameters of so many elements; a snapshot falls due every `every` steps after `first`, or never if 0.
    pub(super) fn new(sizes: Vec<usize>, every: u64, first: u64) -> Residuals {
        Residuals {
            sizes,
            every,
            shards: BTreeMap::new(),
            writing: false,
            taken: (first, Vec::new()),
            skipped: first,
            ordered: None,
            events: VecDeque::new(),
        }
    }

    /// `shard` is about to be computed in `step`.
    pub(super) fn begin(&mut self, shard: u32, step: u64) {
        let kept = self.shards.entry(shard).or_default();
        if kept.version != step {
            kept.values.iter_mut().for_each(|values| values.fill(0.0));
        }
        kept.version = step + 1;
    }

    /// The residuals of some elements of a parameter of `shard`, which is being computed.
    pub(super) fn slice(&mut self, shard: u32, parameter: usize, place: Range<usize>) -> Option<&mut [f32]> {
        let elements = *self.sizes.get(parameter)?;
        let values = &mut self.shards.get_mut(&shard)?.values;
        if values.len() <= parameter {
            values.resize_with(parameter + 1, Vec::new);
        }
        let whole = values.get_mut(parameter)?;
        whole.resize(elements, 0.0);
        whole.get_mut(place)
    }

    /// Begins with what a checkpoint of `version` holds. Whether that is of this model; nothing is taken otherwise.
    pub(super) fn restore(&mut self, version: u64, shards: Vec<ShardResiduals>) -> bool {
        let fits = |shard: &ShardResiduals| shard.values.iter().map(Vec::len).eq(self.sizes.iter().copied());
        if !shards.iter().all(fits) {
            return false;
        }
        let kept = |shard: ShardResiduals| (shard.shard, Kept { version, values: shard.values });
        self.shards.extend(shards.into_iter().map(kept));
        true
    }

    /// What is computed here of the step before `version` has been.
    pub(super) fn passed(&mut self, version: u64) {
        // What is not computed here any longer would be none if it ever were again.
        self.shards.retain(|_, kept| kept.version >= version);
        let due = self.every > 0 && version.is_multiple_of(self.every);
        if !due || version <= self.taken.0.max(self.skipped) || self.shards.is_empty() {
            return;
        }
        if self.writing {
            self.skipped = version;
            self.events.push_back(ResidualEvent::Skipped(version));
            return;
        }
        let shards = self.shards.iter().filter(|(_, kept)| kept.version == version).map(|(shard, _)| *shard);
        let shards = shards.collect();
        self.take(version, shards);
    }

    /// The scheduler wants these shards' of `version`, beyond which nothing was computed. A shard that was not computed here has none.
    pub(super) fn order(&mut self, version: u64, mut shards: Vec<u32>) {
        shards.sort_unstable();
        shards.dedup();
        match self.writing {
            _ if self.taken == (version, shards.clone()) => {}
            true => self.ordered = Some((version, shards)),
            false => self.take(version, shards),
        }
    }

    /// The snapshot that was handed out is written, or could not be.
    pub(super) fn written(&mut self) {
        self.writing = false;
        if let Some((version, shards)) = self.ordered.take() {
            self.order(version, shards);
        }
    }

    /// What has become of versions that fell due.
    pub(super) fn poll(&mut self) -> Option<ResidualEvent> {
        self.events.pop_front()
    }

    fn take(&mut self, version: u64, shards: Vec<u32>) {
        let kept = |shard: &u32| {
            let kept = self.shards.get(shard).filter(|kept| kept.version == version);
            let values = self.sizes.iter().enumerate().map(|(parameter, elements)| {
                let values = kept.and_then(|kept| kept.values.get(parameter)).filter(|v| !v.is_empty());
                values.cloned().unwrap_or_else(|| vec![0.0; *elements])
            });
            ShardResiduals { shard: *shard, values: values.collect() }
        };
        let snapshot = ResidualSnapshot { version, shards: shards.iter().map(kept).collect() };
        self.taken = (version, shards);
        self.writing = true;
        self.events.push_back(ResidualEvent::Ready(snapshot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes `shards` in `step`: each keeps back the step's number more.
    fn compute(residuals: &mut Residuals, step: u64, shards: &[u32]) {
        for shard in shards {
            residuals.begin(*shard, step);
            for value in residuals.slice(*shard, 0, 0..2).unwrap() {
                *value += step as f32;
            }
        }
        residuals.passed(step + 1);
    }

    fn ready(residuals: &mut Residuals) -> Option<(u64, Vec<(u32, f32)>)> {
        match residuals.poll()? {
            ResidualEvent::Ready(ResidualSnapshot { version, shards }) => {
                assert!(shards.iter().all(|shard| shard.values.len() == 2 && shard.values[1] == [0.0; 3]));
                Some((version, shards.iter().map(|shard| (shard.shard, shard.values[0][1])).collect()))
            }
            ResidualEvent::Skipped(version) => panic!("{version} is skipped"),
        }
    }

    fn new(every: u64) -> Residuals {
        Residuals::new(vec![2, 3], every, 0)
    }

    /// Invariant 1.
    #[test]
    fn what_was_computed_elsewhere_in_between_begins_with_none() {
        let mut residuals = new(0);
        for step in 1..3 {
            compute(&mut residuals, step, &[4, 7]);
        }
        compute(&mut residuals, 3, &[4]);
        compute(&mut residuals, 4, &[4, 7]);
        let mut found = |shard| residuals.slice(shard, 0, 0..1).unwrap()[0];
        assert_eq!([found(4), found(7)], [10.0, 4.0]);
        assert!(residuals.slice(9, 0, 0..1).is_none() && residuals.slice(4, 2, 0..0).is_none());
        assert!(residuals.slice(4, 0, 1..3).is_none(), "beyond the parameter");
    }

    /// Invariants 2 and 3.
    #[test]
    fn a_snapshot_is_of_one_step_and_what_falls_due_meanwhile_is_skipped() {
        let mut residuals = new(2);
        compute(&mut residuals, 0, &[1, 0]);
        assert_eq!(ready(&mut residuals), None);
        compute(&mut residuals, 1, &[1, 0]);
        // An heir of a shard computes it for the same step after that, which no part says again.
        compute(&mut residuals, 1, &[5]);
        compute(&mut residuals, 2, &[0, 1, 5]);
        assert_eq!(ready(&mut residuals), Some((2, vec![(0, 1.0), (1, 1.0)])), "as they were then");
        compute(&mut residuals, 3, &[0, 1, 5]);
        assert_eq!(residuals.poll(), Some(ResidualEvent::Skipped(4)));
        residuals.written();
        assert_eq!(residuals.poll(), None);
        compute(&mut residuals, 4, &[0, 1, 5]);
        compute(&mut residuals, 5, &[0, 1, 5]);
        assert_eq!(ready(&mut residuals), Some((6, vec![(0, 15.0), (1, 15.0), (5, 15.0)])));
    }

    /// Invariants 3 and 4.
    #[test]
    fn an_order_waits_is_not_repeated_and_may_be_for_more() {
        let mut residuals = new(2);
        compute(&mut residuals, 1, &[0]);
        assert_eq!(ready(&mut residuals), Some((2, vec![(0, 1.0)])));
        residuals.order(2, vec![0]);
        residuals.order(2, vec![3, 0, 3]);
        assert_eq!(ready(&mut residuals), None, "the former is being written");
        residuals.written();
        assert_eq!(ready(&mut residuals), Some((2, vec![(0, 1.0), (3, 0.0)])), "shard 3 has none here");
        residuals.order(2, vec![0, 3]);
        residuals.written();
        residuals.order(2, vec![3, 0]);
        assert_eq!(ready(&mut residuals), None, "it is there");
    }

    #[test]
    fn a_resumed_worker_goes_on_with_what_it_had() {
        let kept = |values: Vec<Vec<f32>>| vec![ShardResiduals { shard: 3, values }];
        let mut residuals = Residuals::new(vec![2, 3], 2, 6);
        assert!(
            !residuals.restore(6, kept(vec![vec![1.0; 2]]))
                && !residuals.restore(6, kept(vec![vec![1.0; 3]; 2]))
        );
        assert!(residuals.restore(6, kept(vec![vec![1.0; 2], vec![0.0; 3]])));
        residuals.order(6, vec![3]);
        assert_eq!(ready(&mut residuals), Some((6, vec![(3, 1.0)])));
        residuals.written();
        compute(&mut residuals, 6, &[3]);
        assert_eq!(residuals.slice(3, 0, 0..1).unwrap(), [7.0]);
    }
}

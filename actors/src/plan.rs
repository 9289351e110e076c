//! Which examples belong to which logical shard of which step: a function of the signed job alone.
//!
//! An epoch visits every example once, in the order of `permutation(seed, epoch)`; its last batch may be smaller.
//! A batch of `b` examples is cut into `logical_shards` runs whose lengths differ by at most one.

use std::ops::Range;

use crate::job::JobSpec;

/// The course of training, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    examples: u64,
    batch: u64,
    shards: u64,
    steps_per_epoch: u64,
    planned: u64,
    limit: u64,
}

/// The versions whose parameters are hashed for the audit log: the first, every so many steps, the last planned one, and one
/// that is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashPlan {
    every: u64,
    first: u64,
    last: u64,
    ordered: Option<u64>,
}

impl HashPlan {
    /// As `job` says.
    #[must_use]
    pub fn new(job: &JobSpec) -> HashPlan {
        let last = Plan::new(job).steps();
        HashPlan { every: job.audit.hash_every, first: job.first_step(), last, ordered: None }
    }

    /// Every so many versions, of which there is no end.
    #[cfg(test)]
    pub(crate) fn every(every: u64) -> HashPlan {
        HashPlan { every, first: 0, last: u64::MAX, ordered: None }
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.every > 0
    }

    /// Whether `version` is one.
    #[must_use]
    pub fn is_due(&self, version: u64) -> bool {
        let one_of_few = [Some(self.first), Some(self.last), self.ordered].contains(&Some(version));
        self.is_wanted() && version >= self.first && (one_of_few || version.is_multiple_of(self.every))
    }

    /// `version` is one too.
    pub fn order(&mut self, version: u64) {
        self.ordered = Some(version);
    }
}

/// One step's place in the course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The step's first position in the epoch's shuffled order.
    pub first: u64,
    /// The number of examples of the global batch.
    pub examples: u64,
}

impl Plan {
    /// The course that `job` sets. The job has been validated, so no number here is zero.
    #[must_use]
    pub fn new(job: &JobSpec) -> Plan {
        let batch = u64::from(job.batch_size).max(1);
        let examples = job.data.train_examples.max(1);
        let steps_per_epoch = examples.div_ceil(batch);
        let planned = steps_per_epoch.saturating_mul(job.epochs);
        let limit = job.max_steps.map_or(planned, |m| m.min(planned));
        Plan {
            examples,
            batch,
            shards: u64::from(job.logical_shards).max(1),
            steps_per_epoch,
            planned,
            limit,
        }
    }

    /// Steps that will be run: the planned ones, or `max_steps` if that is less.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.limit
    }

    /// Steps that the epochs make up; what schedules read (`max_steps` does not change it).
    #[must_use]
    pub fn planned_steps(&self) -> u64 {
        self.planned
    }

    /// Steps in one epoch.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Where step `step` (from 0) stands.
    #[must_use]
    pub fn step(&self, step: u64) -> StepPlan {
        let first = (step % self.steps_per_epoch) * self.batch;
        StepPlan {
            epoch: step / self.steps_per_epoch,
            first,
            examples: self.batch.min(self.examples - first),
        }
    }

    /// The positions, in the epoch's shuffled order, of logical shard `shard` of `step`; may be empty.
    #[must_use]
    pub fn shard(&self, step: &StepPlan, shard: u32) -> Range<usize> {
        let cut = |i: u64| (step.first + i * step.examples / self.shards) as usize;
        cut(u64::from(shard))..cut(u64::from(shard) + 1)
    }

    /// The most examples that one logical shard can hold.
    #[must_use]
    pub fn largest_shard(&self) -> usize {
        self.batch.min(self.examples).div_ceil(self.shards) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_visits_every_example_once(examples in 1u64..500, batch in 1u64..90, shards in 1u64..9, epochs in 1u64..3) {
            let steps_per_epoch = examples.div_ceil(batch);
            let plan = Plan { examples, batch, shards, steps_per_epoch, planned: steps_per_epoch * epochs, limit: u64::MAX };
            for epoch in 0..epochs {
                let mut seen = Vec::new();
                for step in epoch * steps_per_epoch..(epoch + 1) * steps_per_epoch {
                    let place = plan.step(step);
                    prop_assert_eq!(place.epoch, epoch);
                    let mut count = 0;
                    for shard in 0..shards as u32 {
                        let range = plan.shard(&place, shard);
                        prop_assert!(range.len() <= plan.largest_shard());
                        count += range.len();
                        seen.extend(range);
                    }
                    prop_assert_eq!(count as u64, place.examples);
                }
                prop_assert_eq!(seen, (0..examples as usize).collect::<Vec<_>>());
            }
        }
    }
}

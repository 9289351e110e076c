//! One slice's votes under a robust rule: kept apart until every worker's is there.
//!
//! 1. A vote is the mean over its shard's targets (examples, for a classifier), so that votes compare whatever a batch's remainder is.
//! 2. The result is a function of the votes, not of their order ([`testudo_kernels::robust`]).
//! 3. Memory: at most one vote for each logical shard, which the core sees to; none is set aside before it comes.

use testudo_kernels::robust::{Aggregation, AggregationError, divide};

/// The votes on one slice in one step, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Votes {
    cast: Vec<Vec<f32>>,
}

impl Votes {
    /// Adds the vote of a shard of `targets` targets, whose gradients sum to `sum`. Returns the rule's result when it is the
    /// last of `of`.
    pub(super) fn cast(
        &mut self,
        rule: Aggregation,
        of: u32,
        targets: usize,
        mut sum: Vec<f32>,
    ) -> Result<Option<Vec<f32>>, AggregationError> {
        divide(&mut sum, targets.max(1) as f32);
        self.cast.push(sum);
        if self.cast.len() < of as usize {
            return Ok(None);
        }
        rule.aggregate(std::mem::take(&mut self.cast)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2: three shards of different sizes, in any order, and again in the next step.
    #[test]
    fn votes_are_means_and_count_when_all_are_there() {
        let rule = Aggregation::Median { hostile: 1 };
        let shards = [(2, vec![2.0, -8.0]), (4, vec![12.0, 4.0]), (1, vec![2.0, 1e30])];
        let mut votes = Votes::default();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut results = order.map(|shard| {
                let (examples, sum) = shards[shard].clone();
                votes.cast(rule, 3, examples, sum).unwrap()
            });
            assert_eq!((results[0].take(), results[1].take()), (None, None));
            assert_eq!(results[2].take(), Some(vec![2.0, 1.0]));
        }
    }
}

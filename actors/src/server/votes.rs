//! One slice's votes under a robust rule: kept apart until every worker's is there.
//!
//! 1. A vote is the mean over its shard's examples, so that votes compare whatever a batch's remainder is.
//! 2. What comes of them is a function of the votes and their shards, not of the order in which they came: the votes in the order of shards.
//! 3. Memory: at most one vote for each logical shard, which the core sees to; none is set aside before it comes.

use testudo_kernels::robust::divide;

/// The votes on one slice in one step, as far as they have come.
#[derive(Debug, Default)]
pub(super) struct Votes {
    cast: Vec<(u32, Vec<f32>)>,
}

impl Votes {
    /// Adds the vote of `shard`, which has `examples` examples, whose gradients sum to `sum`. Returns all votes (invariant 2) when it is
    /// the last of `of`.
    pub(super) fn cast(
        &mut self,
        of: u32,
        shard: u32,
        examples: usize,
        mut sum: Vec<f32>,
    ) -> Option<Vec<Vec<f32>>> {
        divide(&mut sum, examples.max(1) as f32);
        self.cast.push((shard, sum));
        if self.cast.len() < of as usize {
            return None;
        }
        self.cast.sort_by_key(|(shard, _)| *shard);
        Some(std::mem::take(&mut self.cast).into_iter().map(|(_, vote)| vote).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2: three shards of different sizes, in any order, and again in the next step.
    #[test]
    fn votes_are_means_and_count_when_all_are_there() {
        let expected = vec![vec![1.0, -4.0], vec![3.0, 1.0], vec![2.0, 1e30]];
        let shards = [(2, vec![2.0, -8.0]), (4, vec![12.0, 4.0]), (1, vec![2.0, 1e30])];
        let mut votes = Votes::default();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let mut results = order.map(|shard| {
                let (examples, sum) = shards[shard].clone();
                votes.cast(3, shard as u32, examples, sum)
            });
            assert_eq!((results[0].take(), results[1].take()), (None, None));
            assert_eq!(results[2].take(), Some(expected.clone()));
        }
    }
}

//! Aggregation that a minority cannot bend: coordinate-wise rules over one vote per worker.
//!
//! Under the mean, one worker that lies by enough decides the sum. These rules sort the votes of each coordinate and drop as many
//! at either end as there may be liars:
//!
//! | rule | what is left of n votes | for f liars | source |
//! |---|---|---|---|
//! | [`Aggregation::Median`] | the middle one; the mean of the middle two if n is even | n >= 2f + 1 | Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 1 |
//! | [`Aggregation::TrimmedMean`] | the mean of all but the f lowest and the f highest | n >= 2f + 1 | the same, definition 2 |
//!
//! What they guarantee for any votes of the liars, huge ones included: each coordinate of the result lies between the least and
//! the greatest of honest workers' votes there (invariant 3). How good a gradient that is depends on how much honest votes
//! differ among themselves: the paper bounds the error for independent, identically distributed examples. Liars who stay
//! within the honest spread (Baruch, Baruch, Goldberg: "A Little Is Enough", NeurIPS 2019) shift it within that spread.
//!
//! Invariants:
//! 1. **The result is a function of the multiset of votes**: neither their order nor slicing nor SIMD width is in it. Votes
//!    are sorted as integers, in IEEE 754's total order, so that minus zero and subnormals have a place too. What is left is summed
//!    in ascending order in `f64`, divided by its number, and rounded to `f32` once.
//! 2. Finite votes give finite results: no sum overflows. (NaN and infinity are refused before they come here.)
//! 3. With at most f liars among n >= 2f + 1 votes, every coordinate lies within the honest votes of that coordinate.
//!
//! Cost for n votes of d numbers: n d numbers of memory, and a sorting network of about n (log n)^2 / 4 comparisons for
//! each number, less what the dropped ends save; the mean takes n d additions, and memory for the log n partial sums.

mod network;

use serde::{Deserialize, Serialize};

use crate::simd::vectorized;
use network::{LANES, Row};

/// The most votes that are aggregated: the network and its block of rows stay in the second-level cache.
pub const MOST_VOTES: u32 = 1 << 10;

/// How the contributions to a step become one gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregation {
    /// The sum over all examples, divided by their number: every contribution counts by its examples.
    #[default]
    Mean,
    /// The coordinate-wise median of one vote per worker.
    Median {
        /// Votes that may be lies.
        hostile: u32,
    },
    /// The coordinate-wise mean without the lowest and the highest votes.
    TrimmedMean {
        /// Votes that may be lies: as many are dropped at either end.
        hostile: u32,
    },
}

/// Why votes could not be aggregated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregationError {
    /// The mean is a sum, and no vote.
    #[error("the mean takes sums, not votes")]
    NoRule,
    /// Too few votes for so many liars.
    #[error("{votes} votes cannot outvote {hostile}: more than twice as many are needed")]
    TooFew {
        /// How many votes there are.
        votes: usize,
        /// How many may be lies.
        hostile: u32,
    },
    /// More votes than [`MOST_VOTES`].
    #[error("{0} votes, {MOST_VOTES} at most")]
    TooMany(usize),
    /// Votes of different lengths.
    #[error("votes of {expected} and of {found} numbers")]
    Length {
        /// The first vote's length.
        expected: usize,
        /// Another's.
        found: usize,
    },
}

impl Aggregation {
    /// How many votes may be lies; `None` for the mean, which has no votes.
    #[must_use]
    pub fn hostile(&self) -> Option<u32> {
        match *self {
            Aggregation::Mean => None,
            Aggregation::Median { hostile } | Aggregation::TrimmedMean { hostile } => Some(hostile),
        }
    }

    /// How many lies among `votes` cannot move the result beyond the honest votes (invariant 3): what is dropped at either end.
    #[must_use]
    pub fn bears(&self, votes: u32) -> u32 {
        match *self {
            Aggregation::Mean => 0,
            Aggregation::Median { .. } => votes.saturating_sub(1) / 2,
            Aggregation::TrimmedMean { hostile } => hostile,
        }
    }

    /// Whether `votes` are enough, and not too many.
    ///
    /// # Errors
    /// [`AggregationError::TooFew`] unless `votes` is more than twice the liars; [`AggregationError::TooMany`];
    /// [`AggregationError::NoRule`] for the mean.
    pub fn check(&self, votes: usize) -> Result<(), AggregationError> {
        let hostile = self.hostile().ok_or(AggregationError::NoRule)?;
        if votes as u64 <= 2 * u64::from(hostile) {
            return Err(AggregationError::TooFew { votes, hostile });
        }
        if votes > MOST_VOTES as usize {
            return Err(AggregationError::TooMany(votes));
        }
        Ok(())
    }

    /// The rule's result for `votes`, each finite and of the same length, in the memory of the first of them.
    ///
    /// # Errors
    /// What [`check`](Aggregation::check) says, and [`AggregationError::Length`].
    pub fn aggregate(&self, mut votes: Vec<Vec<f32>>) -> Result<Vec<f32>, AggregationError> {
        self.check(votes.len())?;
        let expected = votes.first().map_or(0, Vec::len);
        if let Some(other) = votes.iter().find(|vote| vote.len() != expected) {
            return Err(AggregationError::Length { expected, found: other.len() });
        }
        let trim = self.bears(votes.len() as u32) as usize;
        let network = network::sorting(votes.len(), trim..votes.len() - trim);
        let mut rows = vec![[0; LANES]; votes.len()];
        trimmed_mean(&network, trim, &mut rows, &mut votes);
        Ok(votes.swap_remove(0))
    }
}

impl std::fmt::Display for Aggregation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Aggregation::Mean => "mean",
            Aggregation::Median { .. } => "median",
            Aggregation::TrimmedMean { .. } => "trimmed_mean",
        })
    }
}

vectorized! {
    /// Makes a vote of a sum over `examples` examples: their mean.
    pub fn divide<'a>(sum: &'a mut [f32], examples: f32) {
        for value in sum {
            *value /= examples;
        }
    }

    /// Replaces the first vote by the mean of what is left when `trim` votes are dropped at either end, block by block.
    fn trimmed_mean<'a>(network: &'a [(usize, usize)], trim: usize, rows: &'a mut [Row], votes: &'a mut [Vec<f32>]) {
        let elements = votes.first().map_or(0, Vec::len);
        for first in (0..elements).step_by(LANES) {
            let block = first..elements.min(first + LANES);
            for (row, vote) in rows.iter_mut().zip(votes.iter()) {
                network::load(vote.get(block.clone()).unwrap_or(&[]), row);
            }
            network::sort(network, rows);
            let kept = rows.get(trim..rows.len() - trim).unwrap_or(&[]);
            if let Some(out) = votes.first_mut().and_then(|vote| vote.get_mut(block)) {
                network::mean(kept, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Aggregation that a minority cannot bend: rules over one vote per worker.
//!
//! Under the mean, one worker that lies by enough decides the sum. Coordinate-wise rules sort the votes of each coordinate and
//! drop as many at either end as there may be liars; the others weigh whole gradients, by their norms and distances:
//!
//! | rule | what is left of n votes | for f liars | source |
//! |---|---|---|---|
//! | [`Aggregation::Median`] | the middle one; the mean of the middle two if n is even | n >= 2f + 1 | Yin, Chen, Ramchandran, Bartlett: "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 1 |
//! | [`Aggregation::TrimmedMean`] | the mean of all but the f lowest and the f highest | n >= 2f + 1 | the same, definition 2 |
//! | [`Aggregation::Krum`] | the vote nearest its n - f - 2 nearest others | n >= 2f + 3 | `robust/krum.rs` |
//! | [`Aggregation::MultiKrum`] | the mean of the n - f - 2 best such votes | n >= 2f + 3 | the same |
//! | [`Aggregation::GeometricMedian`] | the point whose distances to all votes sum to the least | n >= 2f + 1 | `robust/geometric.rs` |
//! | [`Aggregation::CentredClipping`] | the aggregate before, moved by the mean of differences from it, each shortened to a radius | n >= 2f + 1 | `robust/clipping.rs` |
//! | [`Aggregation::NormBound`] | the mean of votes, each shortened to a bound | n >= 2f + 1 | the same |
//!
//! What the coordinate-wise rules guarantee for any votes of the liars, huge ones included: each coordinate of the result lies
//! between the least and the greatest of honest workers' votes there (invariant 3). How good a gradient that is depends on how
//! much honest votes differ among themselves: the paper bounds the error for independent, identically distributed examples. Liars
//! who stay within the honest spread (Baruch, Baruch, Goldberg: "A Little Is Enough", NeurIPS 2019) shift it within that spread.
//! What the others guarantee is in `docs/aggregation.md`.
//!
//! Invariants of the coordinate-wise rules; those of the others are in [`weigh`]:
//! 1. **The result is a function of the multiset of votes**: neither their order nor slicing nor SIMD width is in it. Votes
//!    are sorted as integers, in IEEE 754's total order, so that minus zero and subnormals have a place too. What is left is summed
//!    in ascending order in `f64`, divided by its number, and rounded to `f32` once.
//! 2. Finite votes give finite results: no sum overflows. (NaN and infinity are refused before they come here.)
//! 3. With at most f liars among n >= 2f + 1 votes, every coordinate lies within the honest votes of that coordinate.
//!
//! Cost for n votes of d numbers: n d numbers of memory, and a sorting network of about n (log n)^2 / 4 comparisons for
//! each number, less what the dropped ends save; the mean takes n d additions, and memory for the log n partial sums. Rules that
//! weigh whole gradients take n^2 / 2 multiplications in `f64` for each number ([`products`]), n alone for the norm bound, and n
//! more to combine.

mod clipping;
mod exact;
mod geometric;
mod krum;
mod network;
mod own;
pub mod products;
pub mod weigh;

use serde::{Deserialize, Serialize};

use crate::simd::vectorized;
pub(crate) use network::sorting;
use network::{LANES, Row};
pub use own::{Aggregator, OwnName, OwnNameError, OwnRule, RuleInput, VotesOnSlice};

/// The most votes that are aggregated: the network and its block of rows stay in the second-level cache.
pub const MOST_VOTES: u32 = 1 << 10;

/// The most votes that are weighed as whole gradients: their products take 661 KB on the wire from each server in each step.
pub const MOST_WEIGHED: u32 = 128;

/// How the contributions to a step become one gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// The vote that has the nearest neighbours.
    Krum {
        /// Votes that may be lies.
        hostile: u32,
    },
    /// The mean of the votes that have the nearest neighbours.
    MultiKrum {
        /// Votes that may be lies.
        hostile: u32,
    },
    /// The point whose distances to all votes sum to the least.
    GeometricMedian {
        /// Votes that may be lies.
        hostile: u32,
    },
    /// The aggregate before, moved by votes' differences from it.
    CentredClipping {
        /// Votes that may be lies.
        hostile: u32,
        /// How far a vote may move the result, times the number of votes; above 0.
        radius: f64,
    },
    /// The mean of shortened votes.
    NormBound {
        /// Votes that may be lies.
        hostile: u32,
        /// The norm to which votes are shortened; above 0.
        bound: f64,
    },
    /// A rule that the programs of the job's servers bring along.
    Own(OwnRule),
}

/// Why votes could not be aggregated.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum AggregationError {
    /// The mean is a sum, and no vote.
    #[error("the mean takes sums, not votes")]
    NoRule,
    /// The rule weighs whole gradients, not slices by themselves.
    #[error("the rule weighs whole gradients: see `robust::weigh`")]
    Whole,
    /// The rule is a program's own.
    #[error("the rule {0} is not built in: only a program that brings it along can apply it")]
    NotBuiltIn(OwnName),
    /// A radius or bound that shortens nothing, or everything to nothing.
    #[error("a radius or bound of {0}: a number above 0 is needed")]
    Bound(f64),
    /// Other vectors than are weighed.
    #[error("{found} vectors instead of {expected}")]
    Vectors {
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Too few votes for so many liars.
    #[error("{votes} votes cannot outvote {hostile}: {least} are needed")]
    TooFew {
        /// How many votes there are.
        votes: usize,
        /// How many may be lies.
        hostile: u32,
        /// How many it takes.
        least: u64,
    },
    /// More votes than [`MOST_VOTES`] or [`MOST_WEIGHED`].
    #[error("{votes} votes, {most} at most")]
    TooMany {
        /// How many votes there are.
        votes: usize,
        /// How many there may be.
        most: u32,
    },
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
            Aggregation::Own(OwnRule { input, hostile, .. }) => {
                (input == RuleInput::Votes).then_some(hostile)
            }
            Aggregation::Median { hostile }
            | Aggregation::TrimmedMean { hostile }
            | Aggregation::Krum { hostile }
            | Aggregation::MultiKrum { hostile }
            | Aggregation::GeometricMedian { hostile }
            | Aggregation::CentredClipping { hostile, .. }
            | Aggregation::NormBound { hostile, .. } => Some(hostile),
        }
    }

    /// How many lies among `votes` cannot take the result out of what the rule guarantees.
    #[must_use]
    pub fn bears(&self, votes: u32) -> u32 {
        match *self {
            Aggregation::Mean => 0,
            Aggregation::Median { .. } | Aggregation::GeometricMedian { .. } => votes.saturating_sub(1) / 2,
            Aggregation::Own(OwnRule { hostile, .. })
            | Aggregation::TrimmedMean { hostile }
            | Aggregation::Krum { hostile }
            | Aggregation::MultiKrum { hostile }
            | Aggregation::CentredClipping { hostile, .. }
            | Aggregation::NormBound { hostile, .. } => hostile,
        }
    }

    /// Whether it weighs whole gradients: see [`weigh::Weighing`].
    #[must_use]
    pub fn weighs(&self) -> bool {
        !matches!(
            self,
            Aggregation::Mean
                | Aggregation::Median { .. }
                | Aggregation::TrimmedMean { .. }
                | Aggregation::Own(_)
        )
    }

    /// The rule that a program has to bring along, if it is one.
    #[must_use]
    pub fn own(&self) -> Option<OwnRule> {
        match *self {
            Aggregation::Own(rule) => Some(rule),
            _ => None,
        }
    }

    /// Whether what it makes of a step is a mean, and not a sum over examples.
    #[must_use]
    pub fn gives_means(&self) -> bool {
        self.own().is_some() || self.hostile().is_some()
    }

    /// The rule for a parameter: this one, if it has a gradient. Running means of statistics have none, and are no part of what a rule
    /// weighs as a whole, nor of what a program's own rule knows of, so there they are voted on by the median, or summed.
    #[must_use]
    pub fn of_parameter(&self, has_gradient: bool) -> Aggregation {
        match (has_gradient, self.hostile()) {
            (false, Some(hostile)) if self.weighs() || self.own().is_some() => {
                Aggregation::Median { hostile }
            }
            (false, None) => Aggregation::Mean,
            _ => *self,
        }
    }

    /// Whether a step's aggregate takes part in the next one's: it is then part of the training's state.
    #[must_use]
    pub fn keeps_aggregate(&self) -> bool {
        matches!(self, Aggregation::CentredClipping { .. })
    }

    /// The fewest votes that outvote `hostile` lies.
    #[must_use]
    pub fn least_votes(&self) -> u64 {
        let twice = 2 * u64::from(self.hostile().unwrap_or(0));
        match self {
            Aggregation::Krum { .. } | Aggregation::MultiKrum { .. } => twice + 3,
            _ => twice + 1,
        }
    }

    /// The most votes that it takes.
    #[must_use]
    pub fn most_votes(&self) -> u32 {
        if self.weighs() { MOST_WEIGHED } else { MOST_VOTES }
    }

    /// Whether `votes` are enough, and not too many, and the rule's numbers are some that work.
    ///
    /// # Errors
    /// [`AggregationError::TooFew`] unless `votes` outvote the liars; [`AggregationError::TooMany`];
    /// [`AggregationError::Bound`]; [`AggregationError::NoRule`] for the mean.
    pub fn check(&self, votes: usize) -> Result<(), AggregationError> {
        let hostile = self.hostile().ok_or(AggregationError::NoRule)?;
        let (least, most) = (self.least_votes(), self.most_votes());
        if (votes as u64) < least {
            return Err(AggregationError::TooFew { votes, hostile, least });
        }
        if votes > most as usize {
            return Err(AggregationError::TooMany { votes, most });
        }
        match *self {
            Aggregation::CentredClipping { radius: bound, .. } | Aggregation::NormBound { bound, .. }
                if !(bound.is_finite() && bound > 0.0) =>
            {
                Err(AggregationError::Bound(bound))
            }
            _ => Ok(()),
        }
    }

    /// The rule's result for `votes`, each finite and of the same length, in the memory of the first of them.
    ///
    /// # Errors
    /// What [`check`](Aggregation::check) says, [`AggregationError::Length`], and [`AggregationError::Whole`] for a rule that
    /// weighs whole gradients.
    pub fn aggregate(&self, mut votes: Vec<Vec<f32>>) -> Result<Vec<f32>, AggregationError> {
        self.check(votes.len())?;
        if self.weighs() {
            return Err(AggregationError::Whole);
        }
        if let Some(rule) = self.own() {
            return Err(AggregationError::NotBuiltIn(rule.name));
        }
        let expected = votes.first().map_or(0, Vec::len);
        if let Some(other) = votes.iter().find(|vote| vote.len() != expected) {
            return Err(AggregationError::Length { expected, found: other.len() });
        }
        let trim = self.bears(votes.len() as u32) as usize;
        let network = sorting(votes.len(), trim..votes.len() - trim);
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
            Aggregation::Krum { .. } => "krum",
            Aggregation::MultiKrum { .. } => "multi_krum",
            Aggregation::GeometricMedian { .. } => "geometric_median",
            Aggregation::CentredClipping { .. } => "centred_clipping",
            Aggregation::NormBound { .. } => "norm_bound",
            Aggregation::Own(OwnRule { name, .. }) => name.as_str(),
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

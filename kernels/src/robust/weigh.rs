//! Weighing whole gradients: from inner products over all slices to one weight for each vote.
//!
//! 1. **Weights are a function of the inner products alone** ([`Products`]), in `f64`, in a written order of operations.
//!    Every server gets the same, and combines its slices by them, so the whole gradient is combined as one.
//! 2. **Any products give weights that are safe to use**: from 0 to 1, in sum 1 at most (to rounding). So a combination of finite
//!    votes is finite, whatever a server says of its part.
//! 3. A combination adds weight times value, as `f64`, in the order of vectors, leaves out weights of 0, and is rounded to `f32`
//!    once. The factor of clipping is multiplied by, as `f64`, and rounded once more.

use super::clipping::{centred_clipping, norm_bound, shorten};
use super::geometric::geometric_median;
use super::krum::{krum, multi_krum};
use super::products::Products;
use super::{Aggregation, AggregationError};
use crate::simd::vectorized;

/// What must be known of whole gradients before any slice can be updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighing {
    rule: Aggregation,
    clip_norm: Option<f64>,
    votes: usize,
}

/// What [`Weighing::weigh`] finds.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// One for each vector, in their order.
    pub of: Vec<f64>,
    /// What the combination is multiplied by: 1, or less where its norm is clipped.
    pub clip: f64,
}

impl Weighing {
    /// Under that rule of so many votes, with gradients clipped to a norm of `clip_norm`; `None` if slices need not wait for
    /// each other.
    #[must_use]
    pub fn new(rule: Aggregation, clip_norm: Option<f64>, votes: usize) -> Option<Weighing> {
        let votes = if rule.weighs() { votes } else { 1 };
        (rule.weighs() || clip_norm.is_some()).then_some(Weighing { rule, clip_norm, votes })
    }

    /// How many vectors are combined: the votes, and the previous aggregate behind them where the rule keeps that; or the one
    /// gradient that a rule which looks at each number by itself, or the mean, has made.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.votes + usize::from(self.rule.keeps_aggregate())
    }

    /// No products yet, of as many vectors as are combined.
    #[must_use]
    pub fn products(&self) -> Products {
        let norms_alone = matches!(self.rule, Aggregation::NormBound { .. }) && self.clip_norm.is_none();
        Products::new(self.vectors(), norms_alone)
    }

    /// The weights, from products over all slices. Vectors are `divisor` times the gradients that they stand for: a sum's
    /// examples, or 1 for votes.
    ///
    /// # Errors
    /// [`AggregationError::Vectors`] when these are products of others.
    pub fn weigh(&self, products: &Products, divisor: f64) -> Result<Weights, AggregationError> {
        if products.size() != self.products().size() || products.vectors() != self.vectors() {
            return Err(AggregationError::Vectors { expected: self.vectors(), found: products.vectors() });
        }
        let (gram, votes) = (products.gram(), self.votes);
        let of = match self.rule {
            Aggregation::Mean
            | Aggregation::Median { .. }
            | Aggregation::TrimmedMean { .. }
            | Aggregation::Own(_) => vec![1.0],
            Aggregation::Krum { hostile } => krum(&gram, votes, hostile),
            Aggregation::MultiKrum { hostile } => multi_krum(&gram, votes, hostile),
            Aggregation::GeometricMedian { .. } => geometric_median(&gram, votes),
            Aggregation::CentredClipping { radius, .. } => centred_clipping(&gram, votes, radius),
            Aggregation::NormBound { bound, .. } => norm_bound(&gram, votes, bound),
        };
        let clip = match self.clip_norm {
            Some(most) => shorten(gram.norm_squared(&of).sqrt() / divisor, most),
            None => 1.0,
        };
        Ok(Weights { of, clip })
    }
}

impl Weights {
    /// Combines slices of the vectors, in the memory of the first. Not clipped yet: see [`clip`].
    ///
    /// # Errors
    /// [`AggregationError::Vectors`] when there are not as many as weights, [`AggregationError::Length`] when their lengths
    /// differ.
    pub fn combine(&self, mut vectors: Vec<Vec<f32>>) -> Result<Vec<f32>, AggregationError> {
        if vectors.is_empty() || vectors.len() != self.of.len() {
            return Err(AggregationError::Vectors { expected: self.of.len(), found: vectors.len() });
        }
        let expected = vectors.first().map_or(0, Vec::len);
        if let Some(other) = vectors.iter().find(|vector| vector.len() != expected) {
            return Err(AggregationError::Length { expected, found: other.len() });
        }
        if self.of != [1.0] {
            combine(&self.of, &mut vectors);
        }
        Ok(vectors.swap_remove(0))
    }

    /// Whether they are what invariant 2 says.
    #[must_use]
    pub fn are_safe(&self) -> bool {
        let fair = |weight: &f64| (0.0..=1.0).contains(weight);
        self.of.iter().all(fair) && fair(&self.clip) && self.of.iter().sum::<f64>() <= 1.0 + 1e-9
    }
}

/// Multiplies by the factor of clipping.
pub fn clip(gradient: &mut [f32], factor: f64) {
    if factor != 1.0 {
        scale(gradient, factor);
    }
}

/// Elements that are combined together: their sums stay in the first-level cache.
const BLOCK: usize = 512;

vectorized! {
    fn scale<'a>(values: &'a mut [f32], factor: f64) {
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    }

    /// Replaces the first vector by the combination, block by block.
    fn combine<'a>(weights: &'a [f64], vectors: &'a mut [Vec<f32>]) {
        let elements = vectors.first().map_or(0, Vec::len);
        for first in (0..elements).step_by(BLOCK) {
            let block = first..elements.min(first + BLOCK);
            let mut sums = [0.0; BLOCK];
            for (weight, vector) in weights.iter().zip(vectors.iter()) {
                if *weight == 0.0 {
                    continue;
                }
                for (sum, value) in sums.iter_mut().zip(vector.get(block.clone()).unwrap_or(&[])) {
                    *sum += weight * f64::from(*value);
                }
            }
            if let Some(out) = vectors.first_mut().and_then(|vector| vector.get_mut(block)) {
                for (out, sum) in out.iter_mut().zip(&sums) {
                    *out = *sum as f32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

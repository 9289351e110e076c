//! Rules that shorten votes: none can move the result further than its share of a radius.

use super::products::Gram;

/// Centred clipping: Karimireddy, He, Jaggi: "Learning from History for Byzantine Robust Optimization", ICML 2021, section 4.1.
/// One round, as there: the previous aggregate, which is the last vector, moves by the mean of votes' differences from it, each
/// shortened to `radius`. The weights are the votes', then the previous aggregate's.
pub(super) fn centred_clipping(gram: &Gram, votes: usize, radius: f64) -> Vec<f64> {
    let distance = |vote| gram.distance_squared(vote, votes).sqrt();
    let mut weights: Vec<f64> =
        (0..votes).map(|vote| shorten(distance(vote), radius) / votes as f64).collect();
    let moved: f64 = weights.iter().sum();
    // Rounding may have made the sum a little more than 1.
    weights.push((1.0 - moved).max(0.0));
    weights
}

/// A bound on norms: Sun, Kairouz, Suresh, McMahan: "Can You Really Backdoor Federated Learning?", 2019 (arXiv:1911.07963),
/// section 3, "norm thresholding of updates". The mean of the votes, each shortened to `bound`.
pub(super) fn norm_bound(gram: &Gram, votes: usize, bound: f64) -> Vec<f64> {
    (0..votes).map(|vote| shorten(gram.norm(vote), bound) / votes as f64).collect()
}

/// The factor that brings a vector of that norm to `most` at most: from 0 to 1.
pub(super) fn shorten(norm: f64, most: f64) -> f64 {
    if norm > most { most / norm } else { 1.0 }
}

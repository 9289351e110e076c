//! The geometric median: the point whose distances to all votes sum to the least.
//!
//! Pillutla, Kakade, Harchaoui: "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 70, 2022,
//! algorithm 2, the smoothed Weiszfeld algorithm: each round weighs each vote by one over its distance from the last round's
//! point, distances below a floor counting as the floor. The sum of distances falls in every round.
//!
//! The paper begins at the mean and takes a floor in the gradient's units. Here both follow from the votes, so that no
//! minority can set them, however far away it votes: the first point is the mean of the majority that lies within the
//! least distance of one of its votes, and the floor is 2^-20 of that distance. That majority holds an honest vote and so lies
//! no wider than honest votes do.

use super::products::Gram;

/// Rounds at most. Each brings the point nearer by a factor, about the share of far votes over that of near ones.
const ROUNDS: usize = 200;
/// A round that changes no weight by more than this is the last one.
const STILL: f64 = 1e-12;
/// The floor, of the least distance within which a majority lies.
const FLOOR: f64 = 1.0 / (1 << 20) as f64;

/// The weights of `votes` votes: none negative, and they sum to 1.
pub(super) fn geometric_median(gram: &Gram, votes: usize) -> Vec<f64> {
    let (mut weights, radius) = closest_majority(gram, votes);
    let floor = radius * FLOOR;
    if floor <= 0.0 {
        // A majority votes the same, and that is the median.
        return weights;
    }
    for _ in 0..ROUNDS {
        let (products, norm) = (gram.with(&weights), gram.norm_squared(&weights));
        let distance = |(vote, product): (usize, &f64)| {
            (norm - 2.0 * product + gram.product(vote, vote)).max(0.0).sqrt()
        };
        let mut next: Vec<f64> =
            products.iter().enumerate().map(|at| floor / distance(at).max(floor)).collect();
        let sum: f64 = next.iter().sum();
        next.iter_mut().for_each(|weight| *weight /= sum);
        let moved = weights.iter().zip(&next).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        weights = next;
        if moved <= STILL {
            break;
        }
    }
    weights
}

/// Equal weights for the majority that lies within the least distance of one of its votes, and that distance.
fn closest_majority(gram: &Gram, votes: usize) -> (Vec<f64>, f64) {
    let majority = votes / 2 + 1;
    let around = |centre: usize| {
        let mut others: Vec<(f64, usize)> = (0..votes)
            .map(|vote| (if vote == centre { 0.0 } else { gram.distance_squared(centre, vote) }, vote))
            .collect();
        others.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        others.truncate(majority);
        others
    };
    let radius = |near: &[(f64, usize)]| near.last().map_or(0.0, |(distance, _)| *distance);
    let nearest = (0..votes).map(around).min_by(|a, b| radius(a).total_cmp(&radius(b))).unwrap_or_default();
    let mut weights = vec![0.0; votes];
    for (_, vote) in &nearest {
        if let Some(weight) = weights.get_mut(*vote) {
            *weight = 1.0 / nearest.len() as f64;
        }
    }
    (weights, radius(&nearest).sqrt())
}

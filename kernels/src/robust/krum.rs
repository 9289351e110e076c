//! Krum and multi-Krum: the votes that have the nearest neighbours.
//!
//! Blanchard, El Mhamdi, Guerraoui, Stainer: "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS
//! 2017, section 4 and section 4.1's m-Krum. Of n votes, f of them lies, a vote's score is the sum of its squared distances
//! to its n - f - 2 nearest others; the least score wins, of equal ones the first vote's.

use super::products::Gram;

/// The votes that are nearest others are counted to, and that multi-Krum keeps: n - f - 2, the most for which it is proven
/// (Damaskinos, El Mhamdi, Guerraoui, Guirguis, Rouault: "AggregaThor", MLSys 2019).
fn neighbours(votes: usize, hostile: u32) -> usize {
    votes.saturating_sub(hostile as usize).saturating_sub(2).max(1)
}

/// The weights of `votes` votes: of the best one.
pub(super) fn krum(gram: &Gram, votes: usize, hostile: u32) -> Vec<f64> {
    keep(&scores(gram, votes, hostile), 1)
}

/// The weights of `votes` votes: of the best n - f - 2, equally.
pub(super) fn multi_krum(gram: &Gram, votes: usize, hostile: u32) -> Vec<f64> {
    keep(&scores(gram, votes, hostile), neighbours(votes, hostile))
}

fn scores(gram: &Gram, votes: usize, hostile: u32) -> Vec<f64> {
    let score = |i| {
        let mut distances: Vec<f64> =
            (0..votes).filter(|j| *j != i).map(|j| gram.distance_squared(i, j)).collect();
        distances.sort_by(f64::total_cmp);
        distances.iter().take(neighbours(votes, hostile)).sum()
    };
    (0..votes).map(score).collect()
}

/// Equal weights for the `kept` least scores, in the order of votes where scores are equal.
fn keep(scores: &[f64], kept: usize) -> Vec<f64> {
    let mut order: Vec<(usize, &f64)> = scores.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut weights = vec![0.0; scores.len()];
    for (vote, _) in order.into_iter().take(kept) {
        if let Some(weight) = weights.get_mut(vote) {
            *weight = 1.0 / kept as f64;
        }
    }
    weights
}

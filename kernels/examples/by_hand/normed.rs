//! Updates whose steps follow from norms of whole tensors: LAMB (You et al., 2020) and LARS (You, Gitman and Ginsburg, 2017).
//!
//! Squares are summed as f64 in the order of programs' sums: element `i` in lane `i mod 16` of its block of 4,096, lanes pairwise, blocks one
//! after another.

use super::vectorized;

const LANES: usize = 16;
const BLOCK: usize = 4096;

/// What all elements of a step share.
#[derive(Clone, Copy)]
pub(super) struct Lamb {
    pub(super) beta1: [f32; 2],
    pub(super) beta2: [f32; 2],
    /// What the averages are divided by.
    pub(super) corrections: [f32; 2],
    pub(super) epsilon: f32,
    pub(super) decay: f32,
    pub(super) divisor: f32,
}

vectorized! {
    /// `m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g²; r = m / c1 / (√(v / c2) + epsilon) + decay w`, which is left in
    /// `out`; adds up the squares of `w` and `r`.
    pub(super) fn lamb_direction<'a>(
        scalars: Lamb,
        weights: &'a [f32],
        out: &'a mut [f32],
        mean: &'a mut [f32],
        variance: &'a mut [f32],
        sums: &'a mut [f64; 2],
    ) {
        let Lamb { beta1, beta2, corrections, epsilon, decay, divisor } = scalars;
        let states = mean.chunks_mut(BLOCK).zip(variance.chunks_mut(BLOCK));
        for ((out, weights), (mean, variance)) in out.chunks_mut(BLOCK).zip(weights.chunks(BLOCK)).zip(states) {
            for (((out, &weight), mean), variance) in out.iter_mut().zip(weights).zip(mean).zip(variance) {
                let gradient = *out / divisor;
                *mean = gradient.mul_add(beta1[1], *mean * beta1[0]);
                *variance = (gradient * beta2[1]).mul_add(gradient, *variance * beta2[0]);
                let quotient = *mean / corrections[0] / ((*variance / corrections[1]).sqrt() + epsilon);
                *out = weight.mul_add(decay, quotient);
            }
            sums[0] += squares(weights, |weight| weight);
            sums[1] += squares(out, |direction| direction);
        }
    }

    /// `w - rate r`, of `r` in `out`.
    pub(super) fn lamb_step<'a>(minus_rate: f32, weights: &'a [f32], out: &'a mut [f32]) {
        for (out, &weight) in out.iter_mut().zip(weights) {
            *out = out.mul_add(minus_rate, weight);
        }
    }

    /// Adds up the squares of the weights and of the gradient.
    pub(super) fn lars_norms<'a>(divisor: f32, weights: &'a [f32], out: &'a [f32], sums: &'a mut [f64; 2]) {
        for (out, weights) in out.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
            sums[0] += squares(weights, |weight| weight);
            sums[1] += squares(out, |sum| sum / divisor);
        }
    }

    /// `v = momentum v + rate (g + decay w); w - v`: the momentum, the rate, the decay, the divisor.
    pub(super) fn lars_step<'a>(scalars: [f32; 4], weights: &'a [f32], out: &'a mut [f32], velocity: &'a mut [f32]) {
        let [momentum, rate, decay, divisor] = scalars;
        for ((out, &weight), velocity) in out.iter_mut().zip(weights).zip(velocity) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *velocity = gradient.mul_add(rate, *velocity * momentum);
            *out = weight - *velocity;
        }
    }
}

/// The sum of the squares of what a block's elements are made into.
#[inline(always)]
fn squares(block: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (chunks, rest) = block.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(f(*value));
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        let value = f64::from(f(*value));
        *lane += value * value;
    }
    for distance in [8, 4, 2, 1] {
        for lane in 0..distance {
            lanes[lane] += lanes[lane + distance];
        }
    }
    lanes[0]
}

//! Lion (Chen et al., 2023): steps of one size, by the sign of a mean.

use super::{sign, vectorized};

/// What all elements of a step share.
#[derive(Clone, Copy)]
pub(super) struct Scalars {
    pub(super) minus_rate: f32,
    pub(super) decay: f32,
    /// Each with what it leaves of one.
    pub(super) beta1: [f32; 2],
    pub(super) beta2: [f32; 2],
    pub(super) divisor: f32,
}

vectorized! {
    /// `w - lr (sign(beta1 m + (1 - beta1) g) + decay w); m = beta2 m + (1 - beta2) g`.
    pub(super) fn update<'a>(scalars: Scalars, weights: &'a [f32], out: &'a mut [f32], mean: &'a mut [f32]) {
        let Scalars { minus_rate, decay, beta1, beta2, divisor } = scalars;
        for ((out, &weight), mean) in out.iter_mut().zip(weights).zip(mean) {
            let gradient = *out / divisor;
            let direction = sign(gradient.mul_add(beta1[1], *mean * beta1[0]));
            *mean = gradient.mul_add(beta2[1], *mean * beta2[0]);
            *out = weight.mul_add(decay, direction).mul_add(minus_rate, weight);
        }
    }
}

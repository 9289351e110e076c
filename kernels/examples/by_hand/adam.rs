//! Adam and AdamW, as PyTorch's `torch.optim.Adam` and `AdamW` compute them: means of the gradient and of its square,
//! both corrected for their start at zero.

use super::{power, vectorized};

/// What all elements of a step share.
#[derive(Clone, Copy)]
pub(super) struct Scalars {
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    epsilon: f32,
    divisor: f32,
    /// The learning rate over the mean's correction, negative.
    minus_rate: f32,
    /// The root of the variance's correction.
    correction: f32,
}

impl Scalars {
    pub(super) fn new(
        step: u64,
        learning_rate: f64,
        [beta1, beta2, epsilon]: [f64; 3],
        divisor: f32,
    ) -> Self {
        Self {
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            epsilon: epsilon as f32,
            divisor,
            minus_rate: (-learning_rate / (1.0 - power(beta1, step))) as f32,
            correction: (1.0 - power(beta2, step)).sqrt() as f32,
        }
    }
}

vectorized! {
    /// `keep` scales the weights first (AdamW); `decay` of them is added to the gradient (Adam).
    pub(super) fn update<'a>(
        scalars: Scalars,
        keep: f32,
        decay: f32,
        weights: &'a [f32],
        out: &'a mut [f32],
        mean: &'a mut [f32],
        variance: &'a mut [f32],
    ) {
        let s = scalars;
        for (((out, &weight), mean), variance) in out.iter_mut().zip(weights).zip(mean).zip(variance) {
            let gradient = weight.mul_add(decay, *out / s.divisor);
            *mean = (gradient - *mean).mul_add(s.one_minus_beta1, *mean);
            *variance = (gradient * s.one_minus_beta2).mul_add(gradient, *variance * s.beta2);
            let denominator = variance.sqrt() / s.correction + s.epsilon;
            *out = (*mean / denominator).mul_add(s.minus_rate, weight * keep);
        }
    }
}

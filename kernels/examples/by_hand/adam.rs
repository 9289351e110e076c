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

/// What all elements of a step of NAdam share.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) beta2: f32,
    pub(super) one_minus_beta1: f32,
    pub(super) one_minus_beta2: f32,
    pub(super) epsilon: f32,
    pub(super) decay: f32,
    pub(super) divisor: f32,
    pub(super) correction: f32,
    /// Of the gradient's part, and the mean's, negative.
    pub(super) rates: [f32; 2],
}

impl Ahead {
    /// `product` is that of the momenta so far, and becomes that of this step's, too.
    pub(super) fn new(
        step: u64,
        rate: f64,
        [beta1, beta2, epsilon, decay, momentum_decay]: [f64; 5],
        divisor: f32,
        product: &mut f64,
    ) -> Self {
        let momentum = |step: f64| beta1 * (1.0 - 0.5 * libm::pow(0.96, step * momentum_decay));
        let [now, next] = [step as f64, step as f64 + 1.0].map(momentum);
        *product *= now;
        Self {
            beta2: beta2 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            epsilon: epsilon as f32,
            decay: decay as f32,
            divisor,
            correction: (1.0 - power(beta2, step)) as f32,
            rates: [rate * (1.0 - now) / (1.0 - *product), -(rate * next / (1.0 - *product * next))]
                .map(|rate| rate as f32),
        }
    }
}

vectorized! {
    /// NAdam (Dozat, 2016), as PyTorch computes it.
    pub(super) fn ahead<'a>(
        scalars: Ahead,
        weights: &'a [f32],
        out: &'a mut [f32],
        mean: &'a mut [f32],
        variance: &'a mut [f32],
    ) {
        let s = scalars;
        for (((out, &weight), mean), variance) in out.iter_mut().zip(weights).zip(mean).zip(variance) {
            let gradient = weight.mul_add(s.decay, *out / s.divisor);
            *mean = (gradient - *mean).mul_add(s.one_minus_beta1, *mean);
            *variance = (gradient * s.one_minus_beta2).mul_add(gradient, *variance * s.beta2);
            let root = (*variance / s.correction).sqrt() + s.epsilon;
            let now = s.rates[0] * (gradient / root);
            *out = (*mean / root).mul_add(s.rates[1], weight - now);
        }
    }
}

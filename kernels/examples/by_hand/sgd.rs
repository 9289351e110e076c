//! Stochastic gradient descent, plain, with momentum, and with Nesterov's momentum (Sutskever et al., 2013), as
//! PyTorch's `torch.optim.SGD` computes them.
//!
//! With velocities that start at zero, the first step's velocity is the gradient itself, as PyTorch makes it.

use super::vectorized;

vectorized! {
    /// `w - lr (g + decay w)`.
    pub(super) fn plain<'a>(minus_rate: f32, decay: f32, divisor: f32, weights: &'a [f32], out: &'a mut [f32]) {
        for (out, &weight) in out.iter_mut().zip(weights) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *out = gradient.mul_add(minus_rate, weight);
        }
    }

    /// `v = momentum v + g; w - lr v`.
    pub(super) fn momentum<'a>(scalars: [f32; 4], weights: &'a [f32], out: &'a mut [f32], velocity: &'a mut [f32]) {
        let [minus_rate, momentum, decay, divisor] = scalars;
        for ((out, &weight), velocity) in out.iter_mut().zip(weights).zip(velocity) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *velocity = velocity.mul_add(momentum, gradient);
            *out = velocity.mul_add(minus_rate, weight);
        }
    }

    /// `v = momentum v + g; w - lr (g + momentum v)`.
    pub(super) fn nesterov<'a>(scalars: [f32; 4], weights: &'a [f32], out: &'a mut [f32], velocity: &'a mut [f32]) {
        let [minus_rate, momentum, decay, divisor] = scalars;
        for ((out, &weight), velocity) in out.iter_mut().zip(weights).zip(velocity) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *velocity = velocity.mul_add(momentum, gradient);
            let ahead = velocity.mul_add(momentum, gradient);
            *out = ahead.mul_add(minus_rate, weight);
        }
    }
}

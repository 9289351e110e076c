//! Updates whose steps are divided by what gradients have been: RMSprop, Adagrad and Adadelta as PyTorch computes them, and
//! FTRL-Proximal (McMahan et al., 2013).

use super::vectorized;

vectorized! {
    /// `v = alpha v + (1 - alpha) g²; w - lr g / (√v + epsilon)`: `scalars` are the negative rate, the decay, alpha, 1 - alpha,
    /// epsilon and the divisor.
    pub(super) fn rmsprop<'a>(scalars: [f32; 6], weights: &'a [f32], out: &'a mut [f32], square: &'a mut [f32]) {
        let [minus_rate, decay, alpha, rest, epsilon, divisor] = scalars;
        for ((out, &weight), square) in out.iter_mut().zip(weights).zip(square) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *square = (gradient * rest).mul_add(gradient, *square * alpha);
            *out = (gradient / (square.sqrt() + epsilon)).mul_add(minus_rate, weight);
        }
    }

    /// `v = v + g²; w - lr g / (√v + epsilon)`: the negative rate, the decay, epsilon, the divisor.
    pub(super) fn adagrad<'a>(scalars: [f32; 4], weights: &'a [f32], out: &'a mut [f32], squares: &'a mut [f32]) {
        let [minus_rate, decay, epsilon, divisor] = scalars;
        for ((out, &weight), squares) in out.iter_mut().zip(weights).zip(squares) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *squares = gradient.mul_add(gradient, *squares);
            *out = (gradient / (squares.sqrt() + epsilon)).mul_add(minus_rate, weight);
        }
    }

    /// `v = rho v + (1 - rho) g²; c = √(u + epsilon) / √(v + epsilon) g; u = rho u + (1 - rho) c²; w - lr c`: the negative rate,
    /// the decay, rho, 1 - rho, epsilon, the divisor.
    pub(super) fn adadelta<'a>(
        scalars: [f32; 6],
        weights: &'a [f32],
        out: &'a mut [f32],
        square: &'a mut [f32],
        delta: &'a mut [f32],
    ) {
        let [minus_rate, decay, rho, rest, epsilon, divisor] = scalars;
        for (((out, &weight), square), delta) in out.iter_mut().zip(weights).zip(square).zip(delta) {
            let gradient = weight.mul_add(decay, *out / divisor);
            *square = (gradient * rest).mul_add(gradient, *square * rho);
            let change = (*delta + epsilon).sqrt() / (*square + epsilon).sqrt() * gradient;
            *delta = (change * rest).mul_add(change, *delta * rho);
            *out = change.mul_add(minus_rate, weight);
        }
    }

    /// Algorithm 1: the rate, beta, lambda1, lambda2, the divisor.
    pub(super) fn ftrl<'a>(
        scalars: [f32; 5],
        weights: &'a [f32],
        out: &'a mut [f32],
        z: &'a mut [f32],
        n: &'a mut [f32],
    ) {
        let [rate, beta, lambda1, lambda2, divisor] = scalars;
        for (((out, &weight), z), n) in out.iter_mut().zip(weights).zip(z).zip(n) {
            let gradient = *out / divisor;
            let squares = gradient.mul_add(gradient, *n);
            let root = squares.sqrt();
            let sigma = (root - n.sqrt()) / rate;
            *z = (-sigma).mul_add(weight, *z + gradient);
            *n = squares;
            let pulled = -super::sign(*z).mul_add(-lambda1, *z) / ((root + beta) / rate + lambda2);
            *out = if z.abs() <= lambda1 { 0.0 } else { pulled };
        }
    }
}

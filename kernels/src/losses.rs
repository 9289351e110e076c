//! Losses of numbers, for models that a program brings along ([`Model`](crate::Model)): sums and their gradients.
//!
//! Invariants:
//! 1. Each element's loss and gradient is a written sequence of IEEE operations on its own numbers, the same at every SIMD
//!    width; losses are added in `f64`, in order.
//! 2. Sums, never means: what PyTorch gives with `reduction="sum"`.
//! 3. Wrong lengths are a [`LossError`], found before anything is written.
//!
//! Classifiers' cross-entropy is part of the networks that ship.

use crate::math::{exp, ln};
use crate::simd::vectorized;

/// Outputs, targets and room for gradients differ in length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{outputs} outputs, {targets} targets and room for {gradients} gradients: they must be as many")]
pub struct LossError {
    /// Outputs given.
    pub outputs: usize,
    /// Targets given.
    pub targets: usize,
    /// Room given.
    pub gradients: usize,
}

/// The squared error: the sum of `(output - target)²`, and into `gradient` each element's `2 (output - target)`.
///
/// # Errors
/// [`LossError`] if the three differ in length.
pub fn squared_error(outputs: &[f32], targets: &[f32], gradient: &mut [f32]) -> Result<f64, LossError> {
    check(outputs, targets, gradient)?;
    differences(outputs, targets, gradient);
    let sum = sum_of_squares(gradient);
    for difference in gradient {
        *difference += *difference;
    }
    Ok(sum)
}

/// Binary cross-entropy of logits z against targets t from 0 to 1: the sum of `max(z, 0) - z t + ln(1 + exp(-|z|))` (nats),
/// and into `gradient` each element's `sigmoid(z) - t`.
///
/// # Errors
/// [`LossError`] if the three differ in length.
pub fn binary_cross_entropy(logits: &[f32], targets: &[f32], gradient: &mut [f32]) -> Result<f64, LossError> {
    check(logits, targets, gradient)?;
    // First the losses: each is needed once, and the room is there.
    cross_entropies(logits, targets, gradient);
    let sum = sum(gradient);
    sigmoids(logits, targets, gradient);
    Ok(sum)
}

/// In order.
pub(crate) fn sum(losses: &[f32]) -> f64 {
    losses.iter().fold(0.0, |sum, loss| sum + f64::from(*loss))
}

/// In order. A square of an `f32` is exact.
pub(crate) fn sum_of_squares(differences: &[f32]) -> f64 {
    differences.iter().fold(0.0, |sum, difference| sum + f64::from(*difference) * f64::from(*difference))
}

fn check(outputs: &[f32], targets: &[f32], gradient: &[f32]) -> Result<(), LossError> {
    let error = LossError { outputs: outputs.len(), targets: targets.len(), gradients: gradient.len() };
    if error.outputs == error.targets && error.outputs == error.gradients { Ok(()) } else { Err(error) }
}

vectorized! {
    fn differences<'a>(outputs: &'a [f32], targets: &'a [f32], out: &'a mut [f32]) {
        for (out, (output, target)) in out.iter_mut().zip(outputs.iter().zip(targets)) {
            *out = *output - *target;
        }
    }

    fn cross_entropies<'a>(logits: &'a [f32], targets: &'a [f32], out: &'a mut [f32]) {
        for (out, (logit, target)) in out.iter_mut().zip(logits.iter().zip(targets)) {
            let part = exp(-logit.abs());
            let positive = if *logit < 0.0 { 0.0 } else { *logit };
            *out = (-*logit).mul_add(*target, positive) + ln_1p(part);
        }
    }

    fn sigmoids<'a>(logits: &'a [f32], targets: &'a [f32], out: &'a mut [f32]) {
        for (out, (logit, target)) in out.iter_mut().zip(logits.iter().zip(targets)) {
            let part = exp(-logit.abs());
            let upper = if *logit < 0.0 { part } else { 1.0 };
            *out = upper / (1.0 + part) - *target;
        }
    }
}

/// ln(1 + x) for x from 0 to 1, exact to a few units in the last place also where x is small: the rounding of 1 + x is
/// divided out again (Goldberg, "What every computer scientist should know about floating-point arithmetic", 1991,
/// theorem 4).
#[inline(always)]
fn ln_1p(x: f32) -> f32 {
    let above = 1.0 + x;
    if above == 1.0 { x } else { ln(above) * x / (above - 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn numbers() -> (Vec<f32>, Vec<f32>) {
        let logits = (0..83).map(|i| (i as f32 - 41.0) * 0.9).collect();
        (logits, (0..83).map(|i| (i * 29 % 7) as f32 / 6.0).collect())
    }

    #[test]
    fn losses_are_their_definition_and_gradients_their_slope() {
        let (outputs, targets) = numbers();
        let squared = |y: f64, t: f64| (y - t) * (y - t);
        let binary = |z: f64, t: f64| z.max(0.0) - z * t + (-z.abs()).exp().ln_1p();
        type Loss = fn(&[f32], &[f32], &mut [f32]) -> Result<f64, LossError>;
        for (loss, exact) in [
            (squared_error as Loss, &squared as &dyn Fn(f64, f64) -> f64),
            (binary_cross_entropy as Loss, &binary),
        ] {
            let mut gradient = vec![f32::NAN; outputs.len()];
            let sum = loss(&outputs, &targets, &mut gradient).unwrap();
            let pairs = || outputs.iter().zip(&targets).map(|(y, t)| (f64::from(*y), f64::from(*t)));
            let expected: f64 = pairs().map(|(y, t)| exact(y, t)).sum();
            assert!((sum / expected - 1.0).abs() < 1e-6, "{sum} against {expected}");
            for ((y, t), found) in pairs().zip(&gradient) {
                let slope = (exact(y + 1e-5, t) - exact(y - 1e-5, t)) / 2e-5;
                assert!((f64::from(*found) - slope).abs() < 1e-5 * (1.0 + slope.abs()), "{y} {t}: {found}");
            }
            let error = loss(&outputs, &targets[1..], &mut gradient).unwrap_err();
            assert_eq!(error, LossError { outputs: 83, targets: 82, gradients: 83 });
        }
    }

    /// Far from zero neither overflows, and a sure and right answer costs what it should.
    #[test]
    fn sure_answers() {
        let mut gradient = [0.0; 3];
        let sum = binary_cross_entropy(&[-20.0, 200.0, -200.0], &[0.0, 1.0, 1.0], &mut gradient).unwrap();
        assert!(
            (sum - 200.0).abs() < 1e-5 && gradient[1] == 0.0 && gradient[2] == -1.0,
            "{sum} {gradient:?}"
        );
        let one = binary_cross_entropy(&[-20.0], &[0.0], &mut [0.0]).unwrap();
        assert!((one / 2.061_153_6e-9 - 1.0).abs() < 1e-5, "{one}");
    }

    #[test]
    fn width_does_not_matter() {
        let (outputs, targets) = numbers();
        for loss in [squared_error, binary_cross_entropy] {
            forced::assert_same(|| {
                let mut gradient = vec![f32::NAN; outputs.len()];
                let sum = loss(&outputs, &targets, &mut gradient).unwrap();
                (sum.to_bits(), gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>())
            });
        }
    }
}

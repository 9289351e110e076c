//! The Gaussian error linear unit in its tanh form (Hendrycks and Gimpel, "Gaussian error linear units", 2016), as GPT-2
//! has it: `gelu(u) = u/2 (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))`.
//!
//! Each element is this sequence, `fma` rounding once: `s = u u`; `t = tanh(u * (s * K3 + K1))` with `s * K3 + K1` one
//! fma; `half = 0.5 u`; `gelu = fma(half, t, half)`. Its slope is `fma(half * (1 - t t), fma(s, 3 K3, K1), 0.5 (1 + t))`,
//! with `1 - t t` one fma.

use crate::math::tanh;
use crate::simd::vectorized;

/// sqrt(2 / pi).
const K1: f32 = 0.797_884_6;
/// 0.044715 sqrt(2 / pi).
const K3: f32 = 0.035_677_407;

vectorized! {
    /// `out` becomes the unit of `values`.
    pub(crate) fn gelu<'a>(values: &'a [f32], out: &'a mut [f32]) {
        for (value, out) in values.iter().zip(out) {
            *out = unit(*value).0;
        }
    }

    /// `gradient`, of the results of [`gelu`], becomes the gradient of `values`.
    pub(crate) fn gelu_gradient<'a>(values: &'a [f32], gradient: &'a mut [f32]) {
        for (value, gradient) in values.iter().zip(gradient) {
            *gradient *= unit(*value).1;
        }
    }
}

/// The unit at `u`, and its slope there.
#[inline(always)]
fn unit(u: f32) -> (f32, f32) {
    let square = u * u;
    let t = tanh(u * square.mul_add(K3, K1));
    let half = 0.5 * u;
    let slope = (half * t.mul_add(-t, 1.0)).mul_add(square.mul_add(3.0 * K3, K1), 0.5 * (1.0 + t));
    (half.mul_add(t, half), slope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn reference(u: f64) -> f64 {
        0.5 * u * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (u + 0.044715 * u.powi(3))).tanh())
    }

    /// Values and slopes against the formula in `f64`, far tails included, where the slope is 0 or 1.
    #[test]
    fn values_and_slopes_are_the_formulas() {
        let mut values: Vec<f32> = (-600..=600).map(|i| i as f32 / 50.0).collect();
        values.extend([-1e4, 1e4, -1e-20, 0.0, -0.0]);
        let (mut out, mut slopes) = (vec![f32::NAN; values.len()], vec![1.0; values.len()]);
        gelu(&values, &mut out);
        gelu_gradient(&values, &mut slopes);
        for ((value, out), slope) in values.iter().zip(out).zip(slopes) {
            let u = f64::from(*value);
            let expected = reference(u);
            assert!((f64::from(out) - expected).abs() <= 4e-7 * (1.0 + expected.abs()), "{value}: {out}");
            let h = 1e-5 * (1.0 + u.abs());
            let rise = (reference(u + h) - reference(u - h)) / (2.0 * h);
            assert!((f64::from(slope) - rise).abs() < 2e-6, "{value}: {slope}, not {rise}");
        }
    }

    #[test]
    fn width_does_not_matter() {
        let values: Vec<f32> = (0..1001).map(|i| ((i * 53) % 997) as f32 * 0.02 - 10.0).collect();
        forced::assert_same(|| {
            let (mut out, mut slopes) = (vec![0.0; values.len()], values.clone());
            gelu(&values, &mut out);
            gelu_gradient(&values, &mut slopes);
            out.iter().chain(&slopes).map(|value| value.to_bits()).collect::<Vec<_>>()
        });
    }
}

//! The rectifier: what is negative becomes zero.

use crate::simd::vectorized;

vectorized! {
    /// Zero for what is negative; NaN stays, so that it is noticed.
    pub(crate) fn relu<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }

    /// The gradient through [`relu`] whose results are `outputs`: zero where they are not positive.
    pub(crate) fn relu_gradient<'a>(gradient: &'a mut [f32], outputs: &'a [f32]) {
        for (gradient, output) in gradient.iter_mut().zip(outputs) {
            *gradient = if *output > 0.0 { *gradient } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinks_and_nan() {
        let mut values = [-1.0, -0.0, 0.0, 2.0, f32::NAN];
        relu(&mut values);
        assert_eq!(values[..4], [0.0, 0.0, 0.0, 2.0]);
        assert!(values[4].is_nan());
        let mut gradient = [1.0; 5];
        relu_gradient(&mut gradient, &values);
        assert_eq!(gradient, [0.0, 0.0, 0.0, 1.0, 0.0]);
    }
}

//! Scalar arithmetic: f64, once for a call, the same bits on every machine.
//!
//! `+ - * /` and `sqrt` are IEEE's, `exp`, `ln` and powers to fractions are those of the `libm` crate, which is Rust
//! without a C library; powers to whole numbers are products, by squaring.

use crate::math;
use crate::optimizer::language::{Binary, Unary};

pub(super) fn unary(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Negate => -x,
        Unary::Sqrt => x.sqrt(),
        Unary::Abs => x.abs(),
        Unary::Sign if x > 0.0 => 1.0,
        Unary::Sign if x < 0.0 => -1.0,
        Unary::Sign => x,
        Unary::Exp => libm::exp(x),
        Unary::Ln => libm::log(x),
    }
}

/// A truth is 1 or 0.
pub(super) fn binary(op: Binary, x: f64, y: f64) -> f64 {
    let truth = |holds: bool| f64::from(u8::from(holds));
    match op {
        Binary::Add => x + y,
        Binary::Subtract => x - y,
        Binary::Multiply => x * y,
        Binary::Divide => x / y,
        Binary::Power => power(x, y),
        Binary::Min => {
            if x < y || x.is_nan() {
                x
            } else {
                y
            }
        }
        Binary::Max => {
            if x > y || x.is_nan() {
                x
            } else {
                y
            }
        }
        Binary::Less => truth(x < y),
        Binary::LessOrEqual => truth(x <= y),
        Binary::Equal => truth(x == y),
        Binary::NotEqual => truth(x != y),
    }
}

/// `base` to the power of `exponent`. A whole exponent below 2^53 in magnitude goes by squaring: one over the
/// product if it is negative.
fn power(base: f64, exponent: f64) -> f64 {
    let magnitude = exponent.abs();
    if magnitude.fract() != 0.0 || magnitude.is_nan() || magnitude >= 9_007_199_254_740_992.0 {
        return libm::pow(base, exponent);
    }
    let product = math::power(base, magnitude as u64);
    if exponent < 0.0 { 1.0 / product } else { product }
}

#[cfg(test)]
mod tests {
    use super::power;

    #[test]
    fn powers() {
        assert_eq!(
            (power(0.9, 0.0), power(0.9, 1.0), power(0.0, 3.0), power(2.0, -2.0)),
            (1.0, 0.9, 0.0, 0.25)
        );
        for exponent in [2.0, 7.0, 100.0, 12_345.0, -7.0, 0.5, 0.004, -1.25] {
            let expected = 0.999f64.powf(exponent);
            assert!((power(0.999, exponent) / expected - 1.0).abs() < 1e-12, "{exponent}");
        }
        assert_eq!(power(0.999, u64::MAX as f64), 0.0);
        assert_eq!(power(f64::NAN, 0.0), 1.0);
        assert!(power(0.9, f64::NAN).is_nan() && power(-0.9, 0.5).is_nan());
    }
}

//! Elementary functions of our own, so that no result depends on a C library.
//!
//! Invariants:
//! 1. The scalar functions and the slice functions give the same bits, at every SIMD width and on every processor:
//!    each is one fixed sequence of IEEE operations in which `mul_add` rounds once.
//! 2. Errors are below the stated units in the last place (ULP), subnormal results included.
//! 3. Infinities, zeros and NaN give what IEEE 754 recommends; the sign and payload of a NaN are unspecified.
//!
//! Method: argument reduction after Cody and Waite ("Software Manual for the Elementary Functions", 1980), then
//! polynomials whose coefficients minimize the greatest relative error (Remez), rounded to `f32`.

mod circle;
mod power;

pub use circle::{circle, cos_pi};
pub(crate) use power::power;

use crate::simd::vectorized;

vectorized! {
    /// Replaces each value by its [`exp`].
    pub fn exp_in_place<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = exp(*value);
        }
    }

    /// Replaces each value by its [`ln`].
    pub fn ln_in_place<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = ln(*value);
        }
    }

    /// Replaces each value by its [`tanh`].
    pub fn tanh_in_place<'a>(values: &'a mut [f32]) {
        for value in values {
            *value = tanh(*value);
        }
    }
}

/// e to the power of `x`; error below 1.1 ULP.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is infinity or zero already. A NaN passes both comparisons by.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.381_431_7e-3;
    for coefficient in [8.368_851e-3, 4.166_84e-2, 0.166_665_2, 0.499_999_94] {
        p = r.mul_add(p, coefficient);
    }
    let y = (r * r).mul_add(p, r) + 1.0;
    // Two factors: 2^128 is no f32, and a subnormal result must be rounded once, by the last product.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// The natural logarithm of `x`; error below 1 ULP. Minus infinity at zeros, NaN below.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let bits = if subnormal { x * TWO_23 } else { x }.to_bits();
    // x = m 2^n with m from sqrt(1/2) to sqrt(2).
    let n = (bits.wrapping_sub(SQRT_HALF_BITS) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((n as u32) << 23)) - 1.0;
    let n = n as f32 - if subnormal { 23.0 } else { 0.0 };
    let mut p = 6.746_556e-2;
    for coefficient in [
        -0.116_796_16,
        0.118_903_22,
        -0.124_051_42,
        0.142_192_26,
        -0.166_680_07,
        0.200_021_34,
        -0.250_000_1,
        0.333_333_13,
    ] {
        p = f.mul_add(p, coefficient);
    }
    let square = f * f;
    let low = n.mul_add(LN_2_LOW, (square * f) * p);
    let y = n.mul_add(LN_2_HIGH, square.mul_add(-0.5, low) + f);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Written so that NaN, which compares to nothing, ends here too.
    if x >= 0.0 { y } else { f32::NAN }
}

/// The hyperbolic tangent of `x`; error below 1.5 ULP.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let square = a * a;
    let mut p = -5.648_317_3e-3;
    for coefficient in [2.058_982_7e-2, -5.372_512_7e-2, 0.133_312_75, -0.333_332_75] {
        p = square.mul_add(p, coefficient);
    }
    let near_zero = (square * a).mul_add(p, a);
    let far = 1.0 - 2.0 / (exp(a + a) + 1.0);
    let y = if a < 0.625 { near_zero } else { far };
    y.copysign(x)
}

/// Adding this to a number below 2^22 in magnitude rounds it to an integer, which the low bits then hold.
const ROUND: f32 = 12_582_912.0;
const TWO_23: f32 = 8_388_608.0;
const SQRT_HALF_BITS: u32 = 0x3f35_04f3;

/// ln 2 in two parts, the first so short that its product with any exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// 2^n for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::simd::forced;

    /// Every 499th bit pattern, and those around every power of two.
    pub(crate) fn sweep() -> Vec<f32> {
        let around =
            (0..512u32).flat_map(|e| (0..9u32).map(move |i| (e << 23).wrapping_add(i).wrapping_sub(4)));
        (0..=u32::MAX).step_by(499).chain(around).map(f32::from_bits).collect()
    }

    /// The error of `found` in units in the last place of the f32 nearest to `expected`.
    pub(crate) fn ulp(found: f32, expected: f64) -> f64 {
        let nearest = expected as f32;
        if nearest.is_infinite() || found.is_infinite() {
            // Where rounding decides between the greatest number and infinity, either is within one ULP.
            let edge = (f32::MAX as f64) * (1.0 + f64::from(f32::EPSILON) / 4.0);
            let near = (expected.abs() - edge).abs() <= 1e-7 * edge;
            return if found == nearest || near { 0.0 } else { f64::INFINITY };
        }
        let magnitude = nearest.abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
        (f64::from(found) - expected).abs() / unit
    }

    fn worst(name: &str, f: fn(f32) -> f32, reference: fn(f64) -> f64) -> f64 {
        let mut worst = (0.0, 0.0f32);
        for x in sweep().into_iter().filter(|x| !x.is_nan()) {
            let (found, expected) = (f(x), reference(f64::from(x)));
            if expected.is_nan() {
                assert!(found.is_nan(), "{name}({x:e}) = {found:e}, not NaN");
                continue;
            }
            let error = ulp(found, expected);
            assert!(error.is_finite(), "{name}({x:e}) = {found:e}, not {expected:e}");
            if error > worst.0 {
                worst = (error, x);
            }
        }
        println!("{name}: {:.3} ULP at {:e}", worst.0, worst.1);
        worst.0
    }

    /// Invariant 2.
    #[test]
    fn errors_are_as_stated() {
        assert!(worst("exp", exp, f64::exp) < 1.1);
        assert!(worst("ln", ln, f64::ln) < 1.0);
        assert!(worst("tanh", tanh, f64::tanh) < 1.5);
    }

    /// Invariant 1: bits, NaN aside.
    #[test]
    fn slices_and_scalars_agree_at_every_width() {
        let inputs = sweep();
        let bits = |value: f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
        for (slice, scalar) in [
            (exp_in_place as fn(&mut [f32]), exp as fn(f32) -> f32),
            (ln_in_place, ln),
            (tanh_in_place, tanh),
        ] {
            for (name, values) in forced::each(|| {
                let mut values = inputs.clone();
                slice(&mut values);
                values
            }) {
                for (&x, &found) in inputs.iter().zip(&values) {
                    assert_eq!(bits(found), bits(scalar(x)), "{name} at {x:e}");
                }
            }
        }
    }

    /// Invariant 3.
    #[test]
    fn special_values() {
        let infinity = f32::INFINITY;
        assert_eq!((exp(infinity), exp(-infinity), exp(0.0), exp(-0.0)), (infinity, 0.0, 1.0, 1.0));
        assert_eq!((ln(infinity), ln(0.0), ln(-0.0), ln(1.0)), (infinity, -infinity, -infinity, 0.0));
        assert_eq!((tanh(infinity), tanh(-infinity)), (1.0, -1.0));
        assert_eq!((tanh(0.0).to_bits(), tanh(-0.0).to_bits()), (0, (-0.0f32).to_bits()));
        assert!(
            [exp(f32::NAN), ln(f32::NAN), tanh(f32::NAN), ln(-1.0), ln(-infinity)].iter().all(|x| x.is_nan())
        );
        assert_eq!(exp(-103.9), f32::from_bits(1)); // the least subnormal
        assert_eq!(tanh(f32::from_bits(1)), f32::from_bits(1));
    }
}

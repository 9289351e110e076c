//! Cosine and sine, measured in turns so that reduction is exact: [`circle`] in `f32` for normal random numbers,
//! [`cos_pi`] in `f64` for schedules.

/// (cos 2πt, sin 2πt) for a fraction `t` of a turn, `0 <= t <= 1`; absolute errors below 1e-7.
#[inline(always)]
pub fn circle(t: f32) -> (f32, f32) {
    let quarter = (t * 4.0 + 0.5) as u32; // the nearest quarter turn
    let r = t - quarter as f32 * 0.25; // exact; an eighth of a turn at most
    let square = r * r;
    let mut cos = 59.220_41;
    for coefficient in [-85.442_856, 64.939_316, -19.739_208, 1.0] {
        cos = square.mul_add(cos, coefficient);
    }
    let mut sin = -75.402_07;
    for coefficient in [81.592_55, -41.341_663, std::f32::consts::TAU] {
        sin = square.mul_add(sin, coefficient);
    }
    let sin = sin * r;
    match quarter & 3 {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

/// cos πt for `0 <= t <= 1`, absolute error below 1e-15; outside, the value at the nearer end, and at 1 for NaN.
pub fn cos_pi(t: f64) -> f64 {
    let t = if t < 1.0 { t.max(0.0) } else { 1.0 };
    let (t, sign) = if t > 0.5 { (1.0 - t, -1.0) } else { (t, 1.0) };
    // Taylor's series on a quarter of the half turn; the first term left out is below 1e-17.
    let (x, first) =
        if t > 0.25 { ((0.5 - t) * std::f64::consts::PI, 1) } else { (t * std::f64::consts::PI, 0) };
    let square = x * x;
    let mut sum = 1.0;
    for n in (1..=9).rev() {
        let n = f64::from(2 * n + first);
        sum = 1.0 - square / (n * (n - 1.0)) * sum;
    }
    sign * if first == 1 { x * sum } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::PI;

    #[test]
    fn circle_is_close_everywhere() {
        for i in 0..=(1u32 << 20) {
            let t = i as f32 / (1u32 << 20) as f32;
            let (cos, sin) = circle(t);
            let angle = 2.0 * PI * f64::from(t);
            assert!((f64::from(cos) - angle.cos()).abs() < 1e-7, "cos at {t}");
            assert!((f64::from(sin) - angle.sin()).abs() < 1e-7, "sin at {t}");
        }
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|t| circle(t).0), [1.0, 0.0, -1.0, 0.0, 1.0]);
    }

    #[test]
    fn cos_pi_is_close_everywhere() {
        for i in 0..=100_000 {
            let t = f64::from(i) / 100_000.0;
            assert!((cos_pi(t) - (PI * t).cos()).abs() < 1e-15, "{t}");
        }
        assert_eq!((cos_pi(0.0), cos_pi(0.5), cos_pi(1.0)), (1.0, 0.0, -1.0));
        assert_eq!((cos_pi(-3.0), cos_pi(7.0), cos_pi(f64::NAN)), (1.0, -1.0, -1.0));
    }
}

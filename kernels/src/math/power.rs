//! Whole powers in f64, for what is computed once a step: bias corrections, schedules.

/// `base` to the power of `exponent`, by squaring: the same bits everywhere, which a C library does not promise.
pub(crate) fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut product = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::power;

    #[test]
    fn powers() {
        assert_eq!((power(0.9, 0), power(0.9, 1), power(0.0, 3)), (1.0, 0.9, 0.0));
        for exponent in [2u64, 7, 100, 12_345] {
            let expected = 0.999f64.powf(exponent as f64);
            assert!((power(0.999, exponent) / expected - 1.0).abs() < 1e-12, "{exponent}");
        }
        assert_eq!(power(0.999, u64::MAX), 0.0);
    }
}

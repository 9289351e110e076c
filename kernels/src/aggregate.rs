//! Aggregation: one node of the reduction tree, and the check that contributions are finite.
//!
//! Invariants:
//! 1. [`add`] is elementwise IEEE addition: bits depend neither on slicing nor on SIMD width.
//! 2. [`first_non_finite`] names the lowest index of a NaN or infinity, or nothing if all are finite.
//!
//! Which contributions are added, and in which order, is the reduction tree's business.

use crate::simd::vectorized;

vectorized! {
    /// Adds `other` into `into`, element by element. Lengths are the caller's to check: elements past the shorter are
    /// left as they are.
    pub fn add<'a>(into: &'a mut [f32], other: &'a [f32]) {
        for (sum, value) in into.iter_mut().zip(other) {
            *sum += *value;
        }
    }

    /// The lowest index of a value that is NaN or infinite; `None` if all are finite.
    pub fn first_non_finite<'a>(values: &'a [f32]) -> Option<usize> {
        values.chunks(BLOCK).position(has_non_finite).and_then(|block| {
            let start = block * BLOCK;
            values.get(start..)?.iter().position(|value| !value.is_finite()).map(|index| start + index)
        })
    }

    /// [`add`] and [`first_non_finite`] in one pass over memory: adds `other` into `into` and returns the lowest index
    /// at which the *sum* is not finite. All elements are added even then, so that the result does not depend on
    /// where the fault lies; the caller throws the sum away.
    pub fn add_checked<'a>(into: &'a mut [f32], other: &'a [f32]) -> Option<usize> {
        let mut first = None;
        for (block, (sums, values)) in into.chunks_mut(BLOCK).zip(other.chunks(BLOCK)).enumerate() {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += *value;
            }
            if first.is_none() && has_non_finite(sums) {
                let found = sums.iter().zip(values).position(|(sum, _)| !sum.is_finite());
                first = found.map(|index| block * BLOCK + index);
            }
        }
        first
    }
}

/// Elements that are checked together: 4 KiB, which stays in the first-level cache.
const BLOCK: usize = 1024;

/// Whether any value is NaN or infinite.
#[inline(always)]
pub(crate) fn has_non_finite(values: &[f32]) -> bool {
    // An exponent of all ones, found without a branch per element. Shifting the sign out leaves such values highest.
    values.iter().fold(0u32, |highest, value| highest.max(value.to_bits() << 1))
        >= f32::INFINITY.to_bits() << 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    #[test]
    fn adds_at_every_width() {
        let a: Vec<f32> = (0..4099).map(|i| (i as f32).sqrt() - 20.0).collect();
        let b: Vec<f32> = (0..4099).map(|i| 1.0 / (i as f32 + 0.3)).collect();
        forced::assert_same(|| {
            let mut plain = a.clone();
            add(&mut plain, &b);
            let mut checked = a.clone();
            assert_eq!(add_checked(&mut checked, &b), None);
            assert_eq!(plain, checked);
            plain.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
    }

    /// Invariant 2, at every place of a slice that spans several blocks and ends within one.
    #[test]
    fn finds_the_first_fault() {
        let mut values = vec![f32::MAX; 2 * BLOCK + 37];
        assert_eq!(first_non_finite(&values), None);
        assert_eq!(first_non_finite(&[]), None);
        for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for index in (0..values.len()).step_by(5) {
                values[index] = fault;
                let last = values.len() - 1;
                values[last] = fault;
                assert_eq!(first_non_finite(&values), Some(index));
                values[index] = f32::MIN;
                values[last] = f32::from_bits(1);
            }
        }
    }

    /// A sum of finite values may overflow: that is found too, and the rest is added all the same.
    #[test]
    fn checked_addition_looks_at_the_sum() {
        let mut sum = vec![f32::MAX; 3000];
        let mut other = vec![0.0; 3000];
        other[2500] = f32::MAX;
        other[2600] = f32::NAN;
        other[2999] = -f32::MAX;
        assert_eq!(add_checked(&mut sum, &other), Some(2500));
        assert_eq!((sum[2500], sum[2999]), (f32::INFINITY, 0.0));
    }
}

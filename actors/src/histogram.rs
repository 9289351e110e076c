//! How the values of a tensor are spread, in a fixed number of buckets that grow by powers of two.
//!
//! 1. A bucket is a function of a value's bits alone, so histograms of slices add up to the tensor's: counts, smallest and greatest
//!    are the same however it is cut and whoever keeps it. Sums are of f64 and may differ in their last bits.
//! 2. There are at most [`BUCKETS`] of them, however many values there are: an octave has eight, from 2^-40 to 2^16. What is nearer to
//!    zero shares one bucket, what is further away the outermost.
//! 3. What comes from a peer is [checked](Histogram::is_possible) before it is used.

use serde::{Deserialize, Serialize};

/// Bits of the fraction that tell buckets of an octave apart: a bucket's limits differ by an eighth of the octave's lower end.
const FRACTION_BITS: u32 = 3;
/// The exponents that have buckets, as an f32 has them.
const LOWEST: u32 = 127 - 40;
const HIGHEST: u32 = 127 + 16;
/// Buckets on each side of zero.
const SIDE: u32 = (HIGHEST - LOWEST) << FRACTION_BITS;
/// Buckets in all, that around zero included.
pub const BUCKETS: u32 = 2 * SIDE + 1;

/// Tensors of a model that are counted: its first ones.
pub const TENSORS: u32 = 512;

/// What a histogram takes beside its buckets at most: its numbers, and its part of the tables that it is in.
const HELD: u64 = 1 << 10;
/// Bytes of a [`Tally`], whatever was counted.
pub(crate) const TALLY: u64 = 8 * BUCKETS as u64 + HELD;

/// Bytes that histograms of a tensor of so many elements take at most, its gradient's and its values', in parts of so many servers: a
/// bucket that holds some, for each element or all that there are.
#[must_use]
pub(crate) fn told_bytes(elements: u64, servers: u64) -> u64 {
    let buckets = servers.saturating_mul(u64::from(BUCKETS)).min(elements);
    let each = size_of::<(u16, u64)>() as u64;
    servers.saturating_mul(HELD).saturating_add(buckets.saturating_mul(each)).saturating_mul(2)
}

/// Whether a version is counted where every `every`-th is: those, and the first, so that a short run has something to show.
#[must_use]
pub fn is_due(every: u64, version: u64) -> bool {
    every > 0 && (version == 1 || version.is_multiple_of(every))
}

/// How values are spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Values counted: the finite ones.
    pub count: u64,
    /// Values that are not finite.
    pub not_finite: u64,
    /// The smallest.
    pub min: f32,
    /// The greatest.
    pub max: f32,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
    /// The buckets that hold some, ascending, with how many.
    pub buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// Values in all.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.count.saturating_add(self.not_finite)
    }

    /// Whether some values can be spread so: a peer that says otherwise is wrong.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let ascends = self.buckets.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let known = self.buckets.iter().all(|(bucket, count)| u32::from(*bucket) < BUCKETS && *count > 0);
        let counted = self.buckets.iter().try_fold(0_u64, |sum, (_, count)| sum.checked_add(*count));
        let numbers = self.min.is_finite()
            && self.max.is_finite()
            && self.min <= self.max
            && self.sum.is_finite()
            && self.squares.is_finite()
            && self.squares >= 0.0;
        ascends && known && counted == Some(self.count) && numbers
    }

    /// The buckets that hold some, ascending: lower limit, upper limit, how many. The outermost reach as far as the values do.
    pub fn limits(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        self.buckets.iter().map(|(bucket, count)| {
            let (low, high) = limits(u32::from(*bucket));
            (low.max(f64::from(self.min).min(high)), high.min(f64::from(self.max).max(low)), *count)
        })
    }
}

/// Counts values, and adds histograms up.
#[derive(Clone, Debug)]
pub struct Tally {
    counts: Vec<u64>,
    not_finite: u64,
    min: f32,
    max: f32,
    sum: f64,
    squares: f64,
}

impl Default for Tally {
    fn default() -> Tally {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Tally { counts: vec![0; BUCKETS as usize], not_finite: 0, min, max, sum: 0.0, squares: 0.0 }
    }
}

impl Tally {
    /// Counts values.
    pub fn count(&mut self, values: impl IntoIterator<Item = f32>) {
        for value in values {
            if !value.is_finite() {
                self.not_finite += 1;
                continue;
            }
            if let Some(count) = self.counts.get_mut(bucket(value) as usize) {
                *count += 1;
            }
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            self.sum += f64::from(value);
            self.squares += f64::from(value) * f64::from(value);
        }
    }

    /// Adds what was counted elsewhere, which [is possible](Histogram::is_possible).
    pub fn add(&mut self, other: &Histogram) {
        for (bucket, more) in &other.buckets {
            if let Some(count) = self.counts.get_mut(usize::from(*bucket)) {
                *count = count.saturating_add(*more);
            }
        }
        self.not_finite = self.not_finite.saturating_add(other.not_finite);
        if other.count > 0 {
            self.min = self.min.min(other.min);
            self.max = self.max.max(other.max);
        }
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// What was counted.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        let held = (0_u16..).zip(&self.counts).filter(|(_, count)| **count > 0);
        // No larger than it has to be: many of them are kept.
        let mut buckets: Vec<(u16, u64)> = Vec::with_capacity(held.clone().count());
        buckets.extend(held.map(|(bucket, count)| (bucket, *count)));
        let count = buckets.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        let (min, max) = if count > 0 { (self.min, self.max) } else { (0.0, 0.0) };
        let Tally { not_finite, sum, squares, .. } = *self;
        Histogram { count, not_finite, min, max, sum, squares, buckets }
    }
}

/// The bucket of a finite value: ascending with it.
fn bucket(value: f32) -> u32 {
    let bits = value.to_bits();
    let magnitude = (bits & 0x7fff_ffff) >> (23 - FRACTION_BITS);
    match magnitude.checked_sub(LOWEST << FRACTION_BITS) {
        None => SIDE,
        Some(at) if bits >> 31 == 0 => SIDE + 1 + at.min(SIDE - 1),
        Some(at) => SIDE - 1 - at.min(SIDE - 1),
    }
}

/// A bucket's limits; those of the outermost are where the next would begin.
fn limits(bucket: u32) -> (f64, f64) {
    let edge = |at: u32| {
        let bits = (LOWEST << FRACTION_BITS).saturating_add(at.min(SIDE)) << (23 - FRACTION_BITS);
        f64::from(f32::from_bits(bits))
    };
    let outermost = |at: u32| if at + 1 == SIDE { f64::MAX } else { edge(at + 1) };
    match bucket.cmp(&SIDE) {
        std::cmp::Ordering::Equal => (-edge(0), edge(0)),
        std::cmp::Ordering::Greater => (edge(bucket - SIDE - 1), outermost(bucket - SIDE - 1)),
        std::cmp::Ordering::Less => (-outermost(SIDE - 1 - bucket), -edge(SIDE - 1 - bucket)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut tally = Tally::default();
        tally.count(values.iter().copied());
        tally.histogram()
    }

    #[test]
    fn values_are_where_their_buckets_say() {
        let histogram = of(&[0.0, -0.0, 1e-20, 1.0, 1.1, 1.2, -3.0, 1e9, f32::NAN, f32::INFINITY]);
        assert_eq!((histogram.count, histogram.not_finite, histogram.values()), (8, 2, 10));
        assert_eq!((histogram.min, histogram.max), (-3.0, 1e9));
        let limits: Vec<(f64, f64, u64)> = histogram.limits().collect();
        let tiny = 2f64.powi(-40);
        let expected =
            [(-3.0, -3.0, 1), (-tiny, tiny, 3), (1.0, 1.125, 2), (1.125, 1.25, 1), (61_440.0, 1e9, 1)];
        assert_eq!(limits, expected);
        let nothing = of(&[]);
        assert!(nothing.is_possible() && nothing.buckets.is_empty());
        let flat = of(&[2.0; 5]);
        assert_eq!(flat.limits().collect::<Vec<_>>(), [(2.0, 2.0, 5)]);
    }

    /// Invariant 3.
    #[test]
    fn what_cannot_be_is_known() {
        let good = of(&[1.0, 2.0, -4.0]);
        assert!(good.is_possible());
        let with = |change: fn(&mut Histogram)| {
            let mut histogram = good.clone();
            change(&mut histogram);
            histogram
        };
        for (what, bad) in [
            ("a count that is not the buckets'", with(|h| h.count += 1)),
            ("a bucket that there is not", with(|h| h.buckets[2].0 = BUCKETS as u16)),
            ("a bucket twice", with(|h| h.buckets[1].0 = h.buckets[0].0)),
            ("buckets that descend", with(|h| h.buckets.reverse())),
            ("an empty bucket", with(|h| h.buckets[0].1 = 0)),
            ("counts that overflow", with(|h| h.buckets[0].1 = u64::MAX)),
            ("no smallest", with(|h| h.min = f32::NAN)),
            ("a smallest above the greatest", with(|h| h.min = 3.0)),
            ("an endless sum", with(|h| h.sum = f64::INFINITY)),
            ("a square below zero", with(|h| h.squares = -1.0)),
        ] {
            assert!(!bad.is_possible(), "{what}");
        }
    }

    proptest! {
        /// Invariant 1: however values are cut, and in whatever order parts come.
        #[test]
        fn parts_add_up(values in prop::collection::vec(any::<f32>(), 0..200), cut in 0_usize..200) {
            let (left, right) = values.split_at(cut.min(values.len()));
            let mut tally = Tally::default();
            tally.add(&of(right));
            tally.add(&of(left));
            let (whole, parts) = (of(&values), tally.histogram());
            prop_assert_eq!(&whole.buckets, &parts.buckets);
            prop_assert_eq!((whole.count, whole.not_finite), (parts.count, parts.not_finite));
            prop_assert_eq!((whole.min, whole.max), (parts.min, parts.max));
        }

        /// Invariants 1 and 2.
        #[test]
        fn a_value_is_between_the_limits_of_its_bucket(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assume!(value.is_finite());
            let bucket = bucket(value);
            prop_assert!(bucket < BUCKETS);
            let (low, high) = limits(bucket);
            prop_assert!(low <= f64::from(value) && f64::from(value) <= high, "{} {} {}", low, value, high);
        }
    }
}

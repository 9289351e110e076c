//! Sorting many short columns at once: a network of comparisons on rows, each of which vectorizes.
//!
//! 1. Which comparisons are made depends on the number of votes alone, never on a value: no branch, the same time for any input.
//! 2. Rows hold keys, integers in the order of IEEE 754's `totalOrder`: sorting them moves bits and computes nothing.

use std::ops::Range;

/// Columns that are sorted together: four vectors of the widest instruction set.
pub(super) const LANES: usize = 64;

/// One vote's keys in a block of columns.
pub(super) type Row = [i32; LANES];

/// Batcher's merge exchange (Knuth, "The Art of Computer Programming", volume 3, algorithm 5.2.2M) for `n` rows, without the
/// comparisons that no row in `wanted` depends on. Each pair puts the lesser first.
pub(crate) fn sorting(n: usize, wanted: Range<usize>) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let top = n.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            pairs.extend((0..n.saturating_sub(d)).filter(|i| i & p == r).map(|i| (i, i + d)));
            if q == p {
                break;
            }
            d = q - p;
            q /= 2;
            r = p;
        }
        p /= 2;
    }
    let mut needed: Vec<bool> = (0..n).map(|row| wanted.contains(&row)).collect();
    let mut kept: Vec<(usize, usize)> = Vec::with_capacity(pairs.len());
    for (low, high) in pairs.into_iter().rev() {
        if needed.get(low) == Some(&true) || needed.get(high) == Some(&true) {
            for row in [low, high] {
                if let Some(row) = needed.get_mut(row) {
                    *row = true;
                }
            }
            kept.push((low, high));
        }
    }
    kept.reverse();
    kept
}

/// The keys of `values`; columns beyond them are left as they are, and mean nothing.
#[inline(always)]
pub(super) fn load(values: &[f32], row: &mut Row) {
    for (key, value) in row.iter_mut().zip(values) {
        *key = flip(value.to_bits() as i32);
    }
}

/// Carries out the network.
#[inline(always)]
pub(super) fn sort(network: &[(usize, usize)], rows: &mut [Row]) {
    for (low, high) in network {
        if let Some((head, tail)) = rows.split_at_mut_checked(*high)
            && let (Some(low), Some(high)) = (head.get_mut(*low), tail.first_mut())
        {
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                *low = a.min(b);
                *high = a.max(b);
            }
        }
    }
}

/// The mean of `rows`, which ascend, into `out`: summed in that order in `f64`, divided, rounded once to `f32`.
#[inline(always)]
pub(super) fn mean(rows: &[Row], out: &mut [f32]) {
    let Some((lowest, others)) = rows.split_first() else { return };
    let value = |key: i32| f64::from(f32::from_bits(flip(key) as u32));
    let mut sums = lowest.map(value);
    for row in others {
        for (sum, key) in sums.iter_mut().zip(row) {
            *sum += value(*key);
        }
    }
    let count = rows.len() as f64;
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum / count) as f32;
    }
}

/// Between the bits of a number and its key: below zero, greater bits are lesser numbers. It is its own inverse.
#[inline(always)]
fn flip(bits: i32) -> i32 {
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 0-1 principle (Knuth, theorem 5.3.4Z): a network that sorts every sequence of zeros and ones sorts everything.
    #[test]
    fn sorts_every_sequence_of_zeros_and_ones() {
        for n in 1..=12_usize {
            let network = sorting(n, 0..n);
            for case in 0..1_u32 << n {
                let mut bits: Vec<u32> = (0..n).map(|i| case >> i & 1).collect();
                for (low, high) in &network {
                    if bits[*low] > bits[*high] {
                        bits.swap(*low, *high);
                    }
                }
                assert!(bits.is_sorted(), "{n}: {case:b}");
            }
        }
    }

    /// What is pruned is not missed: the wanted rows are right.
    #[test]
    fn a_pruned_network_still_has_its_middle_right() {
        for n in 1..=12_usize {
            for trim in 0..=(n - 1) / 2 {
                let network = sorting(n, trim..n - trim);
                for case in 0..1_u32 << n {
                    let mut bits: Vec<u32> = (0..n).map(|i| case >> i & 1).collect();
                    let mut sorted = bits.clone();
                    sorted.sort_unstable();
                    for (low, high) in &network {
                        if bits[*low] > bits[*high] {
                            bits.swap(*low, *high);
                        }
                    }
                    assert_eq!(bits[trim..n - trim], sorted[trim..n - trim], "{n}, {trim}: {case:b}");
                }
            }
        }
        assert!(sorting(15, 7..8).len() < sorting(15, 0..15).len());
    }

    #[test]
    fn keys_are_in_the_total_order() {
        let ascending = [
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            -f32::from_bits(1),
            -0.0,
            0.0,
            f32::from_bits(1),
            f32::MIN_POSITIVE,
            1.0,
            f32::MAX,
        ];
        let keys = ascending.map(|value| flip(value.to_bits() as i32));
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        for value in ascending {
            let bits = value.to_bits() as i32;
            assert_eq!(flip(flip(bits)), bits);
        }
    }
}

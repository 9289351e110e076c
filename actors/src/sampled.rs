//! The steps that nodes speak of where they cannot speak of all: chosen alike by everybody, without a word.
//!
//! Steps are ranked by the greatest power of two that divides their number, counted from 1. Of the steps since it last spoke, a node
//! speaks of the newest of the highest rank. Of `n` steps in a row, `2^k <= n < 2^(k+1)`, one at most is of a rank above `k`, and whoever
//! has it among its own speaks of it: so nodes that speak about equally often have a step in common at least every fourth time.

/// The rank of `step`, which counts from 0.
#[must_use]
pub(crate) fn rank(step: u64) -> u32 {
    step.wrapping_add(1).trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two that speak at different moments, and not quite equally often, have steps in common.
    #[test]
    fn who_speaks_about_equally_often_has_steps_in_common() {
        for (mine, others) in [(1, 1), (3, 4), (7, 7), (37, 41), (100, 100), (1_000, 1_010)] {
            let told = |every: u64, first: u64| {
                let best = |from: u64| (from..from + every).max_by_key(|step| (rank(*step), *step)).unwrap();
                (0..20).map(move |nth| best(first + nth * every)).collect::<Vec<_>>()
            };
            let (one, other) = (told(mine, 0), told(others, mine / 2));
            let common = one.iter().filter(|step| other.contains(step)).count();
            assert!(common >= 4, "{mine} and {others}: {one:?} {other:?}");
        }
        assert_eq!((rank(0), rank(1), rank(7), rank(u64::MAX)), (0, 1, 3, 64));
    }
}

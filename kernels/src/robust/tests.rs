use proptest::prelude::*;

use super::*;
use crate::simd::forced;

const MEDIAN: Aggregation = Aggregation::Median { hostile: 0 };

/// By the definition, one coordinate at a time.
fn naive(trim: usize, votes: &[Vec<f32>]) -> Vec<u32> {
    (0..votes[0].len())
        .map(|at| {
            let mut column: Vec<f32> = votes.iter().map(|vote| vote[at]).collect();
            column.sort_by(f32::total_cmp);
            let kept = &column[trim..column.len() - trim];
            let sum = kept[1..].iter().fold(f64::from(kept[0]), |sum, value| sum + f64::from(*value));
            ((sum / kept.len() as f64) as f32).to_bits()
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Any finite number, each exponent as likely as another: subnormal, huge, either zero.
fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite())
}

fn votes() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1_usize..14, 0_usize..150)
        .prop_flat_map(|(n, d)| prop::collection::vec(prop::collection::vec(finite(), d..=d), n..=n))
}

#[test]
fn small_cases_by_hand() {
    let column = |values: &[f32]| values.iter().map(|value| vec![*value]).collect::<Vec<_>>();
    let of = |rule: Aggregation, values: &[f32]| rule.aggregate(column(values)).unwrap()[0];
    assert_eq!(of(MEDIAN, &[3.0]), 3.0);
    assert_eq!(of(MEDIAN, &[3.0, -1.0]), 1.0);
    assert_eq!(of(MEDIAN, &[9.0, 1.0, 2.0]), 2.0);
    assert_eq!(of(MEDIAN, &[1.0, 1e30, -1e30, 4.0]), 2.5);
    let trimmed = |hostile| Aggregation::TrimmedMean { hostile };
    assert_eq!(of(trimmed(0), &[1.0, 2.0, 6.0]), 3.0);
    assert_eq!(of(trimmed(1), &[-1e38, 2.0, 5.0, 3e38, 8.0]), 5.0);
    assert_eq!(of(trimmed(2), &[-1e38, 2.0, 5.0, 3e38, 8.0]), of(MEDIAN, &[-1e38, 2.0, 5.0, 3e38, 8.0]));
    // Neither the sum of the greatest numbers nor the mean of the least ones is lost.
    assert_eq!(of(trimmed(0), &[f32::MAX; 5]), f32::MAX);
    assert_eq!(of(MEDIAN, &[f32::from_bits(2), f32::from_bits(4)]).to_bits(), 3);
    assert_eq!(of(MEDIAN, &[0.0, -0.0, -0.0]).to_bits(), (-0.0_f32).to_bits());
}

#[test]
fn what_cannot_be_aggregated_is_refused() {
    let votes = |n: usize| vec![vec![1.0]; n];
    let two = Aggregation::TrimmedMean { hostile: 2 };
    assert_eq!(two.aggregate(votes(4)), Err(AggregationError::TooFew { votes: 4, hostile: 2, least: 5 }));
    assert_eq!(two.aggregate(votes(5)), Ok(vec![1.0]));
    assert_eq!(MEDIAN.aggregate(vec![]), Err(AggregationError::TooFew { votes: 0, hostile: 0, least: 1 }));
    let most = MOST_VOTES as usize;
    assert_eq!(
        MEDIAN.aggregate(votes(most + 1)),
        Err(AggregationError::TooMany { votes: most + 1, most: MOST_VOTES })
    );
    assert_eq!(Aggregation::Mean.aggregate(votes(3)), Err(AggregationError::NoRule));
    let uneven = vec![vec![1.0], vec![1.0, 2.0], vec![]];
    assert_eq!(MEDIAN.aggregate(uneven), Err(AggregationError::Length { expected: 1, found: 2 }));
    let all = Aggregation::TrimmedMean { hostile: u32::MAX };
    assert!(matches!(all.aggregate(votes(7)), Err(AggregationError::TooFew { .. })));
    let krum = Aggregation::Krum { hostile: 2 };
    assert_eq!(krum.check(6), Err(AggregationError::TooFew { votes: 6, hostile: 2, least: 7 }));
    assert_eq!(krum.check(129), Err(AggregationError::TooMany { votes: 129, most: MOST_WEIGHED }));
    assert_eq!(krum.aggregate(votes(7)), Err(AggregationError::Whole));
    for bound in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let (hostile, radius) = (2, bound);
        let refused =
            [Aggregation::CentredClipping { hostile, radius }, Aggregation::NormBound { hostile, bound }];
        assert!(
            refused.iter().all(|rule| matches!(rule.check(7), Err(AggregationError::Bound(_)))),
            "{bound}"
        );
    }
}

#[test]
fn bears_what_it_drops() {
    assert_eq!([5, 6, 7].map(|n| Aggregation::Median { hostile: 1 }.bears(n)), [2, 2, 3]);
    assert_eq!(Aggregation::TrimmedMean { hostile: 1 }.bears(7), 1);
    assert_eq!(Aggregation::Mean.bears(7), 0);
    assert_eq!(Aggregation::GeometricMedian { hostile: 1 }.bears(7), 3);
    assert_eq!(Aggregation::MultiKrum { hostile: 1 }.bears(7), 1);
}

/// Invariant 1, at every width: subnormals have the same bits, flushed nowhere.
#[test]
fn every_width_gives_the_same_bits() {
    let value = |vote: u32, at: u32| {
        let bits = (vote * 7919 + at).wrapping_mul(0x9e37_79b9);
        // Half of them subnormal.
        f32::from_bits(if at.is_multiple_of(2) { bits & 0x807f_ffff } else { bits & 0xbfff_ffff })
    };
    let votes: Vec<Vec<f32>> = (0..9).map(|vote| (0..1000).map(|at| value(vote, at)).collect()).collect();
    for rule in [MEDIAN, Aggregation::TrimmedMean { hostile: 2 }, Aggregation::TrimmedMean { hostile: 0 }] {
        let trim = rule.bears(9) as usize;
        forced::assert_same(|| bits(&rule.aggregate(votes.clone()).unwrap()));
        assert_eq!(bits(&rule.aggregate(votes.clone()).unwrap()), naive(trim, &votes));
    }
    forced::assert_same(|| {
        let mut sum = votes[0].clone();
        divide(&mut sum, 3.0);
        bits(&sum)
    });
}

proptest! {
    /// Invariants 1 and 2.
    #[test]
    fn rules_are_their_definitions(votes in votes(), share in 0.0_f64..1.0, turn in any::<prop::sample::Index>()) {
        let n = votes.len();
        let trim = (((n - 1) / 2) as f64 * share).round() as u32;
        let rule = Aggregation::TrimmedMean { hostile: trim };
        let result = rule.aggregate(votes.clone()).unwrap();
        prop_assert!(result.iter().all(|value| value.is_finite()));
        prop_assert_eq!(bits(&result), naive(trim as usize, &votes));
        let median = MEDIAN.aggregate(votes.clone()).unwrap();
        prop_assert_eq!(bits(&median), naive((n - 1) / 2, &votes));
        let mut turned = votes;
        turned.rotate_left(turn.index(n));
        turned.reverse();
        prop_assert_eq!(bits(&rule.aggregate(turned).unwrap()), bits(&result));
    }

    /// Invariant 3, whatever the liars say.
    #[test]
    fn liars_cannot_leave_the_honest_votes(f in 0_usize..4, spare in 1_usize..5, seed in votes(), lies in prop::collection::vec(finite(), 4..=4)) {
        let honest: Vec<Vec<f32>> = seed.iter().cycle().take(f + spare).cloned().collect();
        let d = honest[0].len();
        let mut votes = honest.clone();
        for lie in &lies[..f] { votes.insert(votes.len() / 2, vec![*lie; d]); }
        let hostile = f as u32;
        for rule in [Aggregation::Median { hostile }, Aggregation::TrimmedMean { hostile }] {
            let result = rule.aggregate(votes.clone()).unwrap();
            for at in 0..d {
                let column: Vec<f32> = honest.iter().map(|vote| vote[at]).collect();
                let least = column.iter().copied().fold(f32::INFINITY, f32::min);
                let greatest = column.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                prop_assert!((least..=greatest).contains(&result[at]), "{} is not in {column:?}", result[at]);
            }
        }
    }
}

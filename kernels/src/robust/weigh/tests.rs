use proptest::prelude::*;

use super::*;
use crate::simd::forced;

const KRUM: Aggregation = Aggregation::Krum { hostile: 2 };
const MULTI: Aggregation = Aggregation::MultiKrum { hostile: 2 };
const GEOMETRIC: Aggregation = Aggregation::GeometricMedian { hostile: 2 };
const CENTRED: Aggregation = Aggregation::CentredClipping { hostile: 2, radius: 2.0 };
const BOUND: Aggregation = Aggregation::NormBound { hostile: 2, bound: 2.0 };
const RULES: [Aggregation; 5] = [KRUM, MULTI, GEOMETRIC, CENTRED, BOUND];

/// The weights of `vectors`, the previous aggregate last where the rule keeps it.
fn weigh(weighing: Weighing, vectors: &[Vec<f32>], divisor: f64) -> Weights {
    let mut products = weighing.products();
    products.add(0, &vectors.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    let weights = weighing.weigh(&products, divisor).unwrap();
    assert!(weights.are_safe(), "{weights:?}");
    weights
}

/// The rule's result, from a previous aggregate of zeros.
fn result(rule: Aggregation, votes: &[Vec<f32>]) -> Vec<f32> {
    let mut vectors = votes.to_vec();
    if rule.keeps_aggregate() {
        vectors.push(vec![0.0; votes[0].len()]);
    }
    let weights = weigh(Weighing::new(rule, None, votes.len()).unwrap(), &vectors, 1.0);
    weights.combine(vectors).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

fn norm(a: &[f32]) -> f64 {
    distance(a, &vec![0.0; a.len()])
}

fn close(a: &[f32], b: &[f64]) -> bool {
    let size = b.iter().fold(0.0, |most: f64, b| most.max(b.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-6 * size)
}

/// Votes near (3, 3, 3, ...), each its own way.
fn honest(count: usize, length: usize) -> Vec<Vec<f32>> {
    let value = |vote: usize, at: usize| 3.0 + ((vote * 31 + at * 17) % 23) as f32 / 23.0;
    (0..count).map(|vote| (0..length).map(|at| value(vote, at)).collect()).collect()
}

/// The paper's definition, on vectors.
fn krum_of(votes: &[Vec<f32>], hostile: usize, kept: usize) -> Vec<f64> {
    let score = |i: usize| -> f64 {
        let others = (0..votes.len()).filter(|j| *j != i);
        let mut distances: Vec<f64> = others.map(|j| distance(&votes[i], &votes[j]).powi(2)).collect();
        distances.sort_by(f64::total_cmp);
        distances[..votes.len() - hostile - 2].iter().sum()
    };
    let mut order: Vec<usize> = (0..votes.len()).collect();
    order.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
    let sum = |at: usize| order[..kept].iter().map(|vote| f64::from(votes[*vote][at])).sum::<f64>();
    (0..votes[0].len()).map(|at| sum(at) / kept as f64).collect()
}

#[test]
fn krum_is_its_definition() {
    for (n, hostile) in [(7_usize, 2_u32), (5, 1), (9, 2), (3, 0)] {
        let mut votes = honest(n, 40);
        votes[1] = vec![-30.0; 40];
        let (krum, multi) = (Aggregation::Krum { hostile }, Aggregation::MultiKrum { hostile });
        let kept = n - hostile as usize - 2;
        assert!(close(&result(krum, &votes), &krum_of(&votes, hostile as usize, 1)));
        assert!(close(&result(multi, &votes), &krum_of(&votes, hostile as usize, kept)));
        assert!(votes.contains(&result(krum, &votes)), "one vote, bit for bit");
    }
    // Of equal scores, the first vote's.
    let votes = vec![vec![1.0], vec![0.0], vec![1.0], vec![0.0], vec![1.0], vec![0.0], vec![0.0]];
    let weights = weigh(Weighing::new(KRUM, None, 7).unwrap(), &votes, 1.0);
    assert_eq!(weights.of, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

/// The sum of distances, which the geometric median makes the least.
fn distances(point: &[f32], votes: &[Vec<f32>]) -> f64 {
    votes.iter().map(|vote| distance(point, vote)).sum()
}

#[test]
fn the_geometric_median_is_the_least_of_distances() {
    let mut votes = honest(7, 30);
    (votes[0], votes[5]) = (vec![-300.0; 30], vec![2000.0; 30]);
    let median = result(GEOMETRIC, &votes);
    let least = distances(&median, &votes);
    for at in 0..30 {
        for step in [-0.01, 0.01] {
            let mut other = median.clone();
            other[at] += step;
            assert!(distances(&other, &votes) > least, "element {at}");
        }
    }
    // Weiszfeld's rounds, on vectors.
    let mut point: Vec<f64> = median.iter().map(|value| f64::from(*value) + 0.1).collect();
    for _ in 0..500 {
        let near: Vec<f32> = point.iter().map(|value| *value as f32).collect();
        let weights: Vec<f64> = votes.iter().map(|vote| 1.0 / distance(&near, vote)).collect();
        let sum: f64 = weights.iter().sum();
        let mean =
            |at: usize| votes.iter().zip(&weights).map(|(v, w)| f64::from(v[at]) * w).sum::<f64>() / sum;
        point = (0..30).map(mean).collect();
    }
    assert!(point.iter().zip(&median).all(|(a, b)| (a - f64::from(*b)).abs() < 1e-4), "{point:?} {median:?}");
    // On a line, it is the median; where a majority agrees, it is that.
    let line: Vec<Vec<f32>> = [5.0, 1.0, 2.0, 1e6, -1e6].map(|value| vec![value]).to_vec();
    assert!((result(GEOMETRIC, &line)[0] - 2.0).abs() < 1e-3, "{:?}", result(GEOMETRIC, &line));
    let agreed = vec![vec![0.1, 7.0], vec![9.0, 9.0], vec![0.1, 7.0], vec![0.1, 7.0], vec![-4.0, 0.0]];
    assert_eq!(result(GEOMETRIC, &agreed), [0.1, 7.0]);
}

#[test]
fn clipping_is_its_definition() {
    let mut vectors = honest(5, 20);
    vectors[2] = vec![-1e4; 20];
    let previous = vec![2.5; 20];
    vectors.push(previous.clone());
    let rule = Aggregation::CentredClipping { hostile: 2, radius: 4.0 };
    let weights = weigh(Weighing::new(rule, None, 5).unwrap(), &vectors, 1.0);
    let moved = |at: usize| {
        let terms = vectors[..5].iter().map(|vote| {
            let factor = (4.0 / distance(vote, &previous)).min(1.0);
            factor * (f64::from(vote[at]) - f64::from(previous[at])) / 5.0
        });
        f64::from(previous[at]) + terms.sum::<f64>()
    };
    let expected: Vec<f64> = (0..20).map(moved).collect();
    assert!(close(&weights.combine(vectors.clone()).unwrap(), &expected));

    let votes = &vectors[..5];
    let mean =
        |at: usize| votes.iter().map(|v| f64::from(v[at]) * (2.0 / norm(v)).min(1.0)).sum::<f64>() / 5.0;
    assert!(close(&result(BOUND, votes), &(0..20).map(mean).collect::<Vec<_>>()));
    // Where nothing is too long, it is the mean.
    let short: Vec<Vec<f32>> = vec![vec![0.5, 1.0], vec![1.5, -1.0], vec![-0.5, 0.0]];
    assert!(close(&result(BOUND, &short), &[0.5, 0.0]));
}

/// As `torch.nn.utils.clip_grad_norm_` computes it, but for the 1e-6 that it adds to the norm.
#[test]
fn a_clipped_gradient_has_the_norm_that_was_asked_for() {
    let sum: Vec<f32> = (0..3000).map(|at| ((at * 37) % 101) as f32 - 40.0).collect();
    let true_norm = norm(&sum) / 8.0;
    for rule in [Aggregation::Mean, Aggregation::Median { hostile: 1 }] {
        let clipped = |most: f64| {
            let weights = weigh(Weighing::new(rule, Some(most), 9).unwrap(), std::slice::from_ref(&sum), 8.0);
            let mut gradient = weights.combine(vec![sum.clone()]).unwrap();
            clip(&mut gradient, weights.clip);
            gradient
        };
        assert!((norm(&clipped(2.5)) / 8.0 - 2.5).abs() < 1e-5);
        assert_eq!(clipped(true_norm * 1.001), sum, "what is short enough is left as it is");
        assert_eq!(Weighing::new(rule, None, 9), None, "and no slice waits where nothing is clipped");
    }
    // A rule's result is clipped, not its votes.
    for rule in RULES {
        let mut vectors = honest(7, 30);
        vectors[3] = vec![-500.0; 30];
        if rule.keeps_aggregate() {
            vectors.push(vec![1.0; 30]);
        }
        let free = weigh(Weighing::new(rule, None, 7).unwrap(), &vectors, 1.0);
        let clipped = weigh(Weighing::new(rule, Some(0.75), 7).unwrap(), &vectors, 1.0);
        assert_eq!(free.of, clipped.of, "{rule}");
        let mut gradient = clipped.combine(vectors).unwrap();
        clip(&mut gradient, clipped.clip);
        assert!((norm(&gradient) - 0.75).abs() < 1e-6, "{rule}");
    }
}

/// Invariants 1 and 3: neither cuts between blocks nor widths change a bit.
#[test]
fn slices_are_combined_as_one() {
    for rule in RULES {
        let mut vectors = honest(7, 5000);
        vectors[1] = vec![1e30; 5000];
        if rule.keeps_aggregate() {
            vectors.push(vec![1.0; 5000]);
        }
        let weighing = Weighing::new(rule, Some(1.0), 7).unwrap();
        let cut = |every: usize| {
            let slices = |first: usize| -> Vec<Vec<f32>> {
                vectors.iter().map(|v| v[first..v.len().min(first + every)].to_vec()).collect()
            };
            let mut products = weighing.products();
            for first in (0..5000).step_by(every).rev() {
                let slices = slices(first);
                products.add(first, &slices.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            }
            let weights = weighing.weigh(&products, 1.0).unwrap();
            let mut whole = Vec::new();
            for first in (0..5000).step_by(every) {
                let mut gradient = weights.combine(slices(first)).unwrap();
                clip(&mut gradient, weights.clip);
                whole.extend(gradient.iter().map(|value| value.to_bits()));
            }
            whole
        };
        forced::assert_same(|| cut(5000));
        assert_eq!(cut(1024), cut(5000), "{rule}");
        assert_eq!(cut(3072), cut(5000), "{rule}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let weighing = Weighing::new(CENTRED, None, 7).unwrap();
    assert_eq!((weighing.vectors(), weighing.products().vectors()), (8, 8));
    let others = Weighing::new(KRUM, None, 7).unwrap().products();
    assert_eq!(weighing.weigh(&others, 1.0), Err(AggregationError::Vectors { expected: 8, found: 7 }));
    let norms = Weighing::new(BOUND, None, 7).unwrap();
    assert_eq!(norms.products().size(), 7 * 80);
    assert!(norms.weigh(&others, 1.0).is_err());
    let weights = Weights { of: vec![0.5; 2], clip: 1.0 };
    assert!(weights.combine(vec![vec![1.0]]).is_err());
    assert!(weights.combine(vec![vec![1.0], vec![]]).is_err());
    assert!(Weights { of: vec![], clip: 1.0 }.combine(vec![]).is_err());
    for of in [vec![f64::NAN], vec![-0.1], vec![0.6, 0.6]] {
        assert!(!Weights { of, clip: 1.0 }.are_safe());
    }
}

/// Any finite number, each exponent as likely as another: subnormal, huge, either zero.
fn finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite())
}

proptest! {
    /// Invariant 2 for hostile votes: huge, subnormal, zero, identical.
    #[test]
    fn any_finite_votes_give_finite_results(
        lies in prop::collection::vec(prop::collection::vec(finite(), 6..=6), 1..=7),
        copies in 0_usize..7,
        clipped in any::<bool>(),
    ) {
        let mut votes: Vec<Vec<f32>> = lies.iter().cycle().take(7).cloned().collect();
        for at in 0..copies { votes[at] = votes[0].clone(); }
        for rule in RULES {
            let mut vectors = votes.clone();
            if rule.keeps_aggregate() { vectors.push(votes[6].clone()); }
            let weighing = Weighing::new(rule, clipped.then_some(1e-3), 7).unwrap();
            let weights = weigh(weighing, &vectors, 1.0);
            let mut gradient = weights.combine(vectors).unwrap();
            clip(&mut gradient, weights.clip);
            prop_assert!(gradient.iter().all(|value| value.is_finite()), "{} {:?}", rule, weights);
        }
    }

    /// Invariant 2 for hostile servers: whatever bytes they send for products.
    #[test]
    fn any_products_give_safe_weights(bytes in prop::collection::vec(any::<u8>(), 80..400), clipped in any::<bool>()) {
        for rule in RULES {
            let weighing = Weighing::new(rule, clipped.then_some(1.0), 7).unwrap();
            let empty = weighing.products();
            let said: Vec<u8> = bytes.iter().cycle().take(empty.size()).copied().collect();
            let weights = weighing.weigh(&empty.from_bytes(&said).unwrap(), 1.0).unwrap();
            prop_assert!(weights.are_safe(), "{} {:?}", rule, weights);
        }
    }

    /// No rule looks at who voted what, but where votes are equally good: turned votes have turned weights, to rounding.
    #[test]
    fn the_order_of_votes_does_not_matter(
        votes in prop::collection::vec(prop::collection::vec(-10.0_f32..10.0, 6..=6), 7..=7),
        turn in 1_usize..7,
    ) {
        let mut turned = votes.clone();
        turned.rotate_left(turn);
        for rule in RULES {
            let (one, other) = (result(rule, &votes), result(rule, &turned));
            prop_assert!(distance(&one, &other) <= 1e-4 * (1.0 + norm(&one)), "{}: {:?} {:?}", rule, one, other);
        }
    }

    /// Two of seven, who say what they like: the result stays near honest votes, all of which lie within `spread` of their centre.
    #[test]
    fn two_of_seven_move_the_result_boundedly(
        lies in prop::collection::vec(prop::collection::vec(finite(), 8..=8), 2..=2),
        places in (0_usize..6, 0_usize..7),
    ) {
        let mut votes = honest(5, 8);
        let centre = [3.5_f32; 8];
        let spread = votes.iter().fold(0.0, |most: f64, vote| most.max(distance(vote, &centre)));
        votes.insert(places.0, lies[0].clone());
        votes.insert(places.1, lies[1].clone());
        for rule in [KRUM, MULTI] {
            // A kept vote's n - f - 2 nearest hold an honest one, and its score is no more than an honest vote's: three times
            // (2 spread)^2.
            let most = (12.0_f64).sqrt() * spread + spread;
            prop_assert!(distance(&result(rule, &votes), &centre) <= most * 1.001, "{}", rule);
        }
        // The bound of a minimiser, 2 (n - f) / (n - 2 f) = 10 / 3 of the spread, and as much again for the rounds that end.
        prop_assert!(distance(&result(GEOMETRIC, &votes), &centre) <= 20.0 / 3.0 * spread);
        // No vote moves the aggregate by more than its share of the radius.
        let most = 2.0 * (1.0 + 1e-6);
        for rule in [CENTRED, BOUND] {
            prop_assert!(norm(&result(rule, &votes)) <= most, "{}", rule);
            let mut honest_alone = votes.clone();
            for lie in &lies { honest_alone.iter_mut().filter(|v| *v == lie).for_each(|v| v.fill(0.0)); }
            let moved = distance(&result(rule, &votes), &result(rule, &honest_alone));
            prop_assert!(moved <= 2.0 / 7.0 * most, "{}: {}", rule, moved);
        }
    }
}

//! Attention against a plain computation in `f64` that keeps every probability.

use super::*;
use crate::simd::forced;

#[derive(Clone)]
struct Case {
    attention: Attention,
    positions: usize,
    drops: Option<Drops>,
    /// Row-major [tokens, 3 heads size].
    qkv: Vec<f32>,
    /// Row-major [tokens, heads size].
    dy: Vec<f32>,
}

/// Results, and the gradient of queries, keys and values, in rows.
struct Done {
    out: Vec<f32>,
    gradient: Vec<f32>,
}

impl Case {
    fn new(heads: usize, size: usize, positions: usize, examples: usize) -> Case {
        let numbers = |count: usize, by: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * by + i / 7) % 211) as f32 * 0.012 - 1.25).collect()
        };
        let width = heads * size;
        let tokens = positions * examples;
        let qkv = numbers(tokens * 3 * width, 83);
        let attention = Attention { heads, size, precision: Precision::F32 };
        Case { attention, positions, drops: None, qkv, dy: numbers(tokens * width, 59) }
    }

    fn tokens(&self) -> usize {
        self.qkv.len() / (3 * self.attention.width())
    }

    fn run(&self) -> Done {
        let (tokens, width) = (self.tokens(), self.attention.width());
        let panels = Panels::new(tokens);
        let spread = |rows: &[f32], features| {
            let mut values = vec![f32::NAN; panels.elements(features)];
            panels.fill(rows, features, &mut values);
            values
        };
        let (qkv, dy) = (spread(&self.qkv, 3 * width), spread(&self.dy, width));
        let mut out = vec![f32::NAN; panels.elements(width)];
        let mut gradient = vec![f32::NAN; panels.elements(3 * width)];
        let mut kept = vec![f32::NAN; tokens * self.attention.heads];
        let mut scratch = Scratch::new(self.attention, self.positions, 1).unwrap();
        let (attention, positions, drops) = (self.attention, self.positions, self.drops);
        attention.forward(panels, positions, drops, &qkv, &mut out, &mut kept, &mut scratch);
        let (done, dy) = ((&out[..], &kept[..]), &dy);
        attention.backward(panels, positions, drops, &qkv, done, dy, &mut gradient, &mut scratch);
        let rows = |values: &[f32], features: usize| {
            let mut rows = vec![f32::NAN; tokens * features];
            panels.empty(values, features, &mut rows);
            rows
        };
        Done { out: rows(&out, width), gradient: rows(&gradient, 3 * width) }
    }

    /// What a probability is multiplied by: 1, or 0 or `1 / (1 - rate)` where they are dropped, by the definition.
    fn factor(&self, token: usize, head: usize, key: usize) -> f64 {
        if self.drops.is_none() {
            return 1.0;
        }
        let (example, query) = (token / self.positions, token % self.positions);
        let stream = crate::Philox::new(
            PLACE.seed,
            crate::Purpose::AttentionDropout,
            PLACE.step,
            PLACE.first + example as u64,
        );
        let row = (SITE * self.attention.heads + head) * self.positions + query;
        let draws = stream.uniform((row * self.positions.div_ceil(4) + key / 4) as u32);
        if draws[key % 4] < RATE { 0.0 } else { f64::from(1.0 / (1.0 - RATE)) }
    }

    /// Results in `f64`, with element `at` of `qkv` moved.
    fn reference(&self, at: usize, by: f64) -> Vec<f64> {
        let (tokens, width, size) = (self.tokens(), self.attention.width(), self.attention.size);
        let value = |token: usize, feature: usize| {
            let i = token * 3 * width + feature;
            f64::from(self.qkv[i]) + if i == at { by } else { 0.0 }
        };
        let mut out = vec![0.0; tokens * width];
        for token in 0..tokens {
            let first = token / self.positions * self.positions;
            for head in 0..self.attention.heads {
                let score = |key: usize| {
                    let products = (0..size)
                        .map(|d| value(token, head * size + d) * value(key, width + head * size + d));
                    products.sum::<f64>() / (size as f64).sqrt()
                };
                let scores: Vec<f64> = (first..=token).map(score).collect();
                let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let scores: Vec<f64> = scores.iter().map(|score| (score - greatest).exp()).collect();
                let sum: f64 = scores.iter().sum();
                for d in 0..size {
                    let of = |key: usize| value(first + key, 2 * width + head * size + d);
                    let left = |key: usize| self.factor(token, head, key);
                    out[token * width + head * size + d] =
                        scores.iter().enumerate().map(|(key, score)| score / sum * left(key) * of(key)).sum();
                }
            }
        }
        out
    }

    fn loss(&self, at: usize, by: f64) -> f64 {
        self.reference(at, by).iter().zip(&self.dy).map(|(y, dy)| y * f64::from(*dy)).sum()
    }
}

/// Sequences shorter than a block, of a block, and of several, which do not end where panels or blocks do.
const SHAPES: [(usize, usize, usize, usize); 7] = [
    (1, 1, 1, 1),
    (2, 3, 5, 3),
    (1, 8, 64, 1),
    (3, 4, 65, 2),
    (1, 5, 128, 1),
    (2, 2, 150, 2),
    (1, 16, 200, 1),
];

const RATE: f32 = 0.3;
const SITE: usize = 2;
const PLACE: crate::Place = crate::Place { seed: 7, step: 11, first: 4 };

/// Every shape, with all probabilities and with some of them dropped (invariant 4).
fn cases() -> impl Iterator<Item = Case> {
    SHAPES.into_iter().flat_map(|(heads, size, positions, examples)| {
        [None, Drops::new(RATE, [heads, positions, SITE], PLACE)]
            .map(|drops| Case { drops, ..Case::new(heads, size, positions, examples) })
    })
}

#[test]
fn results_are_those_of_the_whole_matrix() {
    for case in cases() {
        let positions = case.positions;
        for (found, expected) in case.run().out.iter().zip(case.reference(usize::MAX, 0.0)) {
            assert!((f64::from(*found) - expected).abs() < 3e-6, "{positions}: {found}, not {expected}");
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for case in cases() {
        let (positions, found) = (case.positions, case.run().gradient);
        // All of the small, and some of each kind in every block of the large.
        let step = (found.len() / 25).max(1) | 1;
        for at in (0..found.len()).step_by(step) {
            let slope = (case.loss(at, 1e-5) - case.loss(at, -1e-5)) / 2e-5;
            let error = (f64::from(found[at]) - slope).abs();
            assert!(error < 2e-5 * (1.0 + slope.abs()), "{positions} {at}: {}, not {slope}", found[at]);
        }
    }
}

/// Invariant 1: what comes later changes nothing before it, and an example changes no other.
#[test]
fn nothing_looks_ahead() {
    let case = Case::new(2, 4, 100, 2);
    let whole = case.run();
    for from in [1, 63, 64, 70, 99, 100, 163] {
        let mut other = Case::new(2, 4, 100, 2);
        other.qkv[from * 24..].iter_mut().for_each(|value| *value = 3.0 - *value);
        let changed = other.run();
        assert_eq!(changed.out[..from * 8], whole.out[..from * 8], "{from}");
        assert_ne!(changed.out[from * 8..], whole.out[from * 8..]);
    }
}

/// Scores beyond what `exp` takes: the greatest is subtracted, across blocks as within one.
#[test]
fn great_scores_do_not_overflow() {
    let mut case = Case::new(1, 4, 130, 1);
    case.qkv.iter_mut().for_each(|value| *value *= 60.0);
    let done = case.run();
    assert!(done.out.iter().chain(&done.gradient).all(|value| value.is_finite()));
    for (found, expected) in done.out.iter().zip(case.reference(usize::MAX, 0.0)) {
        assert!((f64::from(*found) - expected).abs() < 0.05, "{found}, not {expected}");
    }
}

#[test]
fn width_does_not_matter() {
    for case in cases() {
        for precision in [Precision::F32, Precision::Bf16] {
            let case = Case { attention: Attention { precision, ..case.attention }, ..case.clone() };
            forced::assert_same(|| {
                let done = case.run();
                done.out.iter().chain(&done.gradient).map(|value| value.to_bits()).collect::<Vec<_>>()
            });
        }
    }
}

/// Invariant 5: what enters products is rounded, so results are near those of f32, and not the same.
#[test]
fn bf16_is_near() {
    for mut case in cases() {
        // Queries, keys, values and gradients come rounded.
        [&mut case.qkv, &mut case.dy].into_iter().for_each(|values| Precision::Bf16.round(values));
        let whole = case.run();
        let attention = Attention { precision: Precision::Bf16, ..case.attention };
        let rounded = Case { attention, ..case.clone() }.run();
        for (found, expected) in [(&rounded.out, &whole.out), (&rounded.gradient, &whole.gradient)] {
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
            let error = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let size = square(&mut expected.iter().copied());
            assert!(error <= 1e-4 * size, "{}: {error} of {size}", case.positions);
            assert!(case.positions == 1 || error > 0.0);
        }
    }
}

/// Invariant 6: cut anywhere, across blocks and within one, and after each position alone.
#[test]
fn a_sequence_may_be_extended() {
    for (size, positions, cuts) in [(4, 150, &[1, 64, 65, 130][..]), (3, 70, &[7, 8, 69]), (8, 9, &[])] {
        for precision in [Precision::F32, Precision::Bf16] {
            let case = Case::new(2, size, positions, 1);
            let case = Case { attention: Attention { precision, ..case.attention }, ..case };
            let (whole, width) = (case.run().out, 2 * size);
            let mut known = Known::new(case.attention, positions).unwrap();
            let mut scratch = Scratch::new(case.attention, positions, 1).unwrap();
            let every: Vec<usize> = (1..positions).collect();
            let cuts = if cuts.is_empty() { &every[..] } else { cuts };
            let mut start = 0;
            for end in cuts.iter().copied().chain([positions]) {
                let panels = Panels::new(end - start);
                let mut qkv = vec![f32::NAN; panels.elements(3 * width)];
                panels.fill(&case.qkv[start * 3 * width..end * 3 * width], 3 * width, &mut qkv);
                let mut out = vec![f32::NAN; panels.elements(width)];
                case.attention.extend(panels, start, &mut known, &qkv, &mut out, &mut scratch);
                let mut rows = vec![f32::NAN; (end - start) * width];
                panels.empty(&out, width, &mut rows);
                assert_eq!(rows, whole[start * width..end * width], "{start}..{end}");
                start = end;
            }
        }
    }
}

#[test]
fn streams_of_dropped_probabilities_do_not_wrap() {
    assert!(Drops::fits(48, 25, 1024) && !Drops::fits(48, 25, 1 << 14) && !Drops::fits(2, usize::MAX, 8));
    assert!(Drops::new(0.0, [1, 4, 0], PLACE).is_none());
}

//! Attention against a plain computation in `f64` that keeps every probability.

use super::*;
use crate::simd::forced;

struct Case {
    attention: Attention,
    positions: usize,
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
        Case { attention: Attention { heads, size }, positions, qkv, dy: numbers(tokens * width, 59) }
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
        self.attention.forward(panels, self.positions, &qkv, &mut out, &mut kept, &mut scratch);
        let (out_kept, dy) = ((&out[..], &kept[..]), &dy);
        self.attention.backward(panels, self.positions, &qkv, out_kept, dy, &mut gradient, &mut scratch);
        let rows = |values: &[f32], features: usize| {
            let mut rows = vec![f32::NAN; tokens * features];
            panels.empty(values, features, &mut rows);
            rows
        };
        Done { out: rows(&out, width), gradient: rows(&gradient, 3 * width) }
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
                    out[token * width + head * size + d] =
                        scores.iter().enumerate().map(|(key, score)| score / sum * of(key)).sum();
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

#[test]
fn results_are_those_of_the_whole_matrix() {
    for (heads, size, positions, examples) in SHAPES {
        let case = Case::new(heads, size, positions, examples);
        for (found, expected) in case.run().out.iter().zip(case.reference(usize::MAX, 0.0)) {
            assert!((f64::from(*found) - expected).abs() < 3e-6, "{positions}: {found}, not {expected}");
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (heads, size, positions, examples) in SHAPES {
        let case = Case::new(heads, size, positions, examples);
        let found = case.run().gradient;
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
    for (heads, size, positions, examples) in SHAPES {
        let case = Case::new(heads, size, positions, examples);
        forced::assert_same(|| {
            let done = case.run();
            done.out.iter().chain(&done.gradient).map(|value| value.to_bits()).collect::<Vec<_>>()
        });
    }
}

//! What attention does to a block of scores, element by element.

use crate::linear::Panel;
use crate::math::exp;
use crate::simd::vectorized;

pub(super) fn copy(from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// In the block that holds its own key, a query sees the keys up to its own: key `r` is row `r`, query `first + start +
/// lane` a lane.
pub(super) fn mask(scores: &mut [f32], panel: Panel, first: usize) {
    for (key, row) in scores.chunks_exact_mut(panel.width).enumerate() {
        let hidden = key.saturating_sub(first + panel.start).min(panel.width);
        row.get_mut(..hidden).unwrap_or_default().fill(f32::NEG_INFINITY);
    }
}

vectorized! {
    pub(super) fn scale<'a>(values: &'a mut [f32], by: f32) {
        for value in values {
            *value *= by;
        }
    }

    /// Takes rows of scores of one block of keys: they become `p`, and `m`, `l` and `c` are those of invariant 2.
    pub(super) fn absorb<'a>(scores: &'a mut [f32], m: &'a mut [f32], l: &'a mut [f32], c: &'a mut [f32]) {
        let width = m.len();
        c.copy_from_slice(m);
        for row in scores.chunks_exact(width) {
            for (m, score) in m.iter_mut().zip(row) {
                *m = if *score > *m { *score } else { *m };
            }
        }
        for (c, m) in c.iter_mut().zip(m.iter()) {
            *c = exp(*c - *m);
        }
        for (l, c) in l.iter_mut().zip(c.iter()) {
            *l *= *c;
        }
        for row in scores.chunks_exact_mut(width) {
            for ((score, m), l) in row.iter_mut().zip(m.iter()).zip(l.iter_mut()) {
                *score = exp(*score - *m);
                *l += *score;
            }
        }
    }

    /// `sum = fma(sum, c, y)`.
    pub(super) fn accumulate<'a>(sum: &'a mut [f32], y: &'a [f32], c: &'a [f32]) {
        for (sum, y) in sum.chunks_exact_mut(c.len()).zip(y.chunks_exact(c.len())) {
            for ((sum, y), c) in sum.iter_mut().zip(y).zip(c) {
                *sum = sum.mul_add(*c, *y);
            }
        }
    }

    pub(super) fn divide<'a>(sum: &'a mut [f32], l: &'a [f32]) {
        for row in sum.chunks_exact_mut(l.len()) {
            for (sum, l) in row.iter_mut().zip(l) {
                *sum /= *l;
            }
        }
    }

    /// Scores become probabilities.
    pub(super) fn probabilities<'a>(scores: &'a mut [f32], kept: &'a [f32]) {
        for row in scores.chunks_exact_mut(kept.len()) {
            for (score, kept) in row.iter_mut().zip(kept) {
                *score = exp(*score - *kept);
            }
        }
    }

    /// Gradients of probabilities become those of scores.
    pub(super) fn through<'a>(slopes: &'a mut [f32], probabilities: &'a [f32], delta: &'a [f32]) {
        let rows = slopes.chunks_exact_mut(delta.len()).zip(probabilities.chunks_exact(delta.len()));
        for (slopes, probabilities) in rows {
            for ((slope, p), delta) in slopes.iter_mut().zip(probabilities).zip(delta) {
                *slope = *p * (*slope - *delta);
            }
        }
    }
}

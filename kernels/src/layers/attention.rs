//! Causal self-attention with several heads (Vaswani et al., "Attention is all you need", 2017), in blocks, so that no
//! matrix of positions by positions is ever kept (Dao, Fu, Ermon, Rudra and Ré, "FlashAttention", 2022): the forward pass
//! keeps one number for each row, from which the backward pass makes the probabilities anew.
//!
//! Invariants:
//! 1. A position sees itself and those before it in its own example. What comes later changes no bit of its result, as
//!    long as it is finite.
//! 2. Positions are cut into blocks of [`BLOCK`], counted from the example's first. For each query, blocks of keys are
//!    taken in ascending order. With `q` scaled by `1/sqrt(size)`, rounded to f32:
//!    - scores `s` are the forward product of [`Linear`] (keys as weights, queries as examples), and products with the
//!      values and gradients are its others: chains of fma that start at +0 in each block;
//!    - `m' = max(m, s)`; `c = exp(m - m')`; `p = exp(s - m')`, 0 for keys that are not seen; `l` is multiplied by `c`,
//!      then each `p` is added, ascending; `o = fma(o, c, p V)`. At the end `o / l`, and the row keeps `m + ln l`.
//! 3. Backward: `p = exp(s - kept)`; `delta` is the sum of `do o` by fma, ascending; `ds = p (do V - delta)`. The
//!    gradient of a query starts at +0 and takes one addition for each block of keys, ascending, and is scaled at the end;
//!    those of keys and values take one for each block of queries, ascending.

use super::{Linear, Panels, Rows};
use crate::linear::Panel;
use crate::math::{exp, ln};
use crate::simd::vectorized;

/// Positions in a block: 64 by 64 scores are 16 KiB, and stay in the first-level cache with a head's rows.
const BLOCK: usize = 64;

/// Self-attention: queries, keys and values stand one after the other in `3 heads size` features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    /// Features of a head.
    pub(crate) size: usize,
}

/// Room for one head of one example, made once.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Row-major [positions, size]: queries (scaled), keys, values, results, and the gradients of all four.
    rows: [Vec<f32>; 8],
    /// Feature-major blocks of queries, of gradients, and what products leave.
    blocks: [Vec<f32>; 3],
    scores: Vec<f32>,
    slopes: Vec<f32>,
    /// By query of a block.
    lanes: [Vec<f32>; 3],
    /// By position.
    delta: Vec<f32>,
    /// What a block of queries adds to keys or values.
    part: Vec<f32>,
    packed: Vec<f32>,
    zeros: Vec<f32>,
}

impl Scratch {
    /// Room for heads of `attention` over up to `positions`.
    ///
    /// # Errors
    /// Those of [`super::buffer`].
    pub(crate) fn new(
        attention: Attention,
        positions: usize,
        max_examples: usize,
    ) -> Result<Scratch, crate::model::ModelError> {
        let room = |elements| super::buffer(elements, max_examples);
        let (size, block) = (attention.size, BLOCK.min(positions.max(1)));
        let rows = || room(positions.saturating_mul(size));
        let panels = Panels::new(block);
        let lanes = || room(panels.padded());
        let wide = || room(panels.elements(size));
        let packed = Linear { inputs: size, outputs: block }.packed_elements(block);
        Ok(Scratch {
            rows: [rows()?, rows()?, rows()?, rows()?, rows()?, rows()?, rows()?, rows()?],
            blocks: [wide()?, wide()?, wide()?],
            scores: room(panels.elements(block))?,
            slopes: room(panels.elements(block))?,
            lanes: [lanes()?, lanes()?, lanes()?],
            delta: room(positions)?,
            part: room(block * size)?,
            packed: room(packed)?,
            zeros: room(block.max(size))?,
        })
    }
}

impl Attention {
    fn width(self) -> usize {
        self.heads * self.size
    }

    /// `out`, in panels of `heads size` features, of `qkv`, in panels of three times as many. The panels' examples are the
    /// positions of examples of `positions` each. `kept` takes a number for each head of each position, [heads, tokens].
    pub(crate) fn forward(
        self,
        panels: Panels,
        positions: usize,
        qkv: &[f32],
        out: &mut [f32],
        kept: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let tokens = panels.examples();
        for start in (0..tokens).step_by(positions.max(1)) {
            let range = start..(start + positions).min(tokens);
            for head in 0..self.heads {
                self.load(panels, head, &range, qkv, scratch);
                let at = head * tokens + range.start;
                let Some(kept) = kept.get_mut(at..at + range.len()) else { return };
                self.head(range.len(), kept, scratch);
                let part = head * self.size..(head + 1) * self.size;
                panels.scatter(&scratch.rows[3], self.width(), part, range.clone(), out);
            }
        }
    }

    /// The gradient of `qkv` into `gradient`, of `dy`; `qkv`, `out` and `kept` are those of [`forward`](Self::forward).
    #[allow(clippy::too_many_arguments)] // a layer's backward pass has what its forward pass has, and gradients
    pub(crate) fn backward(
        self,
        panels: Panels,
        positions: usize,
        qkv: &[f32],
        (out, kept): (&[f32], &[f32]),
        dy: &[f32],
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (tokens, width) = (panels.examples(), self.width());
        for start in (0..tokens).step_by(positions.max(1)) {
            let range = start..(start + positions).min(tokens);
            for head in 0..self.heads {
                let part = head * self.size..(head + 1) * self.size;
                self.load(panels, head, &range, qkv, scratch);
                panels.gather(out, width, part.clone(), range.clone(), &mut scratch.rows[3]);
                panels.gather(dy, width, part.clone(), range.clone(), &mut scratch.rows[7]);
                let at = head * tokens + range.start;
                let Some(kept) = kept.get(at..at + range.len()) else { return };
                self.head_gradient(range.len(), kept, scratch);
                scale(&mut scratch.rows[4], self.scale());
                for (which, rows) in scratch.rows[4..7].iter().enumerate() {
                    let part = which * width + part.start..which * width + part.end;
                    panels.scatter(rows, 3 * width, part, range.clone(), gradient);
                }
            }
        }
    }

    fn scale(self) -> f32 {
        (1.0 / (self.size as f64).sqrt()) as f32
    }

    /// Queries, scaled, keys and values of one head of one example, as rows.
    fn load(
        self,
        panels: Panels,
        head: usize,
        range: &std::ops::Range<usize>,
        qkv: &[f32],
        scratch: &mut Scratch,
    ) {
        let width = self.width();
        for (which, rows) in scratch.rows[..3].iter_mut().enumerate() {
            let first = which * width + head * self.size;
            panels.gather(qkv, 3 * width, first..first + self.size, range.clone(), rows);
        }
        scale(&mut scratch.rows[0], self.scale());
    }

    /// One head of one example: results as rows, and what each row keeps.
    fn head(self, positions: usize, kept: &mut [f32], scratch: &mut Scratch) {
        let size = self.size;
        let Scratch { rows: [q, k, v, o, ..], blocks: [x, y, sum], scores, lanes: [m, l, c], zeros, .. } =
            scratch;
        for queries in blocks(positions) {
            let panels = Panels::new(queries.len());
            let (Some(q), Some(o)) = (part(q, &queries, size), part_mut(o, &queries, size)) else { return };
            let (x, y, sum) = (
                super::take_mut(x, panels, size),
                super::take_mut(y, panels, size),
                super::take_mut(sum, panels, size),
            );
            panels.fill(q, size, x);
            sum.fill(0.0);
            m.fill(f32::NEG_INFINITY);
            l.fill(0.0);
            for keys in blocks(queries.end) {
                let layer = Linear { inputs: size, outputs: keys.len() };
                let (Some(k), Some(v)) = (part(k, &keys, size), part(v, &keys, size)) else { return };
                let scores = super::take_mut(scores, panels, keys.len());
                layer.forward(k, zeros.get(..keys.len()).unwrap_or_default(), panels, x, scores);
                for panel in panels.iter() {
                    let Some(scores) = in_panel(scores, panel, keys.len()) else { return };
                    if keys.start == queries.start {
                        mask(scores, panel);
                    }
                    let lanes = panel.start..panel.start + panel.width;
                    let (Some(m), Some(l), Some(c)) =
                        (m.get_mut(lanes.clone()), l.get_mut(lanes.clone()), c.get_mut(lanes))
                    else {
                        return;
                    };
                    absorb(scores, m, l, c);
                }
                layer.backward(v, panels, scores, y);
                for panel in panels.iter() {
                    let (Some(y), Some(sum), Some(c)) = (
                        in_panel(y, panel, size),
                        in_panel(sum, panel, size),
                        c.get(panel.start..panel.start + panel.width),
                    ) else {
                        return;
                    };
                    accumulate(sum, y, c);
                }
            }
            for panel in panels.iter() {
                let (Some(sum), Some(l)) =
                    (in_panel(sum, panel, size), l.get(panel.start..panel.start + panel.width))
                else {
                    return;
                };
                divide(sum, l);
            }
            panels.gather(sum, size, 0..size, 0..queries.len(), o);
            let Some(kept) = kept.get_mut(queries) else { return };
            for ((kept, m), l) in kept.iter_mut().zip(m.iter()).zip(l.iter()) {
                *kept = *m + ln(*l);
            }
        }
    }

    /// The gradients of one head of one example.
    fn head_gradient(self, positions: usize, kept: &[f32], scratch: &mut Scratch) {
        let size = self.size;
        let Scratch {
            rows: [q, k, v, o, dq, dk, dv, dy],
            blocks: [x, g, y],
            scores,
            slopes,
            lanes: [of_row, of_delta, _],
            delta,
            part: added,
            packed,
            zeros,
        } = scratch;
        for ((delta, o), dy) in
            delta.iter_mut().zip(o.chunks_exact(size)).zip(dy.chunks_exact(size)).take(positions)
        {
            *delta = o.iter().zip(dy).fold(0.0f32, |sum, (o, dy)| o.mul_add(*dy, sum));
        }
        [&mut *dq, dk, dv].into_iter().for_each(|gradient| gradient.fill(0.0));
        for keys in blocks(positions) {
            let layer = Linear { inputs: size, outputs: keys.len() };
            let zeros = zeros.get(..keys.len()).unwrap_or_default();
            let (Some(k), Some(v), Some(dk), Some(dv)) = (
                part(k, &keys, size),
                part(v, &keys, size),
                part_mut(dk, &keys, size),
                part_mut(dv, &keys, size),
            ) else {
                return;
            };
            for queries in blocks(positions).filter(|queries| queries.start >= keys.start) {
                let panels = Panels::new(queries.len());
                let (Some(q), Some(dy), Some(dq), Some(kept), Some(delta)) = (
                    part(q, &queries, size),
                    part(dy, &queries, size),
                    part_mut(dq, &queries, size),
                    kept.get(queries.clone()),
                    delta.get(queries.clone()),
                ) else {
                    return;
                };
                let (x, g) = (super::take_mut(x, panels, size), super::take_mut(g, panels, size));
                panels.fill(q, size, x);
                panels.fill(dy, size, g);
                let scores = super::take_mut(scores, panels, keys.len());
                let slopes = super::take_mut(slopes, panels, keys.len());
                layer.forward(k, zeros, panels, x, scores);
                layer.forward(v, zeros, panels, g, slopes);
                copy(kept, of_row);
                copy(delta, of_delta);
                for panel in panels.iter() {
                    let lanes = panel.start..panel.start + panel.width;
                    let (Some(scores), Some(slopes), Some(of_row), Some(of_delta)) = (
                        in_panel(scores, panel, keys.len()),
                        in_panel(slopes, panel, keys.len()),
                        of_row.get(lanes.clone()),
                        of_delta.get(lanes),
                    ) else {
                        return;
                    };
                    if keys.start == queries.start {
                        mask(scores, panel);
                    }
                    probabilities(scores, of_row);
                    through(slopes, scores, of_delta);
                }
                let added = added.get_mut(..keys.len() * size).unwrap_or_default();
                layer.weights(panels, scores, Rows::Rows(dy), added, packed);
                crate::aggregate::add(dv, added);
                layer.weights(panels, slopes, Rows::Rows(q), added, packed);
                crate::aggregate::add(dk, added);
                let y = super::take_mut(y, panels, size);
                layer.backward(k, panels, slopes, y);
                let added = added_rows(x, queries.len() * size);
                panels.gather(y, size, 0..size, 0..queries.len(), added);
                crate::aggregate::add(dq, added);
            }
        }
    }
}

/// What is no longer needed of a block serves as rows.
fn added_rows(block: &mut [f32], elements: usize) -> &mut [f32] {
    block.get_mut(..elements).unwrap_or_default()
}

/// `0..positions` in blocks.
fn blocks(positions: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..positions).step_by(BLOCK).map(move |start| start..positions.min(start + BLOCK))
}

fn part<'a>(rows: &'a [f32], range: &std::ops::Range<usize>, size: usize) -> Option<&'a [f32]> {
    rows.get(range.start * size..range.end * size)
}

fn part_mut<'a>(rows: &'a mut [f32], range: &std::ops::Range<usize>, size: usize) -> Option<&'a mut [f32]> {
    rows.get_mut(range.start * size..range.end * size)
}

fn in_panel(values: &mut [f32], panel: Panel, features: usize) -> Option<&mut [f32]> {
    values.get_mut(panel.start * features..(panel.start + panel.width) * features)
}

fn copy(from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// In the block that holds its own key, a query sees the keys up to its own: key `r` is row `r`, query `start + lane` a
/// lane.
fn mask(scores: &mut [f32], panel: Panel) {
    for (key, row) in scores.chunks_exact_mut(panel.width).enumerate() {
        let hidden = key.saturating_sub(panel.start).min(panel.width);
        row.get_mut(..hidden).unwrap_or_default().fill(f32::NEG_INFINITY);
    }
}

vectorized! {
    fn scale<'a>(values: &'a mut [f32], by: f32) {
        for value in values {
            *value *= by;
        }
    }

    /// Takes rows of scores of one block of keys: they become `p`, and `m`, `l` and `c` are those of invariant 2.
    fn absorb<'a>(scores: &'a mut [f32], m: &'a mut [f32], l: &'a mut [f32], c: &'a mut [f32]) {
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
    fn accumulate<'a>(sum: &'a mut [f32], y: &'a [f32], c: &'a [f32]) {
        for (sum, y) in sum.chunks_exact_mut(c.len()).zip(y.chunks_exact(c.len())) {
            for ((sum, y), c) in sum.iter_mut().zip(y).zip(c) {
                *sum = sum.mul_add(*c, *y);
            }
        }
    }

    fn divide<'a>(sum: &'a mut [f32], l: &'a [f32]) {
        for row in sum.chunks_exact_mut(l.len()) {
            for (sum, l) in row.iter_mut().zip(l) {
                *sum /= *l;
            }
        }
    }

    /// Scores become probabilities.
    fn probabilities<'a>(scores: &'a mut [f32], kept: &'a [f32]) {
        for row in scores.chunks_exact_mut(kept.len()) {
            for (score, kept) in row.iter_mut().zip(kept) {
                *score = exp(*score - *kept);
            }
        }
    }

    /// Gradients of probabilities become those of scores.
    fn through<'a>(slopes: &'a mut [f32], probabilities: &'a [f32], delta: &'a [f32]) {
        let rows = slopes.chunks_exact_mut(delta.len()).zip(probabilities.chunks_exact(delta.len()));
        for (slopes, probabilities) in rows {
            for ((slope, p), delta) in slopes.iter_mut().zip(probabilities).zip(delta) {
                *slope = *p * (*slope - *delta);
            }
        }
    }
}

#[cfg(test)]
mod tests;

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
//! 4. Where probabilities are dropped ([`Drops`]), `l` adds the whole `p`, and the product with the values takes what is left of
//!    it. Backward, `do V` passes through the same function before `delta` is subtracted, and what is left of `p` makes the
//!    values' gradient. `delta` is still the sum over keys of `p` times its gradient, for that is what `do o` is.
//! 5. In `bf16`, queries are rounded after they are scaled; `p`, or what is left of it, and `ds` before their products. `l` adds
//!    the `p` that is not rounded. Queries, keys, values and `do` come rounded.
//! 6. A position's result is the same whether those before it are computed with it or were before ([`Attention::extend`]).

mod drops;
mod steps;

use std::ops::Range;

use super::{Linear, Panels, Rows};
use crate::linear::Panel;
use crate::math::ln;
use crate::precision::Precision;

pub(crate) use drops::Drops;
use drops::OfHead;
use steps::{absorb, accumulate, copy, divide, mask, probabilities, scale, through};

/// Positions in a block: 64 by 64 scores are 16 KiB, and stay in the first-level cache with a head's rows.
const BLOCK: usize = 64;

/// Self-attention: queries, keys and values stand one after the other in `3 heads size` features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    /// Features of a head.
    pub(crate) size: usize,
    /// Of its products.
    pub(crate) precision: Precision,
}

/// Keys and values of the positions of one sequence that are known, of one layer.
#[derive(Debug)]
pub(crate) struct Known {
    /// By head: row-major [positions, size], keys and values.
    rows: [Vec<f32>; 2],
    positions: usize,
}

impl Known {
    /// Room for a sequence of up to `positions`.
    ///
    /// # Errors
    /// Those of [`super::buffer`].
    pub(crate) fn new(attention: Attention, positions: usize) -> Result<Known, crate::model::ModelError> {
        let elements = positions.saturating_mul(attention.width());
        Ok(Known { rows: [super::buffer(elements, 1)?, super::buffer(elements, 1)?], positions })
    }
}

/// Room for one head of one example, made once.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Row-major [positions, size]: queries (scaled), keys, values, results, and the gradients of all four.
    rows: [Vec<f32>; 8],
    blocks: Blocks,
    /// By position.
    delta: Vec<f32>,
    /// What a block of queries adds to keys or values.
    part: Vec<f32>,
    packed: Vec<f32>,
}

/// Room for a block of queries against a block of keys.
#[derive(Debug)]
struct Blocks {
    /// Feature-major: queries, gradients, and what products leave.
    features: [Vec<f32>; 3],
    scores: Vec<f32>,
    slopes: Vec<f32>,
    /// By query of a block.
    lanes: [Vec<f32>; 3],
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
            blocks: Blocks {
                features: [wide()?, wide()?, wide()?],
                scores: room(panels.elements(block))?,
                slopes: room(panels.elements(block))?,
                lanes: [lanes()?, lanes()?, lanes()?],
                zeros: room(block.max(size))?,
            },
            delta: room(positions)?,
            part: room(block * size)?,
            packed: room(packed)?,
        })
    }
}

impl Attention {
    fn width(self) -> usize {
        self.heads * self.size
    }

    /// `out`, in panels of `heads size` features, of `qkv`, in panels of three times as many. The panels' examples are the
    /// positions of examples of `positions` each. `kept` takes a number for each head of each position, [heads, tokens].
    #[allow(clippy::too_many_arguments)] // what goes in, what comes out, and where it is computed
    pub(crate) fn forward(
        self,
        panels: Panels,
        positions: usize,
        drops: Option<Drops>,
        qkv: &[f32],
        out: &mut [f32],
        kept: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let tokens = panels.examples();
        for (example, start) in (0..tokens).step_by(positions.max(1)).enumerate() {
            let range = start..(start + positions).min(tokens);
            for head in 0..self.heads {
                self.load(panels, head, &range, qkv, scratch);
                let at = head * tokens + range.start;
                let Some(kept) = kept.get_mut(at..at + range.len()) else { return };
                let Scratch { rows: [q, k, v, o, ..], blocks, .. } = scratch;
                let drops = drops.map(|drops| drops.of(example, head));
                self.head(0..range.len(), [q, k, v], o, kept, drops, blocks);
                let part = head * self.size..(head + 1) * self.size;
                panels.scatter(&scratch.rows[3], self.width(), part, range.clone(), out);
            }
        }
    }

    /// As [`forward`](Self::forward), of the positions of one sequence that follow the first `known`, of which `before` has keys
    /// and values; it takes theirs as well. Nothing is dropped.
    pub(crate) fn extend(
        self,
        panels: Panels,
        known: usize,
        before: &mut Known,
        qkv: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (size, new) = (self.size, known..known + panels.examples());
        if new.end > before.positions {
            return;
        }
        for head in 0..self.heads {
            self.load(panels, head, &(0..new.len()), qkv, scratch);
            let Scratch { rows: [q, k, v, o, ..], blocks, delta, .. } = scratch;
            let of_head = head * before.positions * size..(head + 1) * before.positions * size;
            let [keys, values] = &mut before.rows;
            let (Some(keys), Some(values)) = (keys.get_mut(of_head.clone()), values.get_mut(of_head)) else {
                return;
            };
            for (rows, place) in [(&*k, &mut *keys), (&*v, &mut *values)] {
                copy(rows, place.get_mut(new.start * size..new.end * size).unwrap_or_default());
            }
            // What a row keeps for a backward pass is of no use here.
            let kept = delta.get_mut(..new.len()).unwrap_or_default();
            self.head(new.clone(), [q, keys, values], o, kept, None, blocks);
            let part = head * size..(head + 1) * size;
            panels.scatter(&scratch.rows[3], self.width(), part, 0..new.len(), out);
        }
    }

    /// The gradient of `qkv` into `gradient`, of `dy`; `qkv`, `out` and `kept` are those of [`forward`](Self::forward).
    #[allow(clippy::too_many_arguments)] // a layer's backward pass has what its forward pass has, and gradients
    pub(crate) fn backward(
        self,
        panels: Panels,
        positions: usize,
        drops: Option<Drops>,
        qkv: &[f32],
        (out, kept): (&[f32], &[f32]),
        dy: &[f32],
        gradient: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (tokens, width) = (panels.examples(), self.width());
        for (example, start) in (0..tokens).step_by(positions.max(1)).enumerate() {
            let range = start..(start + positions).min(tokens);
            for head in 0..self.heads {
                let part = head * self.size..(head + 1) * self.size;
                self.load(panels, head, &range, qkv, scratch);
                panels.gather(out, width, part.clone(), range.clone(), &mut scratch.rows[3]);
                panels.gather(dy, width, part.clone(), range.clone(), &mut scratch.rows[7]);
                let at = head * tokens + range.start;
                let Some(kept) = kept.get(at..at + range.len()) else { return };
                self.head_gradient(range.len(), kept, drops.map(|drops| drops.of(example, head)), scratch);
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
    fn load(self, panels: Panels, head: usize, range: &Range<usize>, qkv: &[f32], scratch: &mut Scratch) {
        let width = self.width();
        for (which, rows) in scratch.rows[..3].iter_mut().enumerate() {
            let first = which * width + head * self.size;
            panels.gather(qkv, 3 * width, first..first + self.size, range.clone(), rows);
        }
        let queries = scratch.rows[0].get_mut(..range.len() * self.size).unwrap_or_default();
        scale(queries, self.scale());
        self.precision.round(queries);
    }

    /// One head of one example: results of some positions as rows, and what each row keeps. Queries are those of these positions;
    /// keys and values are there from the example's first position on.
    fn head(
        self,
        positions: Range<usize>,
        [q, k, v]: [&[f32]; 3],
        o: &mut [f32],
        kept: &mut [f32],
        drops: Option<OfHead>,
        blocks: &mut Blocks,
    ) {
        let size = self.size;
        let Blocks { features: [x, y, sum], scores, lanes: [m, l, c], zeros, .. } = blocks;
        let first = positions.start;
        for queries in blocks_of(positions) {
            let panels = Panels::new(queries.len());
            let own = queries.start - first..queries.end - first;
            let (Some(q), Some(o)) = (part(q, &own, size), part_mut(o, &own, size)) else { return };
            let (x, y, sum) = (
                super::take_mut(x, panels, size),
                super::take_mut(y, panels, size),
                super::take_mut(sum, panels, size),
            );
            panels.fill(q, size, x);
            sum.fill(0.0);
            m.fill(f32::NEG_INFINITY);
            l.fill(0.0);
            for keys in blocks_of(0..queries.end) {
                let layer = Linear { inputs: size, outputs: keys.len() };
                let (Some(k), Some(v)) = (part(k, &keys, size), part(v, &keys, size)) else { return };
                let scores = super::take_mut(scores, panels, keys.len());
                layer.forward(k, zeros.get(..keys.len()).unwrap_or_default(), panels, x, scores);
                for panel in panels.iter() {
                    let Some(scores) = in_panel(scores, panel, keys.len()) else { return };
                    if keys.end > queries.start {
                        mask(scores, panel, queries.start - keys.start);
                    }
                    let lanes = panel.start..panel.start + panel.width;
                    let (Some(m), Some(l), Some(c)) =
                        (m.get_mut(lanes.clone()), l.get_mut(lanes.clone()), c.get_mut(lanes))
                    else {
                        return;
                    };
                    absorb(scores, m, l, c);
                    if let Some(drops) = drops {
                        drops.apply(panel, queries.start, keys.start, scores);
                    }
                }
                self.precision.round(scores);
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
            let Some(kept) = kept.get_mut(own) else { return };
            for ((kept, m), l) in kept.iter_mut().zip(m.iter()).zip(l.iter()) {
                *kept = *m + ln(*l);
            }
        }
    }

    /// The gradients of one head of one example.
    fn head_gradient(self, positions: usize, kept: &[f32], drops: Option<OfHead>, scratch: &mut Scratch) {
        let size = self.size;
        let Scratch { rows: [q, k, v, o, dq, dk, dv, dy], blocks, delta, part: added, packed } = scratch;
        let Blocks { features: [x, g, y], scores, slopes, lanes: [of_row, of_delta, _], zeros } = blocks;
        for ((delta, o), dy) in
            delta.iter_mut().zip(o.chunks_exact(size)).zip(dy.chunks_exact(size)).take(positions)
        {
            *delta = o.iter().zip(dy).fold(0.0f32, |sum, (o, dy)| o.mul_add(*dy, sum));
        }
        [&mut *dq, dk, dv].into_iter().for_each(|gradient| gradient.fill(0.0));
        for keys in blocks_of(0..positions) {
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
            for queries in blocks_of(keys.start..positions) {
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
                        mask(scores, panel, 0);
                    }
                    probabilities(scores, of_row);
                    if let Some(drops) = drops {
                        drops.apply(panel, queries.start, keys.start, slopes);
                    }
                    through(slopes, scores, of_delta);
                    if let Some(drops) = drops {
                        drops.apply(panel, queries.start, keys.start, scores);
                    }
                }
                self.precision.round(scores);
                self.precision.round(slopes);
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

/// Positions, cut where blocks of all of them are.
fn blocks_of(Range { start, end }: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let cuts = (start / BLOCK * BLOCK..end).step_by(BLOCK);
    cuts.map(move |cut| cut.max(start)..end.min(cut + BLOCK))
}

fn part<'a>(rows: &'a [f32], range: &Range<usize>, size: usize) -> Option<&'a [f32]> {
    rows.get(range.start * size..range.end * size)
}

fn part_mut<'a>(rows: &'a mut [f32], range: &Range<usize>, size: usize) -> Option<&'a mut [f32]> {
    rows.get_mut(range.start * size..range.end * size)
}

fn in_panel(values: &mut [f32], panel: Panel, features: usize) -> Option<&mut [f32]> {
    values.get_mut(panel.start * features..(panel.start + panel.width) * features)
}

#[cfg(test)]
mod tests;

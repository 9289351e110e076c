//! The layout of activations: feature-major, in panels of as many examples as a tile of the products is wide.
//!
//! Panel p holds examples `start .. start + width` as `features` rows of `width` numbers, and begins at element
//! `start * features`. Widths are one, two or four vectors; the last panel is padded. What padding holds is
//! finite or not, but never read into a result.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::simd;

/// How a number of examples is cut into panels on this processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Panels {
    examples: usize,
    lanes: usize,
    widest: usize,
}

/// One panel: examples `start .. start + used`, in rows of `width`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Panel {
    pub(crate) start: usize,
    pub(crate) width: usize,
    pub(crate) used: usize,
}

impl Panels {
    pub(crate) fn new(examples: usize) -> Self {
        struct Measure;
        impl WithSimd for Measure {
            type Output = (usize, usize);
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
                (S::F32_LANES, S::F32_LANES * widest_tile::<S>())
            }
        }
        let (lanes, widest) = simd::dispatch(Measure);
        Self { examples, lanes, widest }
    }

    /// Examples, without padding.
    pub(crate) fn examples(self) -> usize {
        self.examples
    }

    /// Numbers that a buffer of `features` features takes, padding included.
    pub(crate) fn elements(self, features: usize) -> usize {
        self.padded().saturating_mul(features)
    }

    /// Examples, those of padding included.
    pub(crate) fn padded(self) -> usize {
        self.examples.div_ceil(self.lanes).saturating_mul(self.lanes)
    }

    /// The panels, first to last.
    pub(crate) fn iter(self) -> impl Iterator<Item = Panel> {
        cut(self.examples, self.lanes, self.widest)
    }

    /// Lays examples, given as rows of `features`, out in panels.
    pub(crate) fn fill(self, rows: &[f32], features: usize, out: &mut [f32]) {
        for panel in self.iter() {
            let (Some(rows), Some(out)) = (
                rows.get(panel.start * features..(panel.start + panel.used) * features),
                out.get_mut(panel.start * features..(panel.start + panel.width) * features),
            ) else {
                return;
            };
            transpose(rows, features, panel.used, features, out, panel.width);
        }
    }

    /// Copies features `part` of examples `range` out of panels of `features`, into rows of as many as `part` has.
    pub(crate) fn gather(
        self,
        panels: &[f32],
        features: usize,
        part: Range<usize>,
        range: Range<usize>,
        rows: &mut [f32],
    ) {
        let count = part.len();
        for panel in self.overlapping(&range) {
            let (first, last) = (panel.start.max(range.start), (panel.start + panel.used).min(range.end));
            let from = panel.start * features + part.start * panel.width + (first - panel.start);
            let to = (first - range.start) * count;
            let (Some(from), Some(to)) = (panels.get(from..), rows.get_mut(to..)) else { return };
            transpose(from, panel.width, count, last - first, to, count);
        }
    }

    /// The inverse of [`Panels::gather`]: nothing else in the panels changes.
    pub(crate) fn scatter(
        self,
        rows: &[f32],
        features: usize,
        part: Range<usize>,
        range: Range<usize>,
        panels: &mut [f32],
    ) {
        let count = part.len();
        for panel in self.overlapping(&range) {
            let (first, last) = (panel.start.max(range.start), (panel.start + panel.used).min(range.end));
            let to = panel.start * features + part.start * panel.width + (first - panel.start);
            let from = (first - range.start) * count;
            let (Some(from), Some(to)) = (rows.get(from..), panels.get_mut(to..)) else { return };
            transpose(from, count, last - first, count, to, panel.width);
        }
    }

    /// The panels that hold any of these examples.
    fn overlapping(self, range: &Range<usize>) -> impl Iterator<Item = Panel> {
        let (start, end) = (range.start, range.end);
        // All but the last panels are as wide as the widest, so those before the range need not be looked at.
        let skipped = (start / self.widest.max(1)).min(self.examples / self.widest.max(1));
        let from = skipped * self.widest;
        cut(self.examples - from.min(self.examples), self.lanes, self.widest)
            .map(move |panel| Panel { start: panel.start + from, ..panel })
            .take_while(move |panel| panel.start < end)
            .filter(move |panel| panel.start + panel.used > start)
    }

    /// The inverse of [`Panels::fill`]: examples out of panels, as rows of `features`.
    pub(crate) fn empty(self, panels: &[f32], features: usize, rows: &mut [f32]) {
        for panel in self.iter() {
            let (Some(panel_values), Some(rows)) = (
                panels.get(panel.start * features..(panel.start + panel.width) * features),
                rows.get_mut(panel.start * features..(panel.start + panel.used) * features),
            ) else {
                return;
            };
            for (example, row) in rows.chunks_exact_mut(features).enumerate() {
                for (value, column) in row.iter_mut().zip(panel_values.chunks_exact(panel.width)) {
                    *value = column.get(example).copied().unwrap_or(f32::NAN);
                }
            }
        }
    }
}

/// Vectors in the widest tile: with 32 registers four vectors by six rows, with 16 two by six.
#[inline(always)]
pub(crate) fn widest_tile<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Cuts `count` columns into panels of one, two, four ... vectors up to `widest`, none with an idle vector.
#[inline(always)]
pub(crate) fn cut(count: usize, lanes: usize, widest: usize) -> impl Iterator<Item = Panel> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = count.checked_sub(start).filter(|&left| left > 0)?;
        let mut width = widest;
        while width > lanes && left + lanes <= width {
            width /= 2;
        }
        let panel = Panel { start, width, used: left.min(width) };
        start += width;
        Some(panel)
    })
}

simd::vectorized! {
    /// Writes `rows` x `columns` numbers, rows `source_stride` apart, as columns: `to[c * to_stride + r] = from[r *
    /// source_stride + c]`.
    pub(crate) fn transpose<'a>(
        from: &'a [f32],
        from_stride: usize,
        rows: usize,
        columns: usize,
        to: &'a mut [f32],
        to_stride: usize,
    ) {
        const SIDE: usize = 8;
        for r in (0..rows).step_by(SIDE) {
            for c in (0..columns).step_by(SIDE) {
                let mut block = [[0.0f32; SIDE]; SIDE];
                if r + SIDE <= rows && c + SIDE <= columns {
                    for (i, row) in block.iter_mut().enumerate() {
                        if let Some(source) = from.get((r + i) * from_stride + c..).and_then(|row| row.first_chunk()) {
                            *row = *source;
                        }
                    }
                    let columns: [[f32; SIDE]; SIDE] =
                        std::array::from_fn(|j| std::array::from_fn(|i| block[i][j]));
                    for (j, column) in columns.iter().enumerate() {
                        if let Some(target) =
                            to.get_mut((c + j) * to_stride + r..).and_then(|row| row.first_chunk_mut())
                        {
                            *target = *column;
                        }
                    }
                } else {
                    for i in r..rows.min(r + SIDE) {
                        for j in c..columns.min(c + SIDE) {
                            if let (Some(target), Some(&source)) = (to.get_mut(j * to_stride + i), from.get(i * from_stride + j)) {
                                *target = source;
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_every_example_once() {
        for lanes in [1, 4, 8, 16] {
            for vectors in [2, 4] {
                for count in 0..200 {
                    let mut next = 0;
                    for panel in cut(count, lanes, lanes * vectors) {
                        assert_eq!(panel.start, next);
                        assert!(panel.used > 0 && panel.used + lanes > panel.width, "no idle vector");
                        assert!([1, 2, 4].contains(&(panel.width / lanes)) && panel.width % lanes == 0);
                        next += panel.width;
                    }
                    assert_eq!(next, count.div_ceil(lanes) * lanes);
                }
            }
        }
    }

    /// Any features of any examples, there and back, and nothing beside them.
    #[test]
    fn parts_are_copied_out_and_in() {
        let features = 11;
        for examples in [1, 15, 16, 17, 40, 64, 90] {
            let rows: Vec<f32> = (0..examples * features).map(|i| i as f32).collect();
            let panels = Panels::new(examples);
            let mut filled = vec![-1.0; panels.elements(features)];
            panels.fill(&rows, features, &mut filled);
            for first in [0, 1, 7, 16, 33] {
                for last in [first + 1, first + 9, first + 40] {
                    let range = first.min(examples)..last.min(examples);
                    let mut part = vec![f32::NAN; range.len() * 4];
                    panels.gather(&filled, features, 3..7, range.clone(), &mut part);
                    for (row, part) in range.clone().zip(part.chunks(4)) {
                        assert_eq!(part, &rows[row * features + 3..row * features + 7]);
                    }
                    let (mut changed, mut expected) = (filled.clone(), rows.clone());
                    part.iter_mut().for_each(|value| *value = -*value);
                    panels.scatter(&part, features, 3..7, range.clone(), &mut changed);
                    for row in range {
                        expected[row * features + 3..row * features + 7].iter_mut().for_each(|v| *v = -*v);
                    }
                    let mut found = vec![f32::NAN; rows.len()];
                    panels.empty(&changed, features, &mut found);
                    assert_eq!(found, expected);
                }
            }
        }
    }

    #[test]
    fn fill_transposes_any_size() {
        for (examples, features) in [(1, 1), (1, 9), (3, 17), (8, 8), (16, 24), (33, 5), (70, 13)] {
            let rows: Vec<f32> = (0..examples * features).map(|i| i as f32).collect();
            let panels = Panels::new(examples);
            let mut out = vec![0.0; panels.elements(features)];
            panels.fill(&rows, features, &mut out);
            for panel in panels.iter() {
                for example in 0..panel.used {
                    for feature in 0..features {
                        let found = out[panel.start * features + feature * panel.width + example];
                        assert_eq!(found, rows[(panel.start + example) * features + feature]);
                    }
                }
            }
            let mut again = vec![f32::NAN; rows.len()];
            panels.empty(&out, features, &mut again);
            assert_eq!(again, rows);
        }
    }
}

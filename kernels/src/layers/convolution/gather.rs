//! Forward and backward: every result is a chain over runs of features, which a tile reads where they lie.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Ends, Window};
use crate::layers::{Image, Panels};
use crate::linear::tiles::{Tile, by_rows, steps, tall_tiles, vectors, vectors_mut};

/// Bytes of the input that a tile's pass runs over at most, if they can be so few: a part of the first-level cache.
const PASS: usize = 24 << 10;
/// Output channels that pass over a run before the next pixel, where weights are many: a multiple of every tile's rows.
const GROUP: usize = 48;
/// Bytes of the input that a segment of pixels reads in one pass: a part of the second-level cache.
const SEGMENT: usize = 256 << 10;
/// Least pixels of a segment: each reads all weights.
const LEAST_SEGMENT: usize = 4;

/// y[p, r] = bias[r] + a chain over the windows of p: rows, columns, channels of x.
pub(super) struct Gather<'a> {
    pub(super) from: Image,
    pub(super) to: Image,
    /// The windows of each row and column of `to`.
    pub(super) rows: &'a [Window],
    pub(super) columns: &'a [Window],
    pub(super) kernel: usize,
    /// Pixels of `from` between neighbours of `to`.
    pub(super) stride: usize,
    /// [channels of `to`, taps, channels of `from`].
    pub(super) weights: &'a [f32],
    pub(super) ends: Ends<'a>,
    pub(super) panels: Panels,
    pub(super) x: &'a [f32],
    pub(super) y: &'a mut [f32],
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (from, to) = (self.from.features(), self.to.features());
        let (x, y) = (self.x, std::mem::take(&mut self.y));
        for panel in self.panels.iter() {
            let end = panel.start + panel.width;
            let (Some(x), Some(y)) =
                (x.get(panel.start * from..end * from), y.get_mut(panel.start * to..end * to))
            else {
                return;
            };
            match panel.width / S::F32_LANES {
                4 => self.panel::<S, 4>(simd, vectors::<S, 4>(x), vectors_mut::<S, 4>(y)),
                2 => self.panel::<S, 2>(simd, vectors::<S, 2>(x), vectors_mut::<S, 2>(y)),
                _ => self.panel::<S, 1>(simd, vectors::<S, 1>(x), vectors_mut::<S, 1>(y)),
            }
        }
    }
}

/// Which taps of a window one pass takes: the i-th of its rows and columns for i in these ranges.
#[derive(Clone, Copy)]
struct Pass {
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Gather<'_> {
    /// One panel. Passes, segments and groups only choose which part of which chain runs next.
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(&self, simd: S, x: &[[S::f32s; V]], y: &mut [[S::f32s; V]]) {
        let (kernel, outputs) = (self.kernel, self.to.channels);
        let row_bytes = kernel * self.from.channels * V * S::F32_LANES * 4;
        // The whole window at once, or row by row, or tap by tap.
        let (row_passes, column_passes) = match () {
            () if row_bytes * kernel <= PASS => (1, 1),
            () if row_bytes <= PASS => (kernel, 1),
            () => (kernel, kernel),
        };
        let passes = row_passes * column_passes;
        let (group, segment) = if passes == 1 {
            (outputs, self.columns.len())
        } else {
            (GROUP, (SEGMENT / row_bytes / self.stride).max(LEAST_SEGMENT))
        };
        for (row, window) in self.rows.iter().enumerate() {
            for segment in steps(self.columns.len(), segment) {
                for pass in 0..passes {
                    let taps = |index: usize, passes: usize| {
                        if passes == 1 { (0, kernel) } else { (index, index + 1) }
                    };
                    let pass_of = Pass {
                        rows: taps(pass / column_passes, row_passes),
                        columns: taps(pass % column_passes, column_passes),
                    };
                    for group in steps(outputs, group) {
                        for column in segment.clone() {
                            let first = (row * self.columns.len() + column) * outputs;
                            let (Some(columns), Some(y)) =
                                (self.columns.get(column), y.get_mut(first + group.start..first + group.end))
                            else {
                                return;
                            };
                            let ends = (pass == 0, pass + 1 == passes && self.ends.rectify);
                            self.pixel::<S, V>(simd, pass_of, ends, [window, columns], group.clone(), x, y);
                        }
                    }
                }
            }
        }
    }

    /// A pass over one pixel's window, for a group of output channels: from the start if it is the first.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // one loop's state, in one place
    fn pixel<S: Simd, const V: usize>(
        &self,
        simd: S,
        pass: Pass,
        (first, rectify): (bool, bool),
        [rows, columns]: [&Window; 2],
        group: Range<usize>,
        x: &[[S::f32s; V]],
        y: &mut [[S::f32s; V]],
    ) {
        let channels = self.from.channels;
        let depth = self.kernel * self.kernel * channels;
        let row_taps = pass.rows.0..pass.rows.1.min(rows.count);
        let column_taps = pass.columns.0..pass.columns.1.min(columns.count);
        let taps = column_taps.len();
        // Neighbouring taps on neighbouring pixels are one run.
        let (runs, run_taps) = if columns.step == 1 { (taps.min(1), taps) } else { (taps, 1) };
        tall_tiles!(V, group.len(), |R, r| {
            let Some(out) = y.get_mut(r..).and_then(|y| y.first_chunk_mut::<R>()) else { return };
            let mut tile: Tile<S, R, V> = *out;
            if first {
                for (i, row) in tile.iter_mut().enumerate() {
                    let bias =
                        self.ends.bias.and_then(|bias| bias.get(group.start + r + i)).copied().unwrap_or(0.0);
                    *row = [simd.splat_f32s(bias); V];
                }
            }
            let Some(weights) = self.weights.get((group.start + r) * depth..) else { return };
            for ty in row_taps.clone() {
                let tap_row = (rows.tap + ty * rows.step) * self.kernel;
                let line = (rows.position + ty) * self.from.width;
                for run in 0..runs {
                    let tx = column_taps.start + run;
                    let tap = (tap_row + columns.tap + tx * columns.step) * channels;
                    let start = (line + columns.position + tx) * channels;
                    let (Some(weights), Some(x)) =
                        (weights.get(tap..), x.get(start..start + run_taps * channels))
                    else {
                        return;
                    };
                    tile = by_rows::<S, R, V>(simd, weights, depth, x, tile);
                }
            }
            if rectify {
                let zero = simd.splat_f32s(0.0);
                for value in tile.as_flattened_mut() {
                    *value = simd.select_f32s(simd.less_than_f32s(*value, zero), zero, *value);
                }
            }
            *out = tile;
        });
    }
}

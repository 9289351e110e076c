//! The products themselves: the loops around the tiles, which keep what is read again in cache.

use pulp::{Simd, WithSimd};

use super::panels::{Panel, Panels, cut, transpose, widest_tile};
use super::tile::{Tile, by_columns, by_rows, load, steps, store, vectors, vectors_mut};
use crate::simd;

/// A fully connected layer: `weights` is [outputs, inputs] row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// The layer's input for the weights' gradient: as rows of features, or in panels.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Row-major [examples, inputs].
    Rows(&'a [f32]),
    /// In panels of `inputs` features.
    Panels(&'a [f32]),
}

impl Linear {
    /// y = x Wᵀ + b: `x` in panels of `inputs` features, `y` of `outputs`.
    pub(crate) fn forward(self, weights: &[f32], bias: &[f32], panels: Panels, x: &[f32], y: &mut [f32]) {
        debug_assert!(weights.len() == self.inputs * self.outputs && bias.len() == self.outputs);
        debug_assert!(x.len() == panels.elements(self.inputs) && y.len() == panels.elements(self.outputs));
        for panel in panels.iter() {
            let features = y.get_mut(panel.start * self.outputs..).unwrap_or_default();
            for (row, bias) in features.chunks_exact_mut(panel.width).zip(bias) {
                row.fill(*bias);
            }
        }
        simd::dispatch(Forward { layer: self, weights, panels, x, y });
    }

    /// dx = dy W: `dy` in panels of `outputs` features, `dx` of `inputs`.
    pub(crate) fn backward(self, weights: &[f32], panels: Panels, dy: &[f32], dx: &mut [f32]) {
        debug_assert!(weights.len() == self.inputs * self.outputs);
        debug_assert!(dx.len() == panels.elements(self.inputs) && dy.len() == panels.elements(self.outputs));
        dx.fill(0.0);
        simd::dispatch(Backward { layer: self, weights, panels, dy, dx });
    }

    /// dW = dyᵀ x, a sum over examples: `dy` in panels of `outputs` features. `packed` is room for
    /// [`packed_elements`](Self::packed_elements).
    pub(crate) fn weights(self, panels: Panels, dy: &[f32], x: Rows<'_>, dw: &mut [f32], packed: &mut [f32]) {
        debug_assert!(dw.len() == self.inputs * self.outputs && dy.len() == panels.elements(self.outputs));
        debug_assert!(packed.len() >= self.packed_elements(panels.examples()));
        simd::dispatch(Weights { layer: self, panels, dy, x, dw, packed });
    }

    /// Room that [`weights`](Self::weights) needs for up to `examples` examples, whatever the processor.
    pub(crate) fn packed_elements(self, examples: usize) -> usize {
        let columns = self.inputs.div_ceil(COLUMNS).saturating_mul(COLUMNS);
        // What `group_columns` allows: fewer examples may need no more than this, but more than their own share.
        let group = COLUMNS.saturating_mul(examples).saturating_add(PACKED);
        columns.saturating_mul(examples).min(group)
    }
}

/// Depth of a pass of the forward product: 128 rows of the widest panel are 32 KiB, which fit the first-level cache.
const FORWARD_DEPTH: usize = 128;
/// Depth of a pass of the backward product: its reads of W are a row apart, a page each, and pages are few.
const BACKWARD_DEPTH: usize = 64;
/// Depth of a pass of the weights' product: 128 examples of the widest tile are 32 KiB. A multiple of every panel.
const WEIGHTS_DEPTH: usize = 128;
/// Rows of results that pass over one panel before the next: a multiple of every tile's rows.
const GROUP: usize = 48;
/// The same for the backward product, whose rows of results are columns of W: 768 bytes of each of its rows.
const BACKWARD_GROUP: usize = 192;
/// Columns that every group of packed tiles is a multiple of: the widest tile of the widest vectors.
const COLUMNS: usize = 64;
/// Numbers in a group of packed tiles: 256 KiB, a part of the second-level cache.
const PACKED: usize = 65_536;

fn group_columns(examples: usize) -> usize {
    (PACKED / examples.max(1)).next_multiple_of(COLUMNS).min(16 * COLUMNS)
}

struct Forward<'a> {
    layer: Linear,
    weights: &'a [f32],
    panels: Panels,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer: Linear { inputs, outputs }, weights, panels, x, y } = self;
        for group in steps(outputs, GROUP) {
            for k in steps(inputs, FORWARD_DEPTH) {
                for panel in panels.iter() {
                    let Some(x) = rows(x, panel, inputs, &k) else { return };
                    let Some(y) = rows_mut(y, panel, outputs, &group) else { return };
                    let Some(weights) = weights.get(group.start * inputs..group.end * inputs) else { return };
                    tiles!(S, panel.width, group.len(), |R, V, r| {
                        let (x, y) = (vectors::<S, V>(x), vectors_mut::<S, V>(y));
                        let Some(tile) = y.get_mut(r..).and_then(|y| y.first_chunk_mut::<R>()) else {
                            return;
                        };
                        let Some(weights) = weights.get(r * inputs + k.start..) else { return };
                        *tile = by_rows::<S, R, V>(simd, weights, inputs, x, *tile);
                    });
                }
            }
        }
    }
}

struct Backward<'a> {
    layer: Linear,
    weights: &'a [f32],
    panels: Panels,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer: Linear { inputs, outputs }, weights, panels, dy, dx } = self;
        for k in steps(outputs, BACKWARD_DEPTH) {
            let Some(weights) = weights.get(k.start * inputs..k.end * inputs) else { return };
            for group in steps(inputs, BACKWARD_GROUP) {
                for panel in panels.iter() {
                    let Some(dy) = rows(dy, panel, outputs, &k) else { return };
                    let Some(dx) = rows_mut(dx, panel, inputs, &group) else { return };
                    tiles!(S, panel.width, group.len(), |R, V, r| {
                        let (dy, dx) = (vectors::<S, V>(dy), vectors_mut::<S, V>(dx));
                        let Some(tile) = dx.get_mut(r..).and_then(|dx| dx.first_chunk_mut::<R>()) else {
                            return;
                        };
                        *tile = by_columns::<S, R, V>(simd, weights, inputs, group.start + r, dy, *tile);
                    });
                }
            }
        }
    }
}

struct Weights<'a> {
    layer: Linear,
    panels: Panels,
    dy: &'a [f32],
    x: Rows<'a>,
    dw: &'a mut [f32],
    packed: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { layer: Linear { inputs, outputs }, panels, dy, x, dw, packed } = self;
        let examples = panels.examples();
        if examples == 0 {
            dw.fill(0.0);
            return;
        }
        let widest = S::F32_LANES * widest_tile::<S>();
        for columns in steps(inputs, group_columns(examples)) {
            for tile in cut(columns.len(), S::F32_LANES, widest) {
                let Some(packed) =
                    packed.get_mut(tile.start * examples..(tile.start + tile.width) * examples)
                else {
                    return;
                };
                pack(x, panels, inputs, columns.start, tile, packed);
            }
            for group in steps(outputs, GROUP) {
                for tile in cut(columns.len(), S::F32_LANES, widest) {
                    for k in steps(examples, WEIGHTS_DEPTH) {
                        let start = tile.start * examples + tile.width * k.start;
                        let Some(packed) = packed.get(start..start + tile.width * k.len()) else { return };
                        tiles!(S, tile.width, group.len(), |R, V, r| {
                            let first = (group.start + r) * inputs + columns.start + tile.start;
                            let Some(out) = dw.get_mut(first..) else { return };
                            let mut sums: Tile<S, R, V> = [[simd.splat_f32s(0.0); V]; R];
                            if k.start > 0 {
                                sums = load::<S, R, V>(simd, out, inputs, tile.used);
                            }
                            let mut rest = vectors::<S, V>(packed);
                            for panel in panels.iter().filter(|panel| k.contains(&panel.start)) {
                                let Some((x, after)) = rest.split_at_checked(panel.used) else { return };
                                rest = after;
                                let Some(dy) = rows(dy, panel, outputs, &group) else { return };
                                let Some(dy) = dy.get(r * panel.width..) else { return };
                                sums = by_rows::<S, R, V>(simd, dy, panel.width, x, sums);
                            }
                            store::<S, R, V>(simd, sums, out, inputs, tile.used);
                        });
                    }
                }
            }
        }
    }
}

/// Copies columns of x into one tile: a row of `tile.width` numbers for each example, zeros past the last column.
#[inline(always)]
fn pack(x: Rows<'_>, panels: Panels, inputs: usize, first: usize, tile: Panel, packed: &mut [f32]) {
    let first = first + tile.start;
    match x {
        Rows::Rows(x) => {
            for (row, out) in x.chunks_exact(inputs).zip(packed.chunks_exact_mut(tile.width)) {
                let (out, padding) = out.split_at_mut(tile.used);
                out.copy_from_slice(row.get(first..first + tile.used).unwrap_or_default());
                padding.fill(0.0);
            }
        }
        Rows::Panels(x) => {
            if tile.used < tile.width {
                packed.fill(0.0);
            }
            for panel in panels.iter() {
                let Some(x) = rows(x, panel, inputs, &(first..first + tile.used)) else { return };
                let Some(out) = packed.get_mut(panel.start * tile.width..) else { return };
                transpose(x, panel.width, tile.used, panel.used, out, tile.width);
            }
        }
    }
}

/// Feature rows `range` of a panel.
#[inline(always)]
fn rows<'a>(
    x: &'a [f32],
    panel: Panel,
    features: usize,
    range: &std::ops::Range<usize>,
) -> Option<&'a [f32]> {
    let base = panel.start * features;
    x.get(base + range.start * panel.width..base + range.end * panel.width)
}

#[inline(always)]
fn rows_mut<'a>(
    x: &'a mut [f32],
    panel: Panel,
    features: usize,
    range: &std::ops::Range<usize>,
) -> Option<&'a mut [f32]> {
    let base = panel.start * features;
    x.get_mut(base + range.start * panel.width..base + range.end * panel.width)
}

/// Runs a body for every tile of `rows` rows in panels of `width`: `R` and `V` are constants of the body, `r` the
/// tile's first row. Rows that fill no tile go one by one.
#[rustfmt::skip] // rustfmt indents the inner macro further at every run
macro_rules! tiles {
    ($simd:ident, $width:expr, $rows:expr, |$R:ident, $V:ident, $r:ident| $body:block) => {{
        macro_rules! run {
            ($height:literal, $vectors:literal) => {{
                const $V: usize = $vectors;
                let mut $r = 0;
                {
                    const $R: usize = $height;
                    while $r + $R <= $rows {
                        $body
                        $r += $R;
                    }
                }
                const $R: usize = 1;
                while $r < $rows {
                    $body
                    $r += 1;
                }
            }};
        }
        match $width / $simd::F32_LANES {
            4 => run!(6, 4),
            2 => run!(6, 2),
            _ => run!(8, 1),
        }
    }};
}
use tiles;

#[cfg(test)]
mod tests;

//! The weights' gradient: output channels in the lanes, taps as the rows of tiles, examples as the chain.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Convolution, Window};
use crate::layers::Panels;
use crate::linear::tiles::{
    Tile, by_rows, cut, load, steps, store, tall_tiles, transpose, vectors, widest_tile,
};

/// Numbers of both activations that a segment of output pixels reads: a part of the second-level cache.
const SEGMENT: usize = 96 << 10;
/// Least pixels of a segment: each segment reads and writes all sums.
const LEAST_SEGMENT: usize = 4;
/// Lanes of the widest vector.
const LANES: usize = 16;

fn segment(layer: &Convolution, examples: usize) -> usize {
    let pixel = layer.output.channels + layer.kernel * layer.stride * layer.input.channels;
    (SEGMENT / pixel / examples.max(1)).max(LEAST_SEGMENT).min(layer.output.width)
}

pub(super) fn packed_elements(layer: &Convolution, examples: usize) -> usize {
    let pixel = layer.output.channels + layer.kernel * layer.stride * layer.input.channels;
    let pixels = (SEGMENT / pixel)
        .max(LEAST_SEGMENT.saturating_mul(examples))
        .min(layer.output.width.saturating_mul(examples));
    pixels.saturating_mul(layer.output.channels.next_multiple_of(LANES))
}

pub(super) struct Weights<'a> {
    pub(super) layer: &'a Convolution,
    pub(super) panels: Panels,
    pub(super) dy: &'a [f32],
    pub(super) x: &'a [f32],
    /// [taps, input channels, output channels].
    pub(super) sums: &'a mut [f32],
    pub(super) packed: &'a mut [f32],
}

impl WithSimd for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let layer = self.layer;
        let widest = S::F32_LANES * widest_tile::<S>();
        let outputs = layer.output.channels;
        for (row, window) in layer.rows.iter().enumerate() {
            for pixels in steps(layer.output.width, segment(layer, self.panels.examples())) {
                for tile in cut(outputs, S::F32_LANES, widest) {
                    let part = tile.start..tile.start + tile.used;
                    self.pack(row * layer.output.width + pixels.start, pixels.len(), &part, tile.width);
                    match tile.width / S::F32_LANES {
                        4 => self.segment::<S, 4>(simd, window, &pixels, &part),
                        2 => self.segment::<S, 2>(simd, window, &pixels, &part),
                        _ => self.segment::<S, 1>(simd, window, &pixels, &part),
                    }
                }
            }
        }
    }
}

impl Weights<'_> {
    /// Lays the gradients of `count` output pixels from `first` on, of some channels, out as [pixel, example, channel].
    fn pack(&mut self, first: usize, count: usize, channels: &Range<usize>, width: usize) {
        let (examples, outputs) = (self.panels.examples(), self.layer.output.channels);
        let features = self.layer.output.features();
        if channels.len() < width {
            self.packed.get_mut(..count * examples * width).unwrap_or_default().fill(0.0);
        }
        for panel in self.panels.iter() {
            for pixel in 0..count {
                let from =
                    panel.start * features + ((first + pixel) * outputs + channels.start) * panel.width;
                let to = (pixel * examples + panel.start) * width;
                let (Some(from), Some(to)) = (self.dy.get(from..), self.packed.get_mut(to..)) else { return };
                transpose(from, panel.width, channels.len(), panel.used, to, width);
            }
        }
    }

    /// Adds what a segment of a row of output pixels gives to the sums of some output channels.
    #[inline(always)]
    fn segment<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        rows: &Window,
        pixels: &Range<usize>,
        part: &Range<usize>,
    ) {
        let layer = self.layer;
        let channels = layer.input.channels;
        // Without padding every column has every tap: a window's row is one run.
        let whole = layer.columns.iter().all(|window| window.count == layer.kernel);
        let (runs, run) = if whole { (1, layer.kernel * channels) } else { (layer.kernel, channels) };
        for ty in 0..rows.count {
            for tap in 0..runs {
                let has = |pixel: usize| {
                    layer.columns.get(pixel).is_some_and(|w| (w.tap..w.tap + w.count).contains(&tap))
                };
                let Some(first) = pixels.clone().find(|&pixel| has(pixel)) else { continue };
                let end = pixels.clone().rfind(|&pixel| has(pixel)).map_or(first, |last| last + 1);
                let sums = ((rows.tap + ty) * layer.kernel + tap) * channels;
                let Some(window) = layer.columns.get(first) else { return };
                // Input feature of the run's first row, for the first pixel.
                let x = ((rows.position + ty) * layer.input.width + window.position + tap - window.tap)
                    * channels;
                self.run::<S, V>(simd, [sums, x, run], first - pixels.start..end - pixels.start, part);
            }
        }
    }

    /// Adds to the sums of rows `sums ..` what input features `x ..` and the packed `pixels` give; `depth` of them.
    #[inline(always)]
    fn run<S: Simd, const V: usize>(
        &mut self,
        simd: S,
        [sums, x, depth]: [usize; 3],
        pixels: Range<usize>,
        part: &Range<usize>,
    ) {
        let layer = self.layer;
        let (examples, outputs) = (self.panels.examples(), layer.output.channels);
        let (features, step) = (layer.input.features(), layer.stride * layer.input.channels);
        let packed = vectors::<S, V>(self.packed);
        tall_tiles!(V, depth, |R, r| {
            let Some(out) = self.sums.get_mut((sums + r) * outputs + part.start..) else { return };
            let mut tile: Tile<S, R, V> = load::<S, R, V>(simd, out, outputs, part.len());
            for (index, pixel) in pixels.clone().enumerate() {
                for panel in self.panels.iter() {
                    let from = panel.start * features + (x + index * step + r) * panel.width;
                    let to = pixel * examples + panel.start;
                    let (Some(x), Some(columns)) = (self.x.get(from..), packed.get(to..to + panel.used))
                    else {
                        return;
                    };
                    tile = by_rows::<S, R, V>(simd, x, panel.width, columns, tile);
                }
            }
            store::<S, R, V>(simd, tile, out, outputs, part.len());
        });
    }
}

/// Room that a segment's widest tile takes.
#[cfg(test)]
pub(super) fn needed(layer: &Convolution, examples: usize) -> usize {
    segment(layer, examples) * examples * layer.output.channels.next_multiple_of(LANES).min(4 * LANES)
}

//! Convolution in two dimensions (as networks call what is a cross-correlation), with stride, padding by zeros and a bias.
//!
//! Invariants, for weights w of shape [outputs, inputs, kernel, kernel] and t the pixel of the input that tap (ky, kx) of
//! output pixel q lies on, t = q stride + (ky, kx) - padding. Taps beside the image are left out: they add nothing.
//! 1. forward:  y[q, o] starts at b[o] (at +0 without bias), then `fma(w[o, c, ky, kx], x[t, c], ·)` over ky, kx and c
//!    ascending, c fastest;
//! 2. backward: dx[t, c] starts at +0, then `fma(w[o, c, ky, kx], dy[q, o], ·)` over the output pixels q that have a tap
//!    on t, ascending, then o;
//! 3. weights:  dw[o, c, ky, kx] starts at +0, then `fma(x[t, c], dy[q, o], ·)` over the output pixels q ascending, then
//!    the examples.
//!
//! So bits depend neither on vector width, tiling, cache sizes nor the machine (see `linear`, whose tiles these are).
//!
//! How speed is had: pixels hold their channels together (see [`Image`]), so a window's row is one run of features
//! that a tile reads where it lies; nothing is gathered. The weights are laid out once a call in the order of the runs.

mod gather;
mod weights;
mod window;

use self::gather::Gather;
use self::window::{Window, backward, forward};
use super::{Image, Panels};
use crate::linear::transpose;
use crate::simd;

/// A convolution of images of one size.
#[derive(Clone, Debug)]
pub(crate) struct Convolution {
    input: Image,
    output: Image,
    kernel: usize,
    stride: usize,
    /// Where the taps of each row and column of the output lie in the input, and the other way round.
    rows: Vec<Window>,
    columns: Vec<Window>,
    rows_back: Vec<Window>,
    columns_back: Vec<Window>,
}

/// How the forward chains start, and what becomes of their ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends<'a> {
    /// What they start at; +0 if there is none.
    pub(crate) bias: Option<&'a [f32]>,
    /// Whether what is negative becomes zero, as in [`relu`](super::relu).
    pub(crate) rectify: bool,
}

impl Convolution {
    /// The convolution of `input` by `outputs` square kernels; `None` unless the padding is below the kernel, the stride
    /// is at least 1 and the padded image holds a kernel.
    pub(crate) fn new(
        input: Image,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Option<Self> {
        let size = |side: usize| Some((side + 2 * padding).checked_sub(kernel)?.checked_div(stride)? + 1);
        if padding >= kernel || input.channels == 0 || outputs == 0 {
            return None;
        }
        let (height, width) = (size(input.height)?, size(input.width)?);
        Some(Self {
            input,
            output: Image { channels: outputs, height, width },
            kernel,
            stride,
            rows: forward(input.height, height, kernel, stride, padding),
            columns: forward(input.width, width, kernel, stride, padding),
            rows_back: backward(input.height, height, kernel, stride, padding),
            columns_back: backward(input.width, width, kernel, stride, padding),
        })
    }

    /// The result's sizes.
    pub(crate) fn output(&self) -> Image {
        self.output
    }

    /// Numbers of the weights.
    pub(crate) fn weight_elements(&self) -> usize {
        self.output.channels.saturating_mul(self.depth())
    }

    /// Weights of one output channel.
    fn depth(&self) -> usize {
        self.input.channels.saturating_mul(self.taps())
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// `x` and `y` in panels of the input's and the output's features; `scratch` is room for the weights.
    pub(crate) fn forward(
        &self,
        weights: &[f32],
        ends: Ends<'_>,
        panels: Panels,
        x: &[f32],
        y: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (inputs, taps, depth) = (self.input.channels, self.taps(), self.depth());
        let Some(ordered) = scratch.get_mut(..weights.len()) else { return };
        for (from, to) in weights.chunks_exact(depth).zip(ordered.chunks_exact_mut(depth)) {
            transpose(from, taps, inputs, taps, to, inputs);
        }
        simd::dispatch(Gather {
            from: self.input,
            to: self.output,
            rows: &self.rows,
            columns: &self.columns,
            kernel: self.kernel,
            stride: self.stride,
            weights: ordered,
            ends,
            panels,
            x,
            y,
        });
    }

    /// `dy` in panels of the output's features, `dx` of the input's; `scratch` is room for the weights.
    pub(crate) fn backward(
        &self,
        weights: &[f32],
        panels: Panels,
        dy: &[f32],
        dx: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (outputs, taps, depth) = (self.output.channels, self.taps(), self.depth());
        let Some(ordered) = scratch.get_mut(..weights.len()) else { return };
        // For an input pixel, ascending output pixels are descending taps.
        for (channel, to) in ordered.chunks_exact_mut(taps * outputs).enumerate() {
            let Some(from) = weights.get(channel * taps..) else { return };
            transpose(from, depth, outputs, taps, to, outputs);
            for tap in 0..taps / 2 {
                let (head, tail) = to.split_at_mut((taps - 1 - tap) * outputs);
                if let (Some(a), Some(b)) =
                    (head.get_mut(tap * outputs..(tap + 1) * outputs), tail.get_mut(..outputs))
                {
                    a.swap_with_slice(b);
                }
            }
        }
        simd::dispatch(Gather {
            from: self.output,
            to: self.input,
            rows: &self.rows_back,
            columns: &self.columns_back,
            kernel: self.kernel,
            stride: 1,
            weights: ordered,
            ends: Ends::default(),
            panels,
            x: dy,
            y: dx,
        });
    }

    /// The weights' gradient, a sum over examples; `scratch` is room for the weights, `packed` for
    /// [`packed_elements`](Self::packed_elements).
    pub(crate) fn weights(
        &self,
        panels: Panels,
        dy: &[f32],
        x: &[f32],
        dw: &mut [f32],
        scratch: &mut [f32],
        packed: &mut [f32],
    ) {
        let (inputs, outputs, taps) = (self.input.channels, self.output.channels, self.taps());
        let Some(sums) = scratch.get_mut(..dw.len()) else { return };
        sums.fill(0.0);
        simd::dispatch(weights::Weights { layer: self, panels, dy, x, sums: &mut *sums, packed });
        for channel in 0..inputs {
            let (Some(from), Some(to)) = (sums.get(channel * outputs..), dw.get_mut(channel * taps..)) else {
                return;
            };
            transpose(from, inputs * outputs, taps, outputs, to, inputs * taps);
        }
    }

    /// Room that [`weights`](Self::weights) needs for up to `examples` examples, whatever the processor.
    pub(crate) fn packed_elements(&self, examples: usize) -> usize {
        weights::packed_elements(self, examples)
    }
}

#[cfg(test)]
mod tests;

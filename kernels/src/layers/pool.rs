//! Pooling: the greatest value of each window, or the mean of it. Windows that would reach beyond the image are left out.
//!
//! Invariants, for the taps of a window ascending by row and column:
//! 1. greatest: `y` is the first of the greatest taps; a NaN counts as greater than all before it. Its gradient goes to
//!    that tap: `dx` starts at +0 and adds `dy` of each window that chose it, windows ascending.
//! 2. mean: `y` is the sum of the taps from +0 on, divided by their number; `dx` starts at +0 and adds `dy / number` of
//!    each window that covers it, windows ascending.

use super::{Image, Panels};
use crate::simd::vectorized;

/// Windows over images of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pool {
    input: Image,
    output: Image,
    /// Height and width of a window.
    window: [usize; 2],
    stride: usize,
}

impl Pool {
    /// Square windows, `stride` apart; `None` if the image holds none, or one of the two is zero.
    pub(crate) fn new(input: Image, size: usize, stride: usize) -> Option<Self> {
        let count = |side: usize| Some(side.checked_sub(size)?.checked_div(stride)? + 1);
        let output =
            Image { channels: input.channels, height: count(input.height)?, width: count(input.width)? };
        (size > 0).then_some(Self { input, output, window: [size; 2], stride })
    }

    /// One window: the whole image.
    pub(crate) fn global(input: Image) -> Self {
        let output = Image { height: 1, width: 1, ..input };
        Self { input, output, window: [input.height, input.width], stride: 1 }
    }

    /// The result's sizes.
    pub(crate) fn output(self) -> Image {
        self.output
    }

    /// The greatest of each window.
    pub(crate) fn greatest(self, panels: Panels, x: &[f32], y: &mut [f32]) {
        greatest(self, panels, x, y);
    }

    /// The gradient through [`greatest`](Self::greatest). With `rectified`, `x` came from [`relu`](super::relu), and the
    /// gradient is that of what went into it.
    pub(crate) fn greatest_gradient(
        self,
        rectified: bool,
        panels: Panels,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) {
        if !self.tiles() {
            dx.fill(0.0);
        }
        greatest_gradient(self, rectified, panels, x, dy, dx);
    }

    /// The mean of each window.
    pub(crate) fn mean(self, panels: Panels, x: &[f32], y: &mut [f32]) {
        mean(self, panels, x, y);
    }

    /// The gradient through [`mean`](Self::mean).
    pub(crate) fn mean_gradient(self, panels: Panels, dy: &[f32], dx: &mut [f32]) {
        dx.fill(0.0);
        mean_gradient(self, panels, dy, dx);
    }

    /// Whether every pixel of the input is in one window.
    fn tiles(self) -> bool {
        let covers = |side: usize, window: usize| window == self.stride && side.is_multiple_of(window);
        covers(self.input.height, self.window[0]) && covers(self.input.width, self.window[1])
    }

    /// For each window, its number and its first pixel in the input.
    #[inline(always)]
    fn windows(self) -> impl Iterator<Item = (usize, usize)> {
        let Self { input, output, stride, .. } = self;
        (0..output.height).flat_map(move |y| {
            (0..output.width).map(move |x| (y * output.width + x, (y * input.width + x) * stride))
        })
    }

    /// The pixels of the window that begins with `first`.
    #[inline(always)]
    fn taps(self, first: usize) -> impl Iterator<Item = usize> + Clone {
        let [height, width] = self.window;
        (0..height).flat_map(move |y| (0..width).map(move |x| first + y * self.input.width + x))
    }

    /// Of each panel its channels' rows together: where it starts in the input and in the output, and how long a pixel is.
    #[inline(always)]
    fn panels(self, panels: Panels) -> impl Iterator<Item = (usize, usize, usize)> {
        let (input, output) = (self.input.features(), self.output.features());
        panels
            .iter()
            .map(move |panel| (panel.start * input, panel.start * output, panel.width * self.input.channels))
    }
}

/// Numbers that are compared side by side.
const SIDE: usize = 16;

vectorized! {
    fn greatest<'a>(pool: Pool, panels: Panels, x: &'a [f32], y: &'a mut [f32]) {
        for (input, output, pixel) in pool.panels(panels) {
            for (window, first) in pool.windows() {
                let Some(y) = y.get_mut(output + window * pixel..output + (window + 1) * pixel) else { return };
                for (index, tap) in pool.taps(first).enumerate() {
                    let Some(x) = x.get(input + tap * pixel..input + (tap + 1) * pixel) else { return };
                    if index == 0 {
                        y.copy_from_slice(x);
                        continue;
                    }
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = if chosen(*x, *y) { *x } else { *y };
                    }
                }
            }
        }
    }

    fn greatest_gradient<'a>(
        pool: Pool,
        rectified: bool,
        panels: Panels,
        x: &'a [f32],
        dy: &'a [f32],
        dx: &'a mut [f32],
    ) {
        let flags = (rectified, pool.tiles());
        for (input, output, pixel) in pool.panels(panels) {
            for (window, first) in pool.windows() {
                let Some(dy) = dy.get(output + window * pixel..output + (window + 1) * pixel) else { return };
                let mut start = 0;
                while start < pixel {
                    let at = |tap: usize| input + tap * pixel + start;
                    let taps = pool.taps(first).map(at);
                    if let Some(dy) = dy.get(start..).and_then(|dy| dy.first_chunk::<SIDE>()) {
                        route(flags, taps, x, dy, dx);
                        start += SIDE;
                    } else {
                        let Some(dy) = dy.get(start..).and_then(|dy| dy.first_chunk::<1>()) else { return };
                        route(flags, taps, x, dy, dx);
                        start += 1;
                    }
                }
            }
        }
    }

    fn mean<'a>(pool: Pool, panels: Panels, x: &'a [f32], y: &'a mut [f32]) {
        let number = (pool.window[0] * pool.window[1]) as f32;
        for (input, output, pixel) in pool.panels(panels) {
            for (window, first) in pool.windows() {
                let Some(y) = y.get_mut(output + window * pixel..output + (window + 1) * pixel) else { return };
                y.fill(0.0);
                for tap in pool.taps(first) {
                    let Some(x) = x.get(input + tap * pixel..input + (tap + 1) * pixel) else { return };
                    for (y, x) in y.iter_mut().zip(x) {
                        *y += *x;
                    }
                }
                for y in y {
                    *y /= number;
                }
            }
        }
    }

    fn mean_gradient<'a>(pool: Pool, panels: Panels, dy: &'a [f32], dx: &'a mut [f32]) {
        let number = (pool.window[0] * pool.window[1]) as f32;
        for (input, output, pixel) in pool.panels(panels) {
            for (window, first) in pool.windows() {
                let Some(dy) = dy.get(output + window * pixel..output + (window + 1) * pixel) else { return };
                for tap in pool.taps(first) {
                    let Some(dx) = dx.get_mut(input + tap * pixel..input + (tap + 1) * pixel) else { return };
                    for (dx, dy) in dx.iter_mut().zip(dy) {
                        *dx += *dy / number;
                    }
                }
            }
        }
    }
}

/// Whether a tap takes the place of the greatest so far.
#[inline(always)]
#[allow(clippy::eq_op)] // a NaN
fn chosen(x: f32, greatest: f32) -> bool {
    x > greatest || x != x
}

/// Adds `N` neighbouring gradients of a window to the gradients of its taps, which begin at `taps`; if these are the
/// first that the taps receive, to +0.
#[inline(always)]
fn route<const N: usize>(
    (rectified, first): (bool, bool),
    taps: impl Iterator<Item = usize> + Clone,
    x: &[f32],
    dy: &[f32; N],
    dx: &mut [f32],
) {
    let (mut greatest, mut choice) = ([0.0f32; N], [0u32; N]);
    for (index, tap) in taps.clone().enumerate() {
        let Some(x) = x.get(tap..).and_then(|x| x.first_chunk::<N>()) else { return };
        for i in 0..N {
            let take = index == 0 || chosen(x[i], greatest[i]);
            greatest[i] = if take { x[i] } else { greatest[i] };
            choice[i] = if take { index as u32 } else { choice[i] };
        }
    }
    let mut passed = *dy;
    if rectified {
        for i in 0..N {
            passed[i] = if greatest[i] > 0.0 { passed[i] } else { 0.0 };
        }
    }
    for (index, tap) in taps.enumerate() {
        let Some(dx) = dx.get_mut(tap..).and_then(|dx| dx.first_chunk_mut::<N>()) else { return };
        for i in 0..N {
            let so_far = if first { 0.0 } else { dx[i] };
            dx[i] = so_far + if choice[i] == index as u32 { passed[i] } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let stream = crate::Philox::new(seed, crate::Purpose::Noise, 0, 0);
        // Few distinct values: ties are common.
        let values = (0..count.div_ceil(4)).flat_map(|block| stream.normal(block as u32)).take(count);
        values.map(|value| (value * 2.0).round()).collect()
    }

    /// What each kind of pooling gives for examples in rows of (y, x, channel): invariants 1 and 2, written out.
    fn reference(pool: Pool, examples: usize, x: &[f32], dy: &[f32]) -> [Vec<f32>; 5] {
        let (input, output) = (pool.input, pool.output);
        let mut out = [0, 1].map(|_| vec![0f32; examples * output.features()]);
        let mut back = [0, 1, 2].map(|_| vec![0f32; examples * input.features()]);
        for e in 0..examples {
            for (qy, qx) in (0..output.height).flat_map(|y| (0..output.width).map(move |x| (y, x))) {
                for c in 0..input.channels {
                    let q = e * output.features() + (qy * output.width + qx) * input.channels + c;
                    let taps: Vec<usize> = (0..pool.window[0])
                        .flat_map(|ty| (0..pool.window[1]).map(move |tx| (ty, tx)))
                        .map(|(ty, tx)| {
                            let pixel = (qy * pool.stride + ty) * input.width + qx * pool.stride + tx;
                            e * input.features() + pixel * input.channels + c
                        })
                        .collect();
                    let mut best = taps[0];
                    for &tap in &taps {
                        best = if x[tap] > x[best] { tap } else { best };
                    }
                    out[0][q] = x[best];
                    back[0][best] += dy[q];
                    back[1][best] += if x[best] > 0.0 { dy[q] } else { 0.0 };
                    let mut sum = 0.0;
                    for &tap in &taps {
                        sum += x[tap];
                        back[2][tap] += dy[q] / taps.len() as f32;
                    }
                    out[1][q] = sum / taps.len() as f32;
                }
            }
        }
        let ([greatest, mean], [a, b, c]) = (out, back);
        [greatest, a, b, mean, c]
    }

    #[test]
    fn pools_are_their_definition_at_every_width() {
        let image = |channels, height, width| Image { channels, height, width };
        for (examples, pool) in [
            (1, Pool::new(image(1, 2, 2), 2, 2)),
            (17, Pool::new(image(3, 4, 6), 2, 2)),
            (9, Pool::new(image(2, 7, 5), 3, 2)),
            (33, Pool::new(image(1, 5, 5), 2, 2)),
            (5, Pool::new(image(3, 3, 8), 1, 2)),
            (70, Some(Pool::global(image(5, 3, 4)))),
        ] {
            let pool = pool.unwrap();
            let (input, output) = (pool.input.features(), pool.output.features());
            let (x, dy) = (numbers(examples * input, 1), numbers(examples * output, 2));
            let expected = reference(pool, examples, &x, &dy);
            forced::each(|| {
                let panels = Panels::new(examples);
                let fill = |values: &[f32], features| {
                    let mut filled = vec![f32::NAN; panels.elements(features)];
                    panels.fill(values, features, &mut filled);
                    filled
                };
                let (xp, dyp) = (fill(&x, input), fill(&dy, output));
                let mut y = vec![f32::NAN; dyp.len()];
                let mut dx = vec![f32::NAN; xp.len()];
                let empty = |values: &[f32], features| {
                    let mut rows = vec![f32::NAN; examples * features];
                    panels.empty(values, features, &mut rows);
                    rows.iter().map(|value: &f32| value.to_bits()).collect::<Vec<_>>()
                };
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                pool.greatest(panels, &xp, &mut y);
                assert_eq!(empty(&y, output), bits(&expected[0]), "{pool:?}");
                for rectified in [false, true] {
                    pool.greatest_gradient(rectified, panels, &xp, &dyp, &mut dx);
                    assert_eq!(empty(&dx, input), bits(&expected[1 + usize::from(rectified)]), "{pool:?}");
                }
                pool.mean(panels, &xp, &mut y);
                assert_eq!(empty(&y, output), bits(&expected[3]), "{pool:?}");
                pool.mean_gradient(panels, &dyp, &mut dx);
                assert_eq!(empty(&dx, input), bits(&expected[4]), "{pool:?}");
            });
        }
    }

    #[test]
    fn nan_is_noticed_and_impossible_pools_are_none() {
        let image = Image { channels: 1, height: 2, width: 2 };
        let (panels, pool) = (Panels::new(1), Pool::new(image, 2, 2).unwrap());
        let mut x = vec![0.0; panels.elements(4)];
        panels.fill(&[1.0, f32::NAN, 2.0, 0.0], 4, &mut x);
        let mut y = vec![0.0; panels.elements(1)];
        pool.greatest(panels, &x, &mut y);
        assert!(y[0].is_nan());
        assert!(Pool::new(image, 3, 1).is_none() && Pool::new(image, 0, 1).is_none());
        assert!(Pool::new(image, 1, 0).is_none());
    }
}

//! Batch normalisation of images (Ioffe and Szegedy, "Batch normalization", 2015): each channel by its mean and variance
//! over the pixels and examples of a logical shard, then scaled and shifted.
//!
//! Invariants, with N the number of a channel's values in the shard and sums those of [`bias`](super::bias), interleaved:
//! 1. mean = (sum of x) / N; variance = (sum of `fma(x - mean, x - mean, ·)`) / N; inverse = 1 / sqrt(variance + epsilon).
//! 2. y = `fma(x - mean, weight inverse, bias)`.
//! 3. The bias's gradient is the sum of dy; the weight's is d inverse, with d the sum of `fma(dy, x - mean, ·)`;
//!    dx = `fma(mean - x, d / N inverse inverse, dy - (sum of dy) / N)` times (weight inverse).
//! 4. A shard's part in the running statistics is its mean, and its variance without bias, variance (N / (N - 1)), each
//!    times its examples. What they come to over all shards divided by all examples, a server puts in the old statistics.
//!
//! Evaluation takes the running statistics instead of the shard's.

use super::bias::{interleaved, sum_positions};
use super::{Image, Panels};
use crate::simd::vectorized;

/// Added to the variance, as PyTorch's `nn.BatchNorm2d` does by default.
const EPSILON: f32 = 1e-5;

/// A normalisation of images of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BatchNorm {
    pub(crate) image: Image,
}

/// What each channel is normalised by. Each is as long as there are channels.
pub(crate) struct Statistics<'a> {
    pub(crate) mean: &'a mut [f32],
    pub(crate) variance: &'a mut [f32],
    /// One over the standard deviation.
    pub(crate) inverse: &'a mut [f32],
}

impl Statistics<'_> {
    fn invert(&mut self) {
        for (inverse, variance) in self.inverse.iter_mut().zip(&*self.variance) {
            *inverse = 1.0 / (*variance + EPSILON).sqrt();
        }
    }

    /// Running statistics in the place of a shard's.
    pub(crate) fn adopt(&mut self, mean: &[f32], variance: &[f32]) {
        self.mean.copy_from_slice(mean);
        self.variance.copy_from_slice(variance);
        self.invert();
    }
}

impl BatchNorm {
    fn number(self, panels: Panels) -> f32 {
        (panels.examples() * self.image.pixels()).max(1) as f32
    }

    /// The shard's own statistics.
    pub(crate) fn measure(self, panels: Panels, x: &[f32], of: &mut Statistics<'_>) {
        let (pixels, number) = (self.image.pixels(), self.number(panels));
        sum_positions(panels, pixels, x, of.mean);
        of.mean.iter_mut().for_each(|mean| *mean /= number);
        squares(panels, pixels, x, &*of.mean, of.variance);
        of.variance.iter_mut().for_each(|variance| *variance /= number);
        of.invert();
    }

    /// A shard's part in the running mean, into `out`.
    pub(crate) fn mean_part(self, panels: Panels, mean: &[f32], out: &mut [f32]) {
        let examples = panels.examples() as f32;
        for (out, mean) in out.iter_mut().zip(mean) {
            *out = *mean * examples;
        }
    }

    /// A shard's part in the running variance, into `out`.
    pub(crate) fn variance_part(self, panels: Panels, variance: &[f32], out: &mut [f32]) {
        let number = self.number(panels);
        let unbiased = if number > 1.0 { number / (number - 1.0) } else { 1.0 };
        let examples = panels.examples() as f32;
        for (out, variance) in out.iter_mut().zip(variance) {
            *out = *variance * unbiased * examples;
        }
    }

    /// `parameters` are weight and bias.
    pub(crate) fn forward(
        self,
        parameters: [&[f32]; 2],
        panels: Panels,
        by: &Statistics<'_>,
        x: &[f32],
        y: &mut [f32],
    ) {
        let [weight, bias] = parameters;
        normalise(self.image, panels, weight, bias, &*by.mean, &*by.inverse, x, y);
    }

    /// The gradients of weight and bias, and that of `x` in the place of `dy`.
    pub(crate) fn backward(
        self,
        weight: &[f32],
        panels: Panels,
        by: &Statistics<'_>,
        x: &[f32],
        dy: &mut [f32],
        [dweight, dbias]: [&mut [f32]; 2],
    ) {
        let number = self.number(panels);
        sum_positions(panels, self.image.pixels(), dy, dbias);
        products(panels, self.image.pixels(), dy, x, &*by.mean, dweight);
        back(self.image, panels, number, weight, &*by.mean, &*by.inverse, &*dweight, &*dbias, x, dy);
        for (dweight, inverse) in dweight.iter_mut().zip(&*by.inverse) {
            *dweight *= *inverse;
        }
    }
}

vectorized! {
    fn squares<'a>(panels: Panels, pixels: usize, x: &'a [f32], mean: &'a [f32], out: &'a mut [f32]) {
        interleaved(panels, pixels, x, x, out, |channel| {
            let mean = mean.get(channel).copied().unwrap_or(0.0);
            move |sum, x, _| (x - mean).mul_add(x - mean, sum)
        });
    }

    fn products<'a>(
        panels: Panels,
        pixels: usize,
        dy: &'a [f32],
        x: &'a [f32],
        mean: &'a [f32],
        out: &'a mut [f32],
    ) {
        interleaved(panels, pixels, dy, x, out, |channel| {
            let mean = mean.get(channel).copied().unwrap_or(0.0);
            move |sum, dy, x| dy.mul_add(x - mean, sum)
        });
    }

    #[allow(clippy::too_many_arguments)] // a loop's operands
    fn normalise<'a>(
        image: Image,
        panels: Panels,
        weight: &'a [f32],
        bias: &'a [f32],
        mean: &'a [f32],
        inverse: &'a [f32],
        x: &'a [f32],
        y: &'a mut [f32],
    ) {
        for panel in panels.iter() {
            let range = panel.start * image.features()..(panel.start + panel.width) * image.features();
            let (Some(x), Some(y)) = (x.get(range.clone()), y.get_mut(range)) else { return };
            let pixel = panel.width * image.channels;
            for (x, y) in x.chunks_exact(pixel).zip(y.chunks_exact_mut(pixel)) {
                let rows = x.chunks_exact(panel.width).zip(y.chunks_exact_mut(panel.width));
                for ((x, y), ((weight, bias), (mean, inverse))) in
                    rows.zip(weight.iter().zip(bias).zip(mean.iter().zip(inverse)))
                {
                    let scale = weight * inverse;
                    for (x, y) in x.iter().zip(y) {
                        *y = (*x - mean).mul_add(scale, *bias);
                    }
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // a loop's operands
    fn back<'a>(
        image: Image,
        panels: Panels,
        number: f32,
        weight: &'a [f32],
        mean: &'a [f32],
        inverse: &'a [f32],
        dot: &'a [f32],
        sum: &'a [f32],
        x: &'a [f32],
        dy: &'a mut [f32],
    ) {
        for panel in panels.iter() {
            let range = panel.start * image.features()..(panel.start + panel.width) * image.features();
            let (Some(x), Some(dy)) = (x.get(range.clone()), dy.get_mut(range)) else { return };
            let pixel = panel.width * image.channels;
            for (x, dy) in x.chunks_exact(pixel).zip(dy.chunks_exact_mut(pixel)) {
                let rows = x.chunks_exact(panel.width).zip(dy.chunks_exact_mut(panel.width));
                for ((x, dy), (((dot, sum), weight), (mean, inverse))) in
                    rows.zip(dot.iter().zip(sum).zip(weight).zip(mean.iter().zip(inverse)))
                {
                    let scale = weight * inverse;
                    let (slope, shift) = (dot / number * inverse * inverse, sum / number);
                    for (x, dy) in x.iter().zip(dy) {
                        *dy = (mean - *x).mul_add(slope, *dy - shift) * scale;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let stream = crate::Philox::new(seed, crate::Purpose::Noise, 0, 0);
        (0..count.div_ceil(4)).flat_map(|block| stream.normal(block as u32)).take(count).collect()
    }

    /// The sum of a channel in the order that `bias` defines.
    fn sum(values: impl Fn(usize, usize) -> [f32; 2], examples: usize, pixels: usize) -> f32 {
        let mut sums = [0f32; 16];
        for (pixel, example) in (0..pixels).flat_map(|p| (0..examples).map(move |e| (p, e))) {
            let [a, b] = values(example, pixel);
            sums[example % 16] = a.mul_add(b, sums[example % 16]);
        }
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
        }
        sums[0]
    }

    /// Invariants 1 to 4, written out, at every SIMD width.
    #[test]
    fn norms_are_their_definition() {
        for (examples, channels, height, width) in
            [(1, 3, 2, 2), (16, 5, 3, 2), (33, 17, 1, 1), (70, 2, 2, 3)]
        {
            let image = Image { channels, height, width };
            let (features, pixels) = (image.features(), image.pixels());
            let (x, dy) = (numbers(examples * features, 1), numbers(examples * features, 2));
            let (weight, bias) = (numbers(channels, 3), numbers(channels, 4));
            let number = (examples * pixels) as f32;
            let mut expected = [vec![0f32; x.len()], vec![0f32; x.len()], vec![], vec![], vec![], vec![]];
            for c in 0..channels {
                let at = |e: usize, p: usize| e * features + p * channels + c;
                let mean = sum(|e, p| [x[at(e, p)], 1.0], examples, pixels) / number;
                let variance = sum(|e, p| [x[at(e, p)] - mean; 2], examples, pixels) / number;
                let inverse = 1.0 / (variance + 1e-5).sqrt();
                let total = sum(|e, p| [dy[at(e, p)], 1.0], examples, pixels);
                let dot = sum(|e, p| [dy[at(e, p)], x[at(e, p)] - mean], examples, pixels);
                for i in (0..examples).flat_map(|e| (0..pixels).map(move |p| at(e, p))) {
                    expected[0][i] = (x[i] - mean).mul_add(weight[c] * inverse, bias[c]);
                    let slope = dot / number * inverse * inverse;
                    expected[1][i] =
                        (mean - x[i]).mul_add(slope, dy[i] - total / number) * (weight[c] * inverse);
                }
                expected[2].push(dot * inverse);
                expected[3].push(total);
                expected[4].push(mean * examples as f32);
                let unbiased = if number > 1.0 { number / (number - 1.0) } else { 1.0 };
                expected[5].push(variance * unbiased * examples as f32);
            }
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            forced::each(|| {
                let (norm, panels) = (BatchNorm { image }, Panels::new(examples));
                let fill = |values: &[f32]| {
                    let mut filled = vec![f32::NAN; panels.elements(features)];
                    panels.fill(values, features, &mut filled);
                    filled
                };
                let empty = |values: &[f32]| {
                    let mut rows = vec![f32::NAN; examples * features];
                    panels.empty(values, features, &mut rows);
                    rows
                };
                let (xp, mut dyp) = (fill(&x), fill(&dy));
                let mut y = vec![f32::NAN; xp.len()];
                let mut room = [(); 5].map(|()| vec![f32::NAN; channels]);
                let [mean, inverse, variance, dweight, dbias] = &mut room;
                let mut by = Statistics { mean, variance, inverse };
                norm.measure(panels, &xp, &mut by);
                norm.forward([&weight, &bias], panels, &by, &xp, &mut y);
                assert_eq!(bits(&empty(&y)), bits(&expected[0]), "y of {image:?}");
                norm.backward(&weight, panels, &by, &xp, &mut dyp, [dweight, dbias]);
                assert_eq!(bits(&empty(&dyp)), bits(&expected[1]), "dx of {image:?}");
                assert_eq!((bits(dweight), bits(dbias)), (bits(&expected[2]), bits(&expected[3])));
                norm.mean_part(panels, by.mean, dbias);
                norm.variance_part(panels, by.variance, dweight);
                assert_eq!((bits(dbias), bits(dweight)), (bits(&expected[4]), bits(&expected[5])));
            });
        }
    }

    #[test]
    fn running_statistics_take_the_place_of_a_shards() {
        let (mut mean, mut variance, mut inverse) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        let mut of = Statistics { mean: &mut mean, variance: &mut variance, inverse: &mut inverse };
        of.adopt(&[1.0, -2.0], &[4.0 - 1e-5, 0.25 - 1e-5]);
        assert_eq!((mean, inverse), ([1.0, -2.0], [0.5, 2.0]));
    }
}

//! Norms of each example's features: layer norm (Ba, Kiros and Hinton, "Layer normalization", 2016) and RMS norm (Zhang
//! and Sennrich, "Root mean square layer normalization", 2019).
//!
//! Invariants:
//! 1. With `C` features, `1/C` rounded to f32, and sums that start at +0 and run over the features in ascending order:
//!    layer norm has `mean = sum(x) / C` (a product with `1/C`), `centred = x - mean`, `r = 1 / sqrt(fma(sum(fma centred
//!    centred), 1/C, epsilon))`, `n = centred r` and `y = fma(n, weight, bias)`. RMS norm has no mean and no bias:
//!    `centred = x`, `y = n weight`.
//! 2. Backward, with `g = dy weight`: `dx += r (g - mean(g) - n mean(g n))`, as `a = fma(-n, mean(g n), g - mean(g))`,
//!    then `dx = fma(r, a, dx)`; RMS norm has no `mean(g)`. Means are sums as above, of products by fma.
//! 3. The gradients of weight and bias are summed over examples as a bias's is (`bias.rs`), of `dy n` and `dy`.

use serde::{Deserialize, Serialize};

use super::{Panels, sum_examples};
use crate::simd::vectorized;

/// Which norm a model's blocks have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Layer norm: the mean is taken off, and there is a bias.
    #[default]
    Layer,
    /// RMS norm: features are divided by their root mean square.
    Rms,
}

/// Added to the mean square, against division by zero: GPT-2's and PyTorch's default for layer norm.
const EPSILON: f32 = 1e-5;

/// A norm of so many features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Normalize {
    pub(crate) norm: Norm,
    pub(crate) features: usize,
}

impl Normalize {
    /// Room for what [`forward`](Self::forward) leaves of each example: its mean, and one over its deviation.
    pub(crate) fn kept_elements(panels: Panels) -> usize {
        panels.elements(2)
    }

    /// Room that the two passes need for themselves.
    pub(crate) fn scratch_elements(panels: Panels) -> usize {
        panels.elements(2)
    }

    /// y of `x`; keeps what [`backward`](Self::backward) needs. `bias` is empty for RMS norm.
    pub(crate) fn forward(
        self,
        panels: Panels,
        parameters: (&[f32], &[f32]),
        x: &[f32],
        y: &mut [f32],
        kept: &mut [f32],
    ) {
        for panel in panels.iter() {
            let range = panel.start * self.features..(panel.start + panel.width) * self.features;
            let kept = kept.get_mut(2 * panel.start..2 * (panel.start + panel.width));
            let (Some(x), Some(y), Some(kept)) = (x.get(range.clone()), y.get_mut(range), kept) else {
                return;
            };
            let (mean, scale) = kept.split_at_mut(panel.width);
            forward(self.norm, x, y, (mean, scale), parameters);
        }
    }

    /// Adds the gradient of x to `dx`, and sets those of weight and bias. `normal` is room for as much as x takes.
    pub(crate) fn backward(
        self,
        panels: Panels,
        weight: &[f32],
        (x, kept): (&[f32], &[f32]),
        (dy, dx): (&[f32], &mut [f32]),
        (normal, scratch): (&mut [f32], &mut [f32]),
        (of_weight, of_bias): (&mut [f32], &mut [f32]),
    ) {
        for panel in panels.iter() {
            let range = panel.start * self.features..(panel.start + panel.width) * self.features;
            let kept = kept.get(2 * panel.start..2 * (panel.start + panel.width));
            let (Some(x), Some(dy), Some(dx), Some(normal), Some(kept), Some(scratch)) = (
                x.get(range.clone()),
                dy.get(range.clone()),
                dx.get_mut(range.clone()),
                normal.get_mut(range),
                kept,
                scratch.get_mut(..2 * panel.width),
            ) else {
                return;
            };
            let (means, sums) = (kept.split_at(panel.width), scratch.split_at_mut(panel.width));
            backward(self.norm, weight, means, (x, dy), (dx, normal), sums);
        }
        sum_examples(panels, dy, of_bias);
        sum_examples(panels, normal, of_weight);
    }
}

vectorized! {
    fn forward<'a>(
        norm: Norm,
        x: &'a [f32],
        y: &'a mut [f32],
        kept: (&'a mut [f32], &'a mut [f32]),
        parameters: (&'a [f32], &'a [f32]),
    ) {
        let (mean, scale) = kept;
        let (weight, bias) = parameters;
        let (width, share) = (mean.len(), 1.0 / weight.len() as f32);
        mean.fill(0.0);
        if norm == Norm::Layer {
            for row in x.chunks_exact(width) {
                for (mean, x) in mean.iter_mut().zip(row) {
                    *mean += *x;
                }
            }
            for mean in mean.iter_mut() {
                *mean *= share;
            }
        }
        scale.fill(0.0);
        for row in x.chunks_exact(width) {
            for ((scale, mean), x) in scale.iter_mut().zip(mean.iter()).zip(row) {
                let centred = *x - *mean;
                *scale = centred.mul_add(centred, *scale);
            }
        }
        for scale in scale.iter_mut() {
            *scale = 1.0 / scale.mul_add(share, EPSILON).sqrt();
        }
        for (feature, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let weight = weight.get(feature).copied().unwrap_or_default();
            let bias = bias.get(feature).copied();
            for (((y, x), mean), scale) in y.iter_mut().zip(x).zip(mean.iter()).zip(scale.iter()) {
                let normal = (*x - *mean) * *scale;
                *y = match bias {
                    Some(bias) => normal.mul_add(weight, bias),
                    None => normal * weight,
                };
            }
        }
    }

    /// Leaves `dy n` in `normal`.
    fn backward<'a>(
        norm: Norm,
        weight: &'a [f32],
        kept: (&'a [f32], &'a [f32]),
        given: (&'a [f32], &'a [f32]),
        made: (&'a mut [f32], &'a mut [f32]),
        sums: (&'a mut [f32], &'a mut [f32]),
    ) {
        let ((mean, scale), (first, second)) = (kept, sums);
        let ((x, dy), (dx, normal)) = (given, made);
        let (width, share) = (mean.len(), 1.0 / weight.len() as f32);
        let second = second.get_mut(..width).unwrap_or_default();
        first.fill(0.0);
        second.fill(0.0);
        for (((x, dy), out), weight) in
            x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(normal.chunks_exact_mut(width)).zip(weight)
        {
            for lane in 0..width {
                let normal = (x[lane] - mean[lane]) * scale[lane];
                let gradient = dy[lane] * *weight;
                first[lane] += gradient;
                second[lane] = gradient.mul_add(normal, second[lane]);
                out[lane] = normal;
            }
        }
        for (first, second) in first.iter_mut().zip(second.iter_mut()) {
            *first = if norm == Norm::Layer { *first * share } else { 0.0 };
            *second *= share;
        }
        for (((out, dy), dx), weight) in
            normal.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(weight)
        {
            for lane in 0..width {
                let normal = out[lane];
                let gradient = dy[lane] * *weight;
                let along = (-normal).mul_add(second[lane], gradient - first[lane]);
                dx[lane] = scale[lane].mul_add(along, dx[lane]);
                out[lane] = dy[lane] * normal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    struct Case {
        norm: Norm,
        features: usize,
        x: Vec<f32>,
        dy: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
    }

    fn numbers(count: usize, by: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * by) % 101) as f32 * 0.04 - 1.9).collect()
    }

    impl Case {
        fn new(norm: Norm, examples: usize, features: usize) -> Case {
            let elements = examples * features;
            let bias = if norm == Norm::Layer { numbers(features, 17) } else { Vec::new() };
            Case {
                norm,
                features,
                x: numbers(elements, 37),
                dy: numbers(elements, 53),
                weight: numbers(features, 29),
                bias,
            }
        }

        /// y, dx, dweight and dbias, each in rows.
        fn run(&self) -> [Vec<f32>; 4] {
            let examples = self.x.len() / self.features;
            let panels = Panels::new(examples);
            let room = |features| vec![0.0; panels.elements(features)];
            let (mut x, mut dy) = (room(self.features), room(self.features));
            panels.fill(&self.x, self.features, &mut x);
            panels.fill(&self.dy, self.features, &mut dy);
            let (mut y, mut dx, mut normal) = (x.clone(), room(self.features), room(self.features));
            let (mut kept, mut scratch) =
                (vec![0.0; Normalize::kept_elements(panels)], vec![0.0; Normalize::scratch_elements(panels)]);
            let (mut of_weight, mut of_bias) = (self.weight.clone(), self.bias.clone());
            let layer = Normalize { norm: self.norm, features: self.features };
            layer.forward(panels, (&self.weight, &self.bias), &x, &mut y, &mut kept);
            layer.backward(
                panels,
                &self.weight,
                (&x, &kept),
                (&dy, &mut dx),
                (&mut normal, &mut scratch),
                (&mut of_weight, &mut of_bias),
            );
            let rows = |values: &[f32]| {
                let mut rows = vec![0.0; self.x.len()];
                panels.empty(values, self.features, &mut rows);
                rows
            };
            [rows(&y), rows(&dx), of_weight, of_bias]
        }

        /// The sum of y dy in plain f64, with element `at` of the inputs, weights and biases, one after the other, moved.
        fn loss(&self, at: usize, by: f64) -> f64 {
            let (inputs, features) = (self.x.len(), self.features);
            let moved = |from: usize, values: &[f32], i: usize| {
                f64::from(values[i]) + if from + i == at { by } else { 0.0 }
            };
            let mut loss = 0.0;
            for row in 0..inputs / features {
                let x: Vec<f64> = (0..features).map(|i| moved(0, &self.x, row * features + i)).collect();
                let mean =
                    if self.norm == Norm::Layer { x.iter().sum::<f64>() / features as f64 } else { 0.0 };
                let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / features as f64;
                for (i, x) in x.iter().enumerate() {
                    let weight = moved(inputs, &self.weight, i);
                    let bias =
                        if self.bias.is_empty() { 0.0 } else { moved(inputs + features, &self.bias, i) };
                    let y = (x - mean) / (square + 1e-5).sqrt() * weight + bias;
                    loss += y * f64::from(self.dy[row * features + i]);
                }
            }
            loss
        }
    }

    /// Every gradient of both norms, in panels with and without padding.
    #[test]
    fn gradients_match_finite_differences() {
        for norm in [Norm::Layer, Norm::Rms] {
            for (examples, features) in [(1, 2), (3, 5), (17, 9), (40, 16)] {
                let case = Case::new(norm, examples, features);
                let [y, dx, of_weight, of_bias] = case.run();
                let loss: f64 = y.iter().zip(&case.dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
                assert!((loss - case.loss(usize::MAX, 0.0)).abs() < 1e-4 * (1.0 + loss.abs()));
                for (at, found) in dx.iter().chain(&of_weight).chain(&of_bias).enumerate() {
                    let slope = (case.loss(at, 1e-5) - case.loss(at, -1e-5)) / 2e-5;
                    let error = (f64::from(*found) - slope).abs();
                    assert!(error < 5e-5 * (1.0 + slope.abs()), "{norm:?} {at}: {found}, not {slope}");
                }
            }
        }
    }

    #[test]
    fn width_does_not_matter() {
        for norm in [Norm::Layer, Norm::Rms] {
            for examples in [1, 7, 16, 33, 100] {
                let case = Case::new(norm, examples, 13);
                forced::assert_same(|| {
                    case.run().map(|part| part.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
                });
            }
        }
    }
}

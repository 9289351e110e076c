//! Single layers against finite differences of their definition in plain `f64`: those whose gradients no network shows by itself.
//! `tests/pytorch.rs` holds them to PyTorch's.

mod pytorch;

use super::*;

/// What `fixtures/generate_layers.py` calls a pattern: no two of up to 2,001 numbers are equal.
fn pattern(count: usize, index: usize) -> Vec<f32> {
    (0..count).map(|i| ((((i * 7919 + index * 104_729) % 2001) as f64 - 1000.0) / 1000.0) as f32).collect()
}

/// Images of a shard as rows, channel by channel as PyTorch has them, and as pixels in panels.
#[derive(Clone, Copy)]
struct Shard {
    image: Image,
    panels: Panels,
}

impl Shard {
    fn new(image: Image, examples: usize) -> Shard {
        Shard { image, panels: Panels::new(examples) }
    }

    fn elements(self) -> usize {
        self.panels.examples() * self.image.features()
    }

    fn room(self) -> Vec<f32> {
        vec![f32::NAN; self.panels.elements(self.image.features())]
    }

    fn pixels(self, rows: &[f32]) -> Vec<f32> {
        let (mut channels, mut pixels) = (self.room(), self.room());
        self.panels.fill(rows, self.image.features(), &mut channels);
        self.image.to_pixels(self.panels, &channels, &mut pixels);
        pixels
    }

    fn rows(self, pixels: &[f32]) -> Vec<f32> {
        let (mut channels, mut rows) = (self.room(), vec![f32::NAN; self.elements()]);
        self.image.to_channels(self.panels, pixels, &mut channels);
        self.panels.empty(&channels, self.image.features(), &mut rows);
        rows
    }
}

/// A layer's result, and the gradients of what went in, the input first.
struct Done {
    y: Vec<f32>,
    gradients: Vec<Vec<f32>>,
}

/// Also the shard's part in the running mean and variance.
fn batch_norm(shard: Shard, x: &[f32], [weight, bias]: [&[f32]; 2], dy: &[f32]) -> (Done, [Vec<f32>; 2]) {
    let norm = BatchNorm { image: shard.image };
    let (x, mut dx, mut y) = (shard.pixels(x), shard.pixels(dy), shard.room());
    let mut room = [(); 5].map(|()| vec![f32::NAN; shard.image.channels]);
    let [mean, variance, inverse, dweight, dbias] = &mut room;
    let mut by = Statistics { mean, variance, inverse };
    norm.measure(shard.panels, &x, &mut by);
    norm.forward([weight, bias], shard.panels, &by, &x, &mut y);
    norm.backward(weight, shard.panels, &by, &x, &mut dx, [dweight, dbias]);
    let gradients = vec![shard.rows(&dx), dweight.clone(), dbias.clone()];
    norm.mean_part(shard.panels, by.mean, dweight);
    norm.variance_part(shard.panels, by.variance, dbias);
    (Done { y: shard.rows(&y), gradients }, [dweight.clone(), dbias.clone()])
}

fn pool(pool: Pool, greatest: bool, shard: Shard, x: &[f32], dy: &[f32]) -> Done {
    let out = Shard { image: pool.output(), ..shard };
    let (x, dy, mut dx, mut y) = (shard.pixels(x), out.pixels(dy), shard.room(), out.room());
    if greatest {
        pool.greatest(shard.panels, &x, &mut y);
        pool.greatest_gradient(false, shard.panels, &x, &dy, &mut dx);
    } else {
        pool.mean(shard.panels, &x, &mut y);
        pool.mean_gradient(shard.panels, &dy, &mut dx);
    }
    Done { y: out.rows(&y), gradients: vec![shard.rows(&dx)] }
}

fn convolution(
    layer: &Convolution,
    shard: Shard,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    dy: &[f32],
) -> Done {
    let out = Shard { image: layer.output(), ..shard };
    let (x, dy, mut dx, mut y) = (shard.pixels(x), out.pixels(dy), shard.room(), out.room());
    let (mut dw, mut scratch) = (vec![f32::NAN; weight.len()], vec![f32::NAN; weight.len()]);
    let mut packed = vec![f32::NAN; layer.packed_elements(shard.panels.examples())];
    let ends = Ends { bias, rectify: false };
    layer.forward(weight, ends, shard.panels, &x, &mut y, &mut scratch);
    layer.backward(weight, shard.panels, &dy, &mut dx, &mut scratch);
    layer.weights(shard.panels, &dy, &x, &mut dw, &mut scratch, &mut packed);
    Done { y: out.rows(&y), gradients: vec![shard.rows(&dx), dw] }
}

/// Between two numbers that a definition is tried with; far less than two numbers of a pattern are apart.
const STEP: f64 = 1e-5;

/// The result of `done` is that of `define`, and each gradient is the difference of the sum of `y dy` in `f64` when one number of the
/// tensors that go in is moved.
fn check(what: &str, tensors: &[&[f32]], dy: &[f32], done: &Done, define: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
    let mut inputs: Vec<Vec<f64>> =
        tensors.iter().map(|tensor| tensor.iter().copied().map(f64::from).collect()).collect();
    let expected = define(&inputs);
    assert_eq!((expected.len(), dy.len()), (done.y.len(), done.y.len()), "{what}");
    for (at, (found, expected)) in done.y.iter().zip(&expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{what}: y at {at}");
    }
    for (tensor, gradient) in done.gradients.iter().enumerate() {
        assert_eq!(gradient.len(), tensors[tensor].len(), "{what}");
        // Of long tensors, some sixty numbers.
        for at in (0..gradient.len()).step_by(gradient.len() / 60 + 1) {
            let middle = inputs[tensor][at];
            let mut loss = |value: f64| -> f64 {
                inputs[tensor][at] = value;
                define(&inputs).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum()
            };
            let slope = (loss(middle + STEP) - loss(middle - STEP)) / (2.0 * STEP);
            loss(middle);
            let found = f64::from(gradient[at]);
            assert!(
                (found - slope).abs() < 5e-5 * (1.0 + slope.abs()),
                "{what}: {at} of tensor {tensor}: {found}, not {slope}"
            );
        }
    }
}

/// The pixels (row, column) of a window of `size` that begins at `first` and lie in the image, with the tap's number.
fn taps(image: Image, size: usize, first: [isize; 2]) -> impl Iterator<Item = (usize, usize)> {
    (0..size * size).filter_map(move |tap| {
        let row = usize::try_from(first[0] + (tap / size) as isize).ok().filter(|row| *row < image.height)?;
        let column =
            usize::try_from(first[1] + (tap % size) as isize).ok().filter(|column| *column < image.width)?;
        Some((tap, row * image.width + column))
    })
}

#[test]
fn batch_norms_gradients_match_finite_differences() {
    for (examples, channels, height, width) in [(1, 3, 3, 2), (5, 2, 1, 1), (17, 4, 2, 3)] {
        let shard = Shard::new(Image { channels, height, width }, examples);
        let pixels = height * width;
        let (x, dy) = (pattern(shard.elements(), 1), pattern(shard.elements(), 90));
        let weight: Vec<f32> = pattern(channels, 2).iter().map(|weight| weight + 1.0).collect();
        let bias = pattern(channels, 3);
        let (done, _) = batch_norm(shard, &x, [&weight, &bias], &dy);
        let define = |inputs: &[Vec<f64>]| {
            let [x, weight, bias] = inputs else { unreachable!() };
            let mut y = vec![0.0; x.len()];
            for channel in 0..channels {
                let of: Vec<usize> = (0..x.len()).filter(|at| at / pixels % channels == channel).collect();
                let mean = of.iter().map(|at| x[*at]).sum::<f64>() / of.len() as f64;
                let variance = of.iter().map(|at| (x[*at] - mean).powi(2)).sum::<f64>() / of.len() as f64;
                for at in of {
                    y[at] = (x[at] - mean) / (variance + 1e-5).sqrt() * weight[channel] + bias[channel];
                }
            }
            y
        };
        check(&format!("{examples} of {:?}", shard.image), &[&x, &weight, &bias], &dy, &done, define);
    }
}

/// Windows that overlap, that leave pixels out, and that tile the image.
#[test]
fn pools_gradients_match_finite_differences() {
    for (size, stride) in [(3, 2), (3, 1), (2, 3), (2, 2)] {
        for (examples, channels, height, width) in [(1, 2, 7, 6), (3, 3, 5, 8), (18, 1, 4, 4)] {
            let image = Image { channels, height, width };
            let shard = Shard::new(image, examples);
            let layer = Pool::new(image, size, stride).unwrap();
            let out = layer.output();
            let x = pattern(shard.elements(), 1);
            let dy = pattern(examples * out.features(), 90);
            for greatest in [false, true] {
                let done = pool(layer, greatest, shard, &x, &dy);
                let define = |inputs: &[Vec<f64>]| {
                    let mut y = Vec::new();
                    for plane in inputs[0].chunks(image.pixels()) {
                        for window in 0..out.pixels() {
                            let first =
                                [window / out.width, window % out.width].map(|at| (at * stride) as isize);
                            let seen = taps(image, size, first).map(|(_, pixel)| plane[pixel]);
                            y.push(match greatest {
                                true => seen.fold(f64::NEG_INFINITY, f64::max),
                                false => seen.sum::<f64>() / (size * size) as f64,
                            });
                        }
                    }
                    y
                };
                let what = format!("{size} by {stride}, greatest {greatest}, {examples} of {image:?}");
                check(&what, &[&x], &dy, &done, define);
            }
        }
    }
}

#[test]
fn convolutions_gradients_match_finite_differences() {
    for (kernel, stride, padding) in [(3, 2, 1), (3, 1, 1), (5, 3, 2), (1, 2, 0), (2, 2, 0)] {
        for (examples, channels, outputs, height, width) in [(1, 3, 2, 7, 6), (3, 2, 5, 5, 8)] {
            let image = Image { channels, height, width };
            let shard = Shard::new(image, examples);
            let layer = Convolution::new(image, outputs, kernel, stride, padding).unwrap();
            let out = layer.output();
            let (x, weight) = (pattern(shard.elements(), 1), pattern(layer.weight_elements(), 2));
            let bias = pattern(outputs, 3);
            let dy = pattern(examples * out.features(), 90);
            for bias in [None, Some(&bias[..])] {
                let done = convolution(&layer, shard, &x, &weight, bias, &dy);
                let define = |inputs: &[Vec<f64>]| {
                    let [x, weight] = inputs else { unreachable!() };
                    let square = kernel * kernel;
                    let mut y = Vec::new();
                    for x in x.chunks(image.features()) {
                        for (output, weight) in weight.chunks(channels * square).enumerate() {
                            for at in 0..out.pixels() {
                                let first = [at / out.width, at % out.width]
                                    .map(|at| (at * stride) as isize - padding as isize);
                                let mut sum = bias.map_or(0.0, |bias| f64::from(bias[output]));
                                for (tap, pixel) in taps(image, kernel, first) {
                                    for channel in 0..channels {
                                        sum += weight[channel * square + tap]
                                            * x[channel * image.pixels() + pixel];
                                    }
                                }
                                y.push(sum);
                            }
                        }
                    }
                    y
                };
                let what = format!("{kernel} by {stride}, padded by {padding}, {examples} of {image:?}");
                check(&what, &[&x, &weight], &dy, &done, define);
            }
        }
    }
}

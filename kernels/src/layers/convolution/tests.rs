//! Convolutions against their definition, bit for bit, at every SIMD width (invariants 1 to 3 of `convolution`).

use super::*;
use crate::simd::forced;
use proptest::prelude::*;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let stream = crate::Philox::new(seed, crate::Purpose::Noise, 0, 0);
    (0..count.div_ceil(4)).flat_map(|block| stream.normal(block as u32)).take(count).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The layer's definition, on examples in rows of (y, x, channel).
struct Reference {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    examples: usize,
    input: Image,
    outputs: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

fn reference(sizes: Sizes, out: Image, x: &[f32], w: &[f32], b: &[f32], dy: &[f32]) -> Reference {
    let Sizes { examples, input, outputs, kernel, stride, padding } = sizes;
    let channels = input.channels;
    let mut y = Vec::new();
    let mut dx = vec![0f32; examples * input.features()];
    let mut dw = vec![0f32; w.len()];
    let on =
        |q: usize, tap: usize, side: usize| (q * stride + tap).checked_sub(padding).filter(|&t| t < side);
    let weight = |o: usize, c: usize, ky: usize, kx: usize| ((o * channels + c) * kernel + ky) * kernel + kx;
    let taps = || (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx)));
    for e in 0..examples {
        for (qy, qx) in (0..out.height).flat_map(|qy| (0..out.width).map(move |qx| (qy, qx))) {
            for o in 0..outputs {
                let mut sum = b[o];
                for (ky, kx) in taps() {
                    let (Some(ty), Some(tx)) = (on(qy, ky, input.height), on(qx, kx, input.width)) else {
                        continue;
                    };
                    for c in 0..channels {
                        let at = e * input.features() + (ty * input.width + tx) * channels + c;
                        sum = w[weight(o, c, ky, kx)].mul_add(x[at], sum);
                    }
                }
                y.push(sum);
            }
        }
    }
    for (qy, qx) in (0..out.height).flat_map(|qy| (0..out.width).map(move |qx| (qy, qx))) {
        for e in 0..examples {
            let gradient = |o: usize| dy[e * out.features() + (qy * out.width + qx) * outputs + o];
            for (ky, kx) in taps() {
                let (Some(ty), Some(tx)) = (on(qy, ky, input.height), on(qx, kx, input.width)) else {
                    continue;
                };
                for c in 0..channels {
                    let at = e * input.features() + (ty * input.width + tx) * channels + c;
                    for o in 0..outputs {
                        let index = weight(o, c, ky, kx);
                        dx[at] = w[index].mul_add(gradient(o), dx[at]);
                        dw[index] = x[at].mul_add(gradient(o), dw[index]);
                    }
                }
            }
        }
    }
    Reference { y, dx, dw }
}

fn check(sizes: Sizes) {
    let Sizes { examples, input, outputs, kernel, stride, padding } = sizes;
    let Some(layer) = Convolution::new(input, outputs, kernel, stride, padding) else { return };
    let out = layer.output();
    let x = numbers(examples * input.features(), 1);
    let (w, b) = (numbers(layer.weight_elements(), 2), numbers(outputs, 3));
    let dy = numbers(examples * out.features(), 4);
    let expected = reference(sizes, out, &x, &w, &b, &dy);
    for (name, ()) in forced::each(|| {
        let panels = Panels::new(examples);
        // Garbage everywhere, padding included: none of it may be read into a result.
        let garbage = |features| vec![f32::NAN; panels.elements(features)];
        let (mut xp, mut yp) = (garbage(input.features()), garbage(out.features()));
        let (mut dxp, mut dyp) = (garbage(input.features()), garbage(out.features()));
        let mut scratch = vec![f32::NAN; w.len()];
        panels.fill(&x, input.features(), &mut xp);
        panels.fill(&dy, out.features(), &mut dyp);
        for rectify in [false, true] {
            layer.forward(&w, Ends { bias: Some(&b), rectify }, panels, &xp, &mut yp, &mut scratch);
            let mut y = vec![f32::NAN; expected.y.len()];
            panels.empty(&yp, out.features(), &mut y);
            let mut wanted = expected.y.clone();
            if rectify {
                crate::layers::relu(&mut wanted);
            }
            assert_eq!(bits(&y), bits(&wanted), "y {sizes:?} {rectify}");
        }
        layer.backward(&w, panels, &dyp, &mut dxp, &mut scratch);
        let mut dx = vec![f32::NAN; x.len()];
        panels.empty(&dxp, input.features(), &mut dx);
        assert_eq!(bits(&dx), bits(&expected.dx), "dx {sizes:?}");
        let mut dw = vec![f32::NAN; w.len()];
        let mut packed = vec![f32::NAN; layer.packed_elements(examples)];
        layer.weights(panels, &dyp, &xp, &mut dw, &mut scratch, &mut packed);
        assert_eq!(bits(&dw), bits(&expected.dw), "dw {sizes:?}");
    }) {
        assert!(!name.is_empty());
    }
}

/// Each way of going through windows: whole, row by row, tap by tap; and each tile.
#[test]
fn convolutions_are_their_definition_at_the_edges() {
    let image = |channels, height, width| Image { channels, height, width };
    for (examples, input, outputs, kernel, stride, padding) in [
        (1, image(1, 3, 3), 1, 3, 1, 0),
        (5, image(1, 7, 6), 32, 3, 1, 0),
        (17, image(3, 5, 9), 17, 3, 1, 1),
        (33, image(2, 6, 6), 5, 3, 2, 1),
        (9, image(4, 7, 5), 9, 1, 2, 0),
        (70, image(5, 4, 4), 50, 3, 1, 1),
        (64, image(40, 3, 3), 64, 3, 1, 1),
        (3, image(130, 3, 4), 49, 3, 1, 1),
        (16, image(67, 5, 5), 3, 5, 1, 2),
        (12, image(3, 9, 9), 7, 4, 3, 2),
        (2, image(33, 2, 30), 20, 2, 2, 0),
    ] {
        check(Sizes { examples, input, outputs, kernel, stride, padding });
    }
}

#[test]
fn impossible_convolutions_are_none() {
    let image = Image { channels: 1, height: 4, width: 4 };
    assert!(Convolution::new(image, 1, 5, 1, 0).is_none());
    assert!(Convolution::new(image, 1, 3, 0, 0).is_none());
    assert!(Convolution::new(image, 1, 3, 1, 3).is_none());
    assert!(Convolution::new(image, 0, 3, 1, 0).is_none());
    assert_eq!(Convolution::new(image, 6, 3, 2, 1).map(|c| c.output().features()), Some(6 * 4));
}

/// The room for a shard is room for every smaller one.
#[test]
fn packed_tiles_of_any_smaller_batch_fit() {
    for (channels, outputs, width) in [(1, 1, 1), (32, 64, 26), (512, 512, 4), (3, 64, 300)] {
        let Some(layer) = Convolution::new(Image { channels, height: 3, width }, outputs, 3, 1, 1) else {
            continue;
        };
        for examples in 0..600 {
            let needed = weights::needed(&layer, examples);
            assert!(needed <= layer.packed_elements(examples), "{channels} {outputs} {width} {examples}");
            assert!(layer.packed_elements(examples) <= layer.packed_elements(examples + 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn convolutions_are_their_definition(
        examples in 1usize..40,
        (channels, height, width) in (1usize..9, 1usize..9, 1usize..9),
        outputs in 1usize..20,
        (kernel, stride, padding) in (1usize..5, 1usize..4, 0usize..4),
    ) {
        check(Sizes { examples, input: Image { channels, height, width }, outputs, kernel, stride, padding });
    }
}

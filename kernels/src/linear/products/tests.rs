//! The products against their definition, bit for bit, at every SIMD width (invariant 1 of `linear`).

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

/// The definition, as it stands in the module's documentation.
fn chain(start: f32, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    terms.fold(start, |sum, (a, b)| a.mul_add(b, sum))
}

fn from_panels(panels: Panels, values: &[f32], features: usize) -> Vec<f32> {
    let mut rows = Vec::new();
    for panel in panels.iter() {
        for example in 0..panel.used {
            rows.extend((0..features).map(|f| values[panel.start * features + f * panel.width + example]));
        }
    }
    rows
}

/// Invariant 1: all three products are their definition bit for bit, at every SIMD width.
fn check(examples: usize, inputs: usize, outputs: usize) {
    let layer = Linear { inputs, outputs };
    let (x, w) = (numbers(examples * inputs, 1), numbers(inputs * outputs, 2));
    let (b, dy) = (numbers(outputs, 3), numbers(examples * outputs, 4));
    let (mut y, mut dx, mut dw) = (Vec::new(), Vec::new(), Vec::new());
    for e in 0..examples {
        for o in 0..outputs {
            y.push(chain(b[o], (0..inputs).map(|k| (w[o * inputs + k], x[e * inputs + k]))));
        }
        for i in 0..inputs {
            dx.push(chain(0.0, (0..outputs).map(|k| (w[k * inputs + i], dy[e * outputs + k]))));
        }
    }
    for o in 0..outputs {
        for i in 0..inputs {
            dw.push(chain(0.0, (0..examples).map(|k| (dy[k * outputs + o], x[k * inputs + i]))));
        }
    }
    for (name, ()) in forced::each(|| {
        let panels = Panels::new(examples);
        // Garbage everywhere, padding included: none of it may be read into a result.
        let garbage = |features| vec![f32::NAN; panels.elements(features)];
        let (mut xp, mut yp, mut dyp, mut dxp) =
            (garbage(inputs), garbage(outputs), garbage(outputs), garbage(inputs));
        panels.fill(&x, inputs, &mut xp);
        panels.fill(&dy, outputs, &mut dyp);
        layer.forward(&w, &b, panels, &xp, &mut yp);
        assert_eq!(bits(&from_panels(panels, &yp, outputs)), bits(&y), "y {examples}x{inputs}x{outputs}");
        layer.backward(&w, panels, &dyp, &mut dxp);
        assert_eq!(bits(&from_panels(panels, &dxp, inputs)), bits(&dx), "dx {examples}x{inputs}x{outputs}");
        for source in [Rows::Rows(&x), Rows::Panels(&xp)] {
            let mut found = vec![f32::NAN; inputs * outputs];
            let mut packed = vec![f32::NAN; layer.packed_elements(examples)];
            layer.weights(panels, &dyp, source, &mut found, &mut packed);
            assert_eq!(bits(&found), bits(&dw), "dw {examples}x{inputs}x{outputs}");
        }
    }) {
        assert!(!name.is_empty());
    }
}

#[test]
fn products_are_their_definition_at_the_edges() {
    for examples in [1, 7, 8, 9, 16, 17, 32, 33, 48, 64, 65, 100] {
        check(examples, 5, 3);
    }
    for (examples, inputs, outputs) in [
        (3, 1, 1),
        (2, 129, 49),
        (20, 257, 7),
        (5, 63, 97),
        (5, 64, 128),
        (300, 67, 10),
        (9, 2100, 3),
        (0, 4, 4),
    ] {
        check(examples, inputs, outputs);
    }
}

/// The room for a shard is room for every smaller one.
#[test]
fn packed_tiles_of_any_smaller_batch_fit() {
    for inputs in [1, 64, 784, 1024, 5000] {
        let layer = Linear { inputs, outputs: 1 };
        for examples in 0..1500 {
            let needed = group_columns(examples).min(inputs.next_multiple_of(COLUMNS)) * examples;
            assert!(needed <= layer.packed_elements(examples), "{inputs} {examples}");
            assert!(layer.packed_elements(examples) <= layer.packed_elements(examples + 1));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_are_their_definition(examples in 1usize..90, inputs in 1usize..150, outputs in 1usize..70) {
        check(examples, inputs, outputs);
    }
}

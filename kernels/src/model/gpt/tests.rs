//! What of a GPT can only be seen from inside: every SIMD width gives the same bits.

use super::*;
use crate::model::Place;
use crate::simd::forced;

#[test]
fn width_does_not_matter() {
    for (norm, dropout, precision) in [
        (Norm::Layer, 0.2, Precision::F32),
        (Norm::Rms, 0.0, Precision::F32),
        (Norm::Layer, 0.1, Precision::Bf16),
    ] {
        let (vocabulary, context, layers, heads, width) = (11, 7, 2, 2, 12);
        let attention_dropout = 2.0 * dropout;
        let spec = GptSpec { vocabulary, context, layers, heads, width, dropout, attention_dropout, norm };
        let specs = spec.parameters().unwrap();
        let values: Vec<Vec<f32>> = specs
            .iter()
            .map(|spec| {
                let mut values = vec![0.0; spec.shape.elements()];
                spec.initialize(2, 0, &mut values);
                values
            })
            .collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        for examples in [1, 3, 5, 16] {
            let inputs: Vec<f32> = (0..examples * 7).map(|i| ((i * 29) % 11) as f32).collect();
            let labels: Vec<u32> = (0..examples as u32 * 7).map(|e| e * 5 % 11).collect();
            forced::assert_same(|| {
                let mut model = Gpt::new(&spec, precision, examples).unwrap();
                let mut bits = Vec::new();
                let place = Place { seed: 5, step: 3, first: 8 };
                let batch = Batch { inputs: &inputs, labels: &labels, place };
                let loss = model.gradients(&values, batch, &mut |index, gradient| {
                    bits.push((index, gradient.iter().map(|value| value.to_bits()).collect::<Vec<_>>()));
                });
                (loss, bits)
            });
        }
    }
}

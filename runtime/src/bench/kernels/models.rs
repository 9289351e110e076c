//! Models' gradient steps on a GPU: parameters in and gradients out are part of a step, as they are of a worker's.

use std::time::Instant;

use testudo_kernels::cuda::{DeviceModel, Gpu};
use testudo_kernels::{Batch, GptSpec, Model, ModelError, ModelSpec, Norm, Update};

use super::{REPEAT, Step};
use crate::bench::transport::median;

/// The models that are measured, with batches as they are trained with. `tests/peers/torch_eager.py` has the same.
pub(super) fn measured() -> [(&'static str, ModelSpec, usize); 4] {
    let gpt = GptSpec {
        vocabulary: 256,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        dropout: 0.0,
        attention_dropout: 0.0,
        norm: Norm::Layer,
    };
    let label_smoothing = 0.0;
    [
        ("mlp", ModelSpec::Mlp { inputs: 784, hidden: vec![512, 256], classes: 10 }, 1024),
        ("cnn", ModelSpec::Cnn { image: [1, 28, 28], classes: 10, label_smoothing }, 256),
        ("resnet18", ModelSpec::ResNet18 { image: [3, 32, 32], classes: 10, label_smoothing }, 128),
        ("gpt", ModelSpec::Gpt(gpt), 16),
    ]
}

/// Numbers that a model learns: what another implementation of it has as many of.
pub(super) fn learned(spec: &ModelSpec) -> Result<u64, ModelError> {
    let parameters = spec.parameters()?;
    let learned = parameters.iter().filter(|parameter| parameter.update == Update::Learn);
    Ok(learned.map(|parameter| parameter.shape.elements() as u64).sum())
}

/// A gradient step of each.
pub(super) fn models(number: u32) -> Result<Vec<Step>, ModelError> {
    let mut steps = Vec::new();
    for (name, spec, examples) in measured() {
        let gpu = Gpu::open(number).and_then(Gpu::prepared)?;
        let mut model = DeviceModel::new(gpu, &spec, examples)?;
        let owned: Vec<Vec<f32>> = model
            .parameters()
            .iter()
            .map(|parameter| {
                let mut values = vec![0.0; parameter.shape.elements()];
                parameter.initialize(1, 0, &mut values);
                values
            })
            .collect();
        let parameters: Vec<&[f32]> = owned.iter().map(Vec::as_slice).collect();
        // Tokens are classes; for images, any numbers will do.
        let input = |at: usize| (at % spec.classes()) as f32;
        let inputs: Vec<f32> = (0..examples * spec.input_elements()).map(input).collect();
        let label = |at: usize| (at % spec.classes()) as u32;
        let labels: Vec<u32> = (0..examples * spec.targets()).map(label).collect();
        let mut milliseconds = Vec::new();
        for _ in 0..=REPEAT {
            let start = Instant::now();
            model.gradients(&parameters, Batch::new(&inputs, &labels), &mut |_, _| {})?;
            milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let milliseconds = median(milliseconds.into_iter().skip(1));
        steps.push(Step { name, examples, parameters: learned(&spec)?, milliseconds });
    }
    Ok(steps)
}

//! The time that a network's gradients take on one core.

use std::time::{Duration, Instant};

use testudo_kernels::{Batch, ModelError, ModelSpec, Precision};

/// The fastest of many gradient computations of so many examples, in seconds: at least one, and as many as begin within `whole`.
pub(crate) fn step(
    spec: &ModelSpec,
    precision: Precision,
    examples: usize,
    whole: Duration,
) -> Result<f64, ModelError> {
    let mut model = spec.build_in(precision, examples)?;
    let mut values = Vec::new();
    for parameter in spec.parameters()? {
        let mut tensor = vec![0.0; parameter.shape.elements()];
        parameter.initialize(1, 0, &mut tensor);
        values.push(tensor);
    }
    let parameters: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let inputs: Vec<f32> =
        (0..examples * spec.input_elements()).map(|i| (i * 37 % 256) as f32 / 256.0).collect();
    let labels: Vec<u32> = (0..examples).map(|example| (example % spec.classes()) as u32).collect();
    let (mut best, start) = (f64::INFINITY, Instant::now());
    while start.elapsed() < whole || best.is_infinite() {
        let step = Instant::now();
        let loss = model.gradients(&parameters, Batch::new(&inputs, &labels), &mut |_, gradient| {
            std::hint::black_box(gradient);
        })?;
        std::hint::black_box(loss);
        best = best.min(step.elapsed().as_secs_f64());
    }
    Ok(best)
}

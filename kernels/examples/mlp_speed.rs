//! Speed of the perceptron's gradients on one core, in samples a second:
//! `cargo run --release -p testudo-kernels --example mlp_speed [-- widths, like 784 4096 4096 10]`.

use std::time::{Duration, Instant};

use testudo_kernels::{Batch, ModelError, ModelSpec, instruction_set};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut widths =
        std::env::args().skip(1).map(|width| width.parse()).collect::<Result<Vec<usize>, _>>()?;
    if widths.is_empty() {
        widths = vec![784, 512, 512, 10];
    }
    let [inputs, hidden @ .., classes] = &widths[..] else { return Err("give at least two widths".into()) };
    let spec = ModelSpec::Mlp { inputs: *inputs, hidden: hidden.to_vec(), classes: *classes };
    // Multiply-adds of an example: three products a layer, but the first layer's input gradient is not computed.
    let products: usize = widths.windows(2).map(|pair| 3 * pair[0] * pair[1]).sum();
    let operations = 2 * (products - widths[0] * widths[1]);
    println!("{widths:?}, {} on one core", instruction_set());
    println!("examples   samples/s   GFLOP/s   step");
    for examples in [16, 32, 64, 128, 256] {
        let seconds = step(&spec, examples)?;
        let rate = examples as f64 / seconds;
        println!(
            "{examples:>8} {rate:>11.0} {:>9.1}   {:.3} ms",
            rate * operations as f64 / 1e9,
            seconds * 1e3
        );
    }
    Ok(())
}

/// The fastest of many gradient computations, in seconds.
fn step(spec: &ModelSpec, examples: usize) -> Result<f64, ModelError> {
    let mut model = spec.build(examples)?;
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
    while start.elapsed() < Duration::from_secs(1) || best.is_infinite() {
        let step = Instant::now();
        let loss = model.gradients(&parameters, Batch::new(&inputs, &labels), &mut |_, gradient| {
            std::hint::black_box(gradient);
        })?;
        std::hint::black_box(loss);
        best = best.min(step.elapsed().as_secs_f64());
    }
    Ok(best)
}

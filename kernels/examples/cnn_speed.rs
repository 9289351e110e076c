//! How fast the convolutional network's gradients are on one core:
//!
//! cargo run --release -p testudo-kernels --example cnn_speed [cnn|resnet18] [channels height width classes]

use std::time::{Duration, Instant};

use testudo_kernels::{Batch, ModelError, ModelSpec, instruction_set};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let sizes = arguments.iter().skip(1).map(|size| size.parse()).collect::<Result<Vec<usize>, _>>()?;
    let (image, classes) = match sizes[..] {
        [] => ([1, 28, 28], 10),
        [channels, height, width, classes] => ([channels, height, width], classes),
        _ => return Err("give channels, height, width and classes".into()),
    };
    let spec = match arguments.first().map(String::as_str) {
        None | Some("cnn") => ModelSpec::Cnn { image, classes, label_smoothing: 0.0 },
        Some("resnet18") => ModelSpec::ResNet18 { image, classes, label_smoothing: 0.0 },
        Some(other) => return Err(format!("no model {other}").into()),
    };
    println!("{spec:?}, {} on one core", instruction_set());
    println!("examples   samples/s   step");
    for examples in [16, 32, 64, 128] {
        let seconds = step(&spec, examples)?;
        println!("{examples:>8} {:>11.0}   {:.3} ms", examples as f64 / seconds, seconds * 1e3);
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
    while start.elapsed() < Duration::from_secs(2) || best.is_infinite() {
        let step = Instant::now();
        let loss = model.gradients(&parameters, Batch::new(&inputs, &labels), &mut |_, gradient| {
            std::hint::black_box(gradient);
        })?;
        std::hint::black_box(loss);
        best = best.min(step.elapsed().as_secs_f64());
    }
    Ok(best)
}

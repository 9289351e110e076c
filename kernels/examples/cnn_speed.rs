//! How fast the convolutional network's gradients are on one core:
//!
//! cargo run --release -p testudo-kernels --example cnn_speed [cnn|resnet18] [channels height width classes]
//!
//! `PRECISION=bf16` computes in mixed precision, `EXAMPLES=32,128` says of how many examples.

use std::time::Duration;

use testudo_kernels::{ModelSpec, Precision, instruction_set};

mod gradients;

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
    let precision = match std::env::var("PRECISION").as_deref() {
        Ok("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    let batches = std::env::var("EXAMPLES").unwrap_or("16,32,64,128".into());
    println!("{spec:?} in {}, {} on one core", precision.name(), instruction_set());
    println!("examples   samples/s   step");
    for examples in batches.split(',') {
        let examples: usize = examples.parse()?;
        let seconds = gradients::step(&spec, precision, examples, Duration::from_secs(2))?;
        println!("{examples:>8} {:>11.0}   {:.3} ms", examples as f64 / seconds, seconds * 1e3);
    }
    Ok(())
}

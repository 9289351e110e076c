//! Speed of the perceptron's gradients on one core, in samples a second:
//! `cargo run --release -p testudo-kernels --example mlp_speed [-- widths, like 784 4096 4096 10]`.

use std::time::Duration;

use testudo_kernels::{ModelSpec, Precision, instruction_set};

mod gradients;

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
        let seconds = gradients::step(&spec, Precision::F32, examples, Duration::from_secs(1))?;
        let rate = examples as f64 / seconds;
        println!(
            "{examples:>8} {rate:>11.0} {:>9.1}   {:.3} ms",
            rate * operations as f64 / 1e9,
            seconds * 1e3
        );
    }
    Ok(())
}

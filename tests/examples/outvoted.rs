//! Trains on real data while two workers flip signs and scale by ten, and says what the rule of aggregation makes of it:
//!
//! ```text
//! cargo run -p testudo-tests --example outvoted -- training.aggregation=krum training.hostile_workers=2
//! ```
//!
//! The arguments change `examples/mnist.toml`, which is given seven workers. `tests/tests/outvoted.rs` is the short form for every rule.

use testudo_tests::outvoted::{End, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let overrides: Vec<String> = std::env::args().skip(1).collect();
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    let end = train(&overrides, |job, [step, steps], accuracy| {
        println!("{}: step {step} of {steps}, test accuracy {:.2} %", job.aggregation, 100.0 * accuracy);
    })?;
    if let End::Diverged(step) = end {
        println!("diverged in step {step}");
    }
    Ok(())
}

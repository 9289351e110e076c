//! Speed of what a server does to slices, on one core, in GB/s of gradient:
//! `cargo run --release -p testudo-kernels --example slice_speed`.

use std::error::Error;
use std::time::{Duration, Instant};

use testudo_kernels::{
    Initial, OptimizerSpec, ParameterSpec, Shape, add, add_checked, first_non_finite, instruction_set,
};

/// Elements of a slice: the default of 1 MiB.
const SLICE: usize = 1 << 18;
/// Slices that are visited in turn, so that they come from memory rather than cache: 64 MiB.
const SLICES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{} on one core; slices of 1 MiB out of 64 MiB; GB/s of gradient", instruction_set());
    let weights = vec![0.5f32; SLICE];
    let mut others = vec![vec![0.25f32; SLICE]; SLICES];
    let mut sums = vec![vec![0.125f32; SLICE]; SLICES];
    report("copy", &mut |slice| sums[slice].copy_from_slice(&others[slice]));
    report("add", &mut |slice| add(&mut sums[slice], &others[slice]));
    report("first_non_finite", &mut |slice| {
        std::hint::black_box(first_non_finite(&others[slice]));
    });
    report("first_non_finite, add", &mut |slice| {
        if std::hint::black_box(first_non_finite(&others[slice])).is_none() {
            add(&mut sums[slice], &others[slice]);
        }
    });
    report("add_checked", &mut |slice| {
        std::hint::black_box(add_checked(&mut sums[slice], &others[slice]));
    });
    for text in
        [r#"{"sgd":{}}"#, r#"{"momentum":{}}"#, r#"{"nesterov":{}}"#, r#"{"adam":{}}"#, r#"{"adamw":{}}"#]
    {
        let spec: OptimizerSpec = serde_json::from_str(text)?;
        let mut states = vec![vec![vec![0.0f32; SLICE]; spec.state_tensors().len()]; SLICES];
        let mut result = Ok(());
        report(text, &mut |slice| {
            let done = spec.update(1, 1e-9, 64.0, &weights, &mut others[slice], &mut states[slice]);
            if done.is_err() {
                result = done;
            }
        });
        result?;
    }
    for initial in [Initial::Uniform { bound: 0.1 }, Initial::Normal { std: 0.1 }] {
        let spec = ParameterSpec { name: "w".into(), shape: Shape::new(&[SLICES, SLICE])?, initial };
        report(&format!("{initial:?}"), &mut |slice| spec.initialize(1, slice * SLICE, &mut others[slice]));
    }
    Ok(())
}

fn report(name: &str, visit: &mut dyn FnMut(usize)) {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(700) || best.is_infinite() {
        let round = Instant::now();
        (0..SLICES).for_each(&mut *visit);
        best = best.min(round.elapsed().as_secs_f64());
    }
    println!("{:>7.2}  {name}", (SLICE * SLICES * 4) as f64 / best / 1e9);
}

//! Speed of what a server does to slices, on one core, in GB/s of gradient:
//! `cargo run --release -p testudo-kernels --example slice_speed`. With names of programs, these alone against the loops by hand.

mod by_hand;

use std::error::Error;
use std::time::{Duration, Instant};

use by_hand::ByHand;
use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{
    Initial, OptimizerSpec, ParameterSpec, Shape, Update, add, add_checked, first_non_finite, instruction_set,
};

/// Elements of a slice: the default of 1 MiB.
const SLICE: usize = 1 << 18;
/// Slices that are visited in turn, so that they come from memory rather than cache: 64 MiB.
const SLICES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    println!("{} on one core; slices of 1 MiB out of 64 MiB; GB/s of gradient", instruction_set());
    let weights = vec![0.5f32; SLICE];
    let mut others = vec![vec![0.25f32; SLICE]; SLICES];
    if !names.is_empty() {
        for (name, by_hand) in
            ByHand::all().into_iter().filter(|(name, _)| names.iter().any(|known| known == name))
        {
            compare(name, by_hand, &weights, &mut others)?;
        }
        return Ok(());
    }
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
    for (name, by_hand) in ByHand::all() {
        let mut states = vec![vec![vec![0.0f32; SLICE]; by_hand.states()]; SLICES];
        report(&format!("{name} by hand"), &mut |slice| {
            by_hand.update(1, 1e-9, 64.0, &weights, &mut others[slice], &mut states[slice], &mut 1.0);
        });
    }
    for (name, by_hand) in ByHand::all() {
        compare(name, by_hand, &weights, &mut others)?;
    }
    for initial in [Initial::Uniform { bound: 0.1 }, Initial::Normal { std: 0.1 }] {
        let spec = ParameterSpec {
            name: "w".into(),
            shape: Shape::new(&[SLICES, SLICE])?,
            initial,
            update: Update::Learn,
        };
        report(&format!("{initial:?}"), &mut |slice| spec.initialize(1, slice * SLICE, &mut others[slice]));
    }
    Ok(())
}

/// A shipped program against the hand-written loop of the same update, turn by turn: the medians of their times. Each slice is a
/// tensor.
fn compare(name: &str, floor: ByHand, weights: &[f32], sums: &mut [Vec<f32>]) -> Result<(), Box<dyn Error>> {
    let mut optimizer = OptimizerSpec::shipped(name).ok_or("no such program")?.compile()?;
    let mut states = vec![vec![vec![0.0f32; SLICE]; floor.states()]; SLICES];
    let mut scalars = vec![1.0; optimizer.program().scalar_states().len()];
    let [mut by_hand, mut by_program, mut checked, mut apart] = [const { Vec::new() }; 4];
    for _ in 0..31 {
        let start = Instant::now();
        for (sum, state) in sums.iter_mut().zip(&mut states) {
            floor.update(1, 1e-9, 64.0, weights, sum, state, &mut 1.0);
        }
        by_hand.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for (sum, state) in sums.iter_mut().zip(&mut states) {
            let inputs = StepInputs { step: 1, learning_rate: 1e-9, divisor: 64.0 };
            let slice = Slice { weights, gradient_to_weights: sum, state };
            scalars.fill(1.0);
            optimizer.update_tensor(inputs, &mut [slice], &mut scalars)?;
        }
        by_program.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for (sum, state) in sums.iter_mut().zip(&mut states) {
            let inputs = StepInputs { step: 1, learning_rate: 1e-9, divisor: 64.0 };
            let slice = Slice { weights, gradient_to_weights: sum, state };
            scalars.fill(1.0);
            optimizer.update_checked(inputs, &mut [slice], &mut scalars)?;
        }
        checked.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        for (sum, state) in sums.iter_mut().zip(&mut states) {
            let inputs = StepInputs { step: 1, learning_rate: 1e-9, divisor: 64.0 };
            let slice = Slice { weights, gradient_to_weights: sum, state };
            scalars.fill(1.0);
            optimizer.update_tensor(inputs, &mut [slice], &mut scalars)?;
            std::hint::black_box(first_non_finite(sum));
        }
        apart.push(start.elapsed().as_secs_f64());
    }
    let [by_hand, by_program, checked, apart] = [by_hand, by_program, checked, apart].map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let bytes = (SLICE * SLICES * 4) as f64 / 1e9;
    println!(
        "{:>7.2}  {name}.opt; by hand {:.2}; {:.2} times as long; with every value looked at {:.2}; weights looked at in a pass of \
         their own {:.2}",
        bytes / by_program,
        bytes / by_hand,
        by_program / by_hand,
        bytes / checked,
        bytes / apart
    );
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

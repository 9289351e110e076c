//! Invariant 4 of the crate: once built and warm, a model, an optimizer and an aggregation allocate nothing.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use testudo_kernels::optimizer::{Slice, StepInputs, shipped};
use testudo_kernels::{Batch, ModelSpec, Optimizer, OptimizerSpec, Precision, add_checked, first_non_finite};

#[test]
fn the_steady_state_allocates_nothing() {
    for spec in [
        ModelSpec::Mlp { inputs: 70, hidden: vec![130, 40], classes: 10 },
        ModelSpec::Cnn { image: [2, 7, 8], classes: 10, label_smoothing: 0.0 },
        ModelSpec::ResNet18 { image: [2, 3, 4], classes: 10, label_smoothing: 0.0 },
    ] {
        steps(&spec, Precision::F32);
        steps(&spec, Precision::Bf16);
    }
}

fn steps(spec: &ModelSpec, precision: Precision) {
    let features = spec.input_elements();
    let mut model = spec.build_in(precision, 96).unwrap();
    let values: Vec<Vec<f32>> = spec
        .parameters()
        .unwrap()
        .iter()
        .map(|parameter| {
            let mut values = vec![0.0; parameter.shape.elements()];
            parameter.initialize(1, 0, &mut values);
            values
        })
        .collect();
    let parameters: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let (inputs, labels) = (vec![0.5; 96 * features], vec![3; 96]);
    let mut sums: Vec<Vec<f32>> = values.iter().map(|values| vec![0.0; values.len()]).collect();
    let mut states: Vec<Vec<Vec<f32>>> =
        values.iter().map(|values| vec![vec![0.0; values.len()]; 2]).collect();
    let mut optimizer = OptimizerSpec::shipped("adamw").unwrap().compile().unwrap();
    let mut step = |number: u64, examples: usize| {
        let batch = Batch::new(&inputs[..examples * features], &labels[..examples]);
        model
            .gradients(&parameters, batch, &mut |index, gradient| {
                assert_eq!(first_non_finite(gradient), None);
                assert_eq!(add_checked(&mut sums[index], gradient), None);
            })
            .unwrap();
        model.evaluate(&parameters, batch).unwrap();
        for ((sum, values), state) in sums.iter_mut().zip(&parameters).zip(&mut states) {
            let inputs = StepInputs { step: number, learning_rate: 0.01, divisor: examples as f32 };
            let slice = Slice { weights: values, gradient_to_weights: sum, state };
            optimizer.update(inputs, slice, &mut []).unwrap();
        }
    };
    step(1, 96);
    let counted = allocation_counter::measure(|| {
        for (number, examples) in [96, 1, 33, 64, 17, 96].into_iter().enumerate() {
            step(number as u64 + 2, examples);
        }
    });
    assert_eq!(counted.count_total, 0, "{spec:?}: {counted:?}");
}

/// What a model holds is no more than it was said to hold, for shards of any size.
#[test]
fn buffers_are_as_large_as_said() {
    for (spec, examples) in [
        (ModelSpec::Mlp { inputs: 70, hidden: vec![130, 40], classes: 10 }, &[1, 96][..]),
        (ModelSpec::Cnn { image: [1, 28, 28], classes: 10, label_smoothing: 0.0 }, &[1, 16, 64]),
        (ModelSpec::Cnn { image: [3, 9, 40], classes: 10, label_smoothing: 0.0 }, &[7]),
        (ModelSpec::ResNet18 { image: [3, 16, 12], classes: 10, label_smoothing: 0.0 }, &[1, 17]),
    ] {
        let widest = spec.parameters().unwrap().iter().map(|p| p.shape.elements()).max().unwrap();
        let precisions = [Precision::F32, Precision::Bf16];
        for (&examples, precision) in examples.iter().flat_map(|e| precisions.map(|precision| (e, precision)))
        {
            let said = 4 * (spec.buffer_elements(precision, examples).unwrap() + widest);
            let mut model = None;
            let counted = allocation_counter::measure(|| model = spec.build_in(precision, examples).ok());
            assert!(model.is_some());
            let (held, beside) = (counted.bytes_current as usize, 64 << 10);
            assert!(held <= said + beside, "{spec:?} for {examples}: {held} of {said}");
            assert!(examples == 1 || held > said / 2, "{spec:?} for {examples}: {held} of {said}");
        }
    }
}

/// Invariant 3 of `optimizer/run.rs`: neither does any program, on one slice or several.
#[test]
fn programs_allocate_nothing() {
    for name in shipped::names() {
        let program = shipped::program(name).unwrap().unwrap();
        let mut optimizer = Optimizer::new(&program, &[]).unwrap();
        let weights = [vec![0.5; 5000], vec![0.25; 700]];
        let mut sums = weights.clone();
        let mut states =
            weights.clone().map(|slice| vec![vec![0.0; slice.len()]; program.state_tensors().len()]);
        let mut scalars: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
        let counted = allocation_counter::measure(|| {
            for step in 1..=3 {
                let inputs = StepInputs { step, learning_rate: 0.1, divisor: 8.0 };
                let ([first, second], [one, two]) = (&mut sums, &mut states);
                let mut slices = [(first, one, &weights[0]), (second, two, &weights[1])].map(
                    |(gradient_to_weights, state, weights)| Slice { weights, gradient_to_weights, state },
                );
                optimizer.update_checked(inputs, &mut slices, &mut scalars).unwrap();
            }
        });
        assert_eq!(counted.count_total, 0, "{name}: {counted:?}");
    }
}

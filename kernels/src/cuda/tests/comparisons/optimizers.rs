//! Programs of the optimizer language.

use super::super::programs::Pair;
use super::{assert_bits, hard, hash, numbers};
use crate::cuda::{Argument, Buffer, Device, DeviceError, DeviceSlice, Geometry};
use crate::optimizer::{OptimizerError, Slice, StepInputs};

/// A few steps of an optimizer, whole tensors at once.
pub(in crate::cuda::tests) fn optimizer<D: Device>(
    device: &mut D,
    pair: &mut Pair,
    elements: usize,
    rate: f64,
) {
    let program = pair.host.program().clone();
    let initial: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    for make in [numbers, hard] {
        let (mut weights, mut scalars, mut on_device_scalars) =
            (make(elements, 1), initial.clone(), initial.clone());
        let mut states = vec![vec![0.0; elements]; program.state_tensors().len()];
        let mut on_device = Buffer::of(device, "weights", &weights).unwrap();
        let zeros = states.iter().map(|_| Buffer::zeros(device, "state", elements).unwrap());
        let mut on_device_states: Vec<_> = zeros.collect();
        for step in 1..=3 {
            let inputs = StepInputs { step, learning_rate: rate, divisor: 30.0 };
            let mut out = make(elements, 1 + step);
            let mut on_device_out = Buffer::of(device, "gradient", &out).unwrap();
            let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut states };
            pair.host.update_tensor(inputs, &mut [slice], &mut scalars).unwrap();
            let slice = DeviceSlice {
                weights: &on_device,
                gradient_to_weights: &mut on_device_out,
                state: &mut on_device_states,
            };
            pair.device.update_tensor(device, inputs, slice, &mut on_device_scalars).unwrap();
            (weights, on_device) = (out, on_device_out);
            let what = format!("step {step} of {}", pair.text);
            assert_bits(&on_device.to_vec(device).unwrap(), &weights, &what);
            for (found, expected) in on_device_states.iter().zip(&states) {
                assert_bits(&found.to_vec(device).unwrap(), expected, &what);
            }
            for (found, expected) in on_device_scalars.iter().zip(&scalars) {
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{what}"
                );
            }
        }
    }
}

/// A step that looks at what it makes: of numbers on which arithmetic breaks, the same element and line are blamed.
pub(in crate::cuda::tests) fn checked<D: Device>(device: &mut D, pair: &mut Pair, elements: usize) {
    let program = pair.host.program().clone();
    let tensors = program.state_tensors().len();
    let initial: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    for (seed, make, rate) in
        [(1, numbers as fn(usize, u64) -> Vec<f32>, 0.01), (2, hard, 0.01), (3, numbers, 1e38)]
    {
        let (weights, mut out) = (make(elements, seed), make(elements, 10 + seed));
        let mut states: Vec<Vec<f32>> =
            (0..tensors as u64).map(|state| numbers(elements, 20 + state)).collect();
        let of = |device: &mut D, values: &Vec<f32>| Buffer::of(device, "tensor", values).unwrap();
        let (on_device, mut on_device_out) = (of(device, &weights), of(device, &out));
        let mut on_device_states: Vec<_> = states.iter().map(|state| of(device, state)).collect();
        let (mut scalars, mut on_device_scalars) = (initial.clone(), initial.clone());
        let inputs = StepInputs { step: 1, learning_rate: rate, divisor: 30.0 };
        let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut states };
        let expected = pair.host.update_checked(inputs, &mut [slice], &mut scalars);
        let slice = DeviceSlice {
            weights: &on_device,
            gradient_to_weights: &mut on_device_out,
            state: &mut on_device_states,
        };
        let found = pair.device.update_checked(device, inputs, slice, &mut on_device_scalars);
        assert_eq!(found, expected.clone().map_err(DeviceError::from), "{}", pair.text);
        if expected.is_ok() {
            assert_bits(&on_device_out.to_vec(device).unwrap(), &out, &pair.text);
            assert_eq!(on_device_scalars, scalars, "{}", pair.text);
        }
    }
}

/// Optimizers refuse what they refuse on the CPU.
pub(in crate::cuda::tests) fn refused_updates<D: Device>(device: &mut D, adam: &mut Pair, lamb: &mut Pair) {
    let zeros = |device: &mut D, elements| Buffer::zeros(device, "tensor", elements).unwrap();
    let mut attempt = |pair: &mut Pair, step, elements: [usize; 4], tensors: usize| {
        let weights = zeros(device, elements[0]);
        let mut out = zeros(device, elements[1]);
        let mut state: Vec<_> = (0..tensors).map(|at| zeros(device, elements[2 + at])).collect();
        let inputs = StepInputs { step, learning_rate: 0.1, divisor: 1.0 };
        let slice = DeviceSlice { weights: &weights, gradient_to_weights: &mut out, state: &mut state };
        pair.device.update(device, inputs, slice, &mut []).err()
    };
    let length = |found| Some(DeviceError::Length { tensor: "tensor".into(), expected: 4, found });
    assert_eq!(attempt(adam, 1, [4, 3, 4, 4], 2), length(3));
    assert_eq!(attempt(adam, 1, [4, 4, 4, 5], 2), length(5));
    let count = OptimizerError::StateCount { expected: 2, found: 1 };
    assert_eq!(attempt(adam, 1, [4, 4, 4, 4], 1), Some(count.into()));
    assert!(matches!(
        attempt(adam, 0, [4; 4], 2),
        Some(DeviceError::Optimizer(OptimizerError::Setting { .. }))
    ));
    assert_eq!(attempt(lamb, 1, [4; 4], 2), Some(OptimizerError::WholeTensor.into()));
}

/// Blocks' sums are added one after another, however many times the threads fetch them.
pub(in crate::cuda::tests) fn totals<D: Device>(device: &mut D, pair: &Pair) {
    for blocks in [0, 1, 255, 256, 257, 700] {
        let values: Vec<f64> = (0..2 * blocks as u64).map(|at| hash(at) as f64 * 1e-19 - 0.7).collect();
        let sums = Buffer::of(device, "sums", &values).unwrap();
        let mut totals = Buffer::<_, f64>::zeros(device, "totals", 2).unwrap();
        let geometry = Geometry { blocks: 2, threads: 256, shared_bytes: 0 };
        let arguments = &mut [sums.input(), totals.output(), Argument::U64(blocks as u64)];
        device.launch(pair.device.kernels().source(), "total_of_blocks", geometry, arguments).unwrap();
        let (first, second) = values.split_at(blocks);
        let expected = [first, second].map(|row| row.iter().fold(0.0, |sum, value| sum + value).to_bits());
        let found: Vec<u64> = totals.to_vec(device).unwrap().into_iter().map(f64::to_bits).collect();
        assert_eq!(found, expected, "{blocks} blocks");
    }
}

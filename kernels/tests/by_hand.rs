//! Programs keep the bits of the loops that were written by hand for the same updates.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

#[path = "../examples/by_hand/mod.rs"]
mod by_hand;

use by_hand::ByHand;
use testudo_kernels::OptimizerSpec;
use testudo_kernels::optimizer::{Slice, StepInputs};

const ELEMENTS: usize = 1300;

fn numbers(seed: f32) -> Vec<f32> {
    (0..ELEMENTS).map(|i| (((i as f32 + seed) * 0.377).fract() - 0.5) * 3.0).collect()
}

/// Hard cases for arithmetic among ordinary numbers.
fn hard(seed: usize) -> Vec<f32> {
    let mut values = numbers(seed as f32);
    let special =
        [0.0, -0.0, 1e-40, -1e-40, f32::MAX, f32::MIN, 1e-20, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for (index, value) in special.into_iter().cycle().enumerate().take(ELEMENTS / 3) {
        values[(index * 7 + seed * 3) % ELEMENTS] = value;
    }
    values
}

/// Bits, with one for all NaN.
fn bits(weights: &[f32], state: &[Vec<f32>]) -> Vec<u32> {
    let bits = |value: &f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    weights.iter().chain(state.iter().flatten()).map(bits).collect()
}

/// With every weight that is finite, and gradients of any kind. (The loop of AdamW adds a zeroth part of the weight to the
/// gradient.)
#[test]
fn bits_are_those_of_loops_by_hand() {
    let decays = [0.0, 0.01];
    for (weight_decay, rate) in
        decays.into_iter().flat_map(|decay| [0.01, 0.3, 0.0].map(|rate| (decay, rate)))
    {
        let (beta1, beta2, epsilon, momentum) = (0.8, 0.99, 1e-6, 0.7);
        let betas = [("beta1", beta1), ("beta2", beta2), ("weight_decay", weight_decay)];
        let adam = [betas[0], betas[1], betas[2], ("epsilon", epsilon)];
        let decay = ("weight_decay", weight_decay);
        let (alpha, rate_decay, rho) = (0.9, 0.2, 0.8);
        let (beta, lambda1, lambda2) = (0.5, weight_decay, 0.1);
        let (momentum_decay, trust) = (0.01, 0.05);
        for (name, constants, by_hand) in [
            ("sgd", &[decay][..], ByHand::Sgd { weight_decay }),
            ("momentum", &[decay, ("momentum", momentum)], ByHand::Momentum { momentum, weight_decay }),
            ("nesterov", &[decay, ("momentum", momentum)], ByHand::Nesterov { momentum, weight_decay }),
            ("adam", &adam, ByHand::Adam { beta1, beta2, epsilon, weight_decay }),
            ("adamw", &adam, ByHand::AdamW { beta1, beta2, epsilon, weight_decay }),
            (
                "rmsprop",
                &[decay, ("alpha", alpha), ("epsilon", epsilon)],
                ByHand::RmsProp { alpha, epsilon, weight_decay },
            ),
            (
                "adagrad",
                &[decay, ("lr_decay", rate_decay), ("epsilon", epsilon)],
                ByHand::Adagrad { rate_decay, epsilon, weight_decay },
            ),
            (
                "adadelta",
                &[decay, ("rho", rho), ("epsilon", epsilon)],
                ByHand::Adadelta { rho, epsilon, weight_decay },
            ),
            (
                "ftrl",
                &[("beta", beta), ("lambda1", lambda1), ("lambda2", lambda2)],
                ByHand::Ftrl { beta, lambda1, lambda2 },
            ),
            ("lion", &betas, ByHand::Lion { beta1, beta2, weight_decay }),
            (
                "nadam",
                &[adam[0], adam[1], adam[2], adam[3], ("momentum_decay", momentum_decay)],
                ByHand::NAdam { beta1, beta2, epsilon, weight_decay, momentum_decay },
            ),
            ("lamb", &adam, ByHand::Lamb { beta1, beta2, epsilon, weight_decay }),
            (
                "lars",
                &[decay, ("momentum", momentum), ("trust", trust)],
                ByHand::Lars { momentum, weight_decay, trust },
            ),
        ] {
            let spec = OptimizerSpec::shipped(name).unwrap();
            let spec = constants.iter().fold(spec, |spec, (constant, value)| spec.with(constant, *value));
            let mut optimizer = spec.compile().unwrap();
            assert_eq!(optimizer.program().state_tensors().len(), by_hand.states(), "{name}");
            let finite = |value: f32| if value.is_finite() { value } else { 0.25 };
            let mut weights = [(); 2].map(|()| hard(0).into_iter().map(finite).collect::<Vec<f32>>());
            let mut state = [(); 2].map(|()| vec![vec![0.0; ELEMENTS]; by_hand.states()]);
            let (mut scalars, mut product) = (vec![1.0; optimizer.program().scalar_states().len()], 1.0);
            // What a step makes of infinite gradients is no longer finite, so they come last.
            for (index, sum) in [numbers(1.0), numbers(2.0), vec![0.0; ELEMENTS], hard(4)].iter().enumerate()
            {
                let step = index as u64 + 1;
                let (mut by_program, mut by_loop) = (sum.clone(), sum.clone());
                let inputs = StepInputs { step, learning_rate: rate, divisor: 30.0 };
                let [of_program, of_loop] = &mut state;
                let slice =
                    Slice { weights: &weights[0], gradient_to_weights: &mut by_program, state: of_program };
                optimizer.update_tensor(inputs, &mut [slice], &mut scalars).unwrap();
                by_hand.update(step, rate, 30.0, &weights[1], &mut by_loop, of_loop, &mut product);
                weights = [by_program, by_loop];
                let [program, hand] = [0, 1].map(|i| bits(&weights[i], &state[i]));
                assert!(program == hand, "{name}, decay {weight_decay}, rate {rate}, step {step}");
            }
        }
    }
}

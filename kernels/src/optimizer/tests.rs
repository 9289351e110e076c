//! Invariants 1, 2 and 4 of the optimizers; invariant 3 is held by `tests/pytorch.rs`.

use super::*;
use crate::simd::forced;

fn all() -> Vec<OptimizerSpec> {
    let decays = [0.0, 0.01];
    decays
        .iter()
        .flat_map(|&weight_decay| {
            let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
            [
                OptimizerSpec::Sgd { weight_decay },
                OptimizerSpec::Momentum { momentum: 0.9, weight_decay },
                OptimizerSpec::Nesterov { momentum: 0.9, weight_decay },
                OptimizerSpec::Adam { beta1, beta2, epsilon, weight_decay },
                OptimizerSpec::AdamW { beta1, beta2, epsilon, weight_decay },
            ]
        })
        .collect()
}

/// Three steps on slices cut at `cuts`; the bits of weights and states.
fn run(spec: OptimizerSpec, elements: usize, cut: usize) -> Vec<u32> {
    let value = |i: usize, k: f32| ((i as f32 + k) * 0.37).fract() - 0.5;
    let mut bits = Vec::new();
    for range in [0..cut, cut..elements] {
        let mut weights: Vec<f32> = range.clone().map(|i| value(i, 0.0)).collect();
        let mut state = vec![vec![0.0; weights.len()]; spec.state_tensors().len()];
        for step in 1..=3 {
            let mut slice: Vec<f32> = range.clone().map(|i| value(i, step as f32) * 30.0).collect();
            spec.update(step, 0.01, 30.0, &weights, &mut slice, &mut state).unwrap();
            weights = slice;
        }
        bits.extend(weights.iter().map(|value| value.to_bits()));
    }
    bits
}

/// Invariant 1.
#[test]
fn neither_slicing_nor_width_changes_bits() {
    for spec in all() {
        let whole = run(spec, 203, 203);
        for cut in [1, 2, 64, 101] {
            assert_eq!(run(spec, 203, cut), whole, "{spec:?} cut at {cut}");
        }
        forced::assert_same(|| run(spec, 203, 77));
    }
}

/// Momentum's first velocity is the gradient, bit for bit.
#[test]
fn momentum_starts_at_the_gradient() {
    let spec = OptimizerSpec::Momentum { momentum: 0.9, weight_decay: 0.0 };
    let (mut slice, mut state) = (vec![3.0, -1.0, 1e-30], vec![vec![0.0; 3]]);
    spec.update(1, 0.1, 7.0, &[1.0; 3], &mut slice, &mut state).unwrap();
    assert_eq!(state[0], [3.0 / 7.0, -1.0 / 7.0, 1e-30 / 7.0]);
}

/// Invariant 4.
#[test]
fn refusals_change_nothing() {
    for spec in all() {
        let states = spec.state_tensors().len();
        let attempt = |step, rate, divisor, gradients: usize, tensors: usize, elements: usize| {
            let mut slice = vec![1.0; gradients];
            let mut state = vec![vec![0.5; elements]; tensors];
            let result = spec.update(step, rate, divisor, &[1.0; 4], &mut slice, &mut state);
            if result.is_err() {
                assert!(
                    slice.iter().all(|value| *value == 1.0)
                        && state.iter().flatten().all(|value| *value == 0.5)
                );
            }
            result
        };
        assert_eq!(attempt(1, 0.1, 2.0, 4, states, 4), Ok(()));
        assert!(matches!(
            attempt(0, 0.1, 2.0, 4, states, 4),
            Err(OptimizerError::Setting { setting: "step", .. })
        ));
        for rate in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(attempt(1, rate, 2.0, 4, states, 4).is_err(), "{rate}");
        }
        for divisor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(attempt(1, 0.1, divisor, 4, states, 4).is_err(), "{divisor}");
        }
        let length = OptimizerError::Length { tensor: "gradient".into(), expected: 4, found: 3 };
        assert_eq!(attempt(1, 0.1, 2.0, 3, states, 4), Err(length));
        let count = OptimizerError::StateCount { expected: states, found: states + 1 };
        assert_eq!(attempt(1, 0.1, 2.0, 4, states + 1, 4), Err(count));
        if states > 0 {
            assert!(matches!(
                attempt(1, 0.1, 2.0, 4, states, 5),
                Err(OptimizerError::Length { found: 5, .. })
            ));
        }
    }
}

#[test]
fn settings_are_checked_by_name() {
    for (text, setting) in [
        (r#"{"sgd":{"weight_decay":-1}}"#, "weight_decay"),
        (r#"{"momentum":{"momentum":1.0}}"#, "momentum"),
        (r#"{"nesterov":{"momentum":-0.1}}"#, "momentum"),
        (r#"{"adam":{"beta1":1.0}}"#, "beta1"),
        (r#"{"adam":{"beta2":-0.5}}"#, "beta2"),
        (r#"{"adamw":{"epsilon":0}}"#, "epsilon"),
        (r#"{"adamw":{"epsilon":1e-60}}"#, "epsilon"),
    ] {
        let spec: OptimizerSpec = serde_json::from_str(text).unwrap();
        match spec.validate() {
            Err(OptimizerError::Setting { setting: found, .. }) => assert_eq!(found, setting, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    for (text, expected) in [
        (r#"{"sgd":{}}"#, OptimizerSpec::Sgd { weight_decay: 0.0 }),
        (r#"{"momentum":{}}"#, OptimizerSpec::Momentum { momentum: 0.9, weight_decay: 0.0 }),
        (
            r#"{"adamw":{}}"#,
            OptimizerSpec::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        ),
    ] {
        let spec: OptimizerSpec = serde_json::from_str(text).unwrap();
        assert_eq!((spec, spec.validate()), (expected, Ok(())));
    }
    assert!(serde_json::from_str::<OptimizerSpec>(r#"{"sgd":{"momentum":0.9}}"#).is_err());
}

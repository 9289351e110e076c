//! Agreement with PyTorch on small problems; `fixtures/generate.py` writes what it computed.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use serde_json::Value;
use testudo_kernels::optimizer::{Slice, StepInputs, shipped};
use testudo_kernels::{Batch, Codec, ModelSpec, Optimizer, OptimizerSpec};

fn fixture(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Relative to the greatest magnitude, since sums of other orders differ where terms cancel.
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * scale, "{what}[{index}]: {found} against {expected}");
    }
}

#[test]
fn losses_of_numbers_agree() {
    use testudo_kernels::losses::{binary_cross_entropy, squared_error};
    let fixture: Value = serde_json::from_str(include_str!("fixtures/losses.json")).unwrap();
    let (outputs, targets) = (numbers(&fixture["outputs"]), numbers(&fixture["targets"]));
    let mut gradient = vec![f32::NAN; outputs.len()];
    for name in ["squared_error", "binary_cross_entropy"] {
        let case = &fixture[name];
        let sum = match name {
            "squared_error" => squared_error(&outputs, &targets, &mut gradient),
            _ => binary_cross_entropy(&outputs, &targets, &mut gradient),
        };
        assert!((sum.unwrap() / case["loss_sum"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{name}");
        assert_close(&gradient, &numbers(&case["gradient"]), 5e-7, name);
    }
}

#[test]
fn perceptrons_agree() {
    for case in fixture(include_str!("fixtures/mlp.json")) {
        let widths: Vec<usize> =
            case["widths"].as_array().unwrap().iter().map(|width| width.as_u64().unwrap() as usize).collect();
        let [inputs, hidden @ .., classes] = &widths[..] else { panic!("two widths at least") };
        let spec = ModelSpec::Mlp { inputs: *inputs, hidden: hidden.to_vec(), classes: *classes };
        let values: Vec<Vec<f32>> = case["parameters"].as_array().unwrap().iter().map(numbers).collect();
        let parameters: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let labels: Vec<u32> =
            case["labels"].as_array().unwrap().iter().map(|label| label.as_u64().unwrap() as u32).collect();
        let inputs = numbers(&case["inputs"]);
        let batch = Batch::new(&inputs, &labels);
        let mut model = spec.build(64).unwrap();
        let mut gradients = vec![Vec::new(); parameters.len()];
        let loss = model
            .gradients(&parameters, batch, &mut |index, gradient| gradients[index] = gradient.to_vec())
            .unwrap();
        let expected = case["loss_sum"].as_f64().unwrap();
        assert!((loss.loss_sum / expected - 1.0).abs() < 2e-6, "{} against {expected}", loss.loss_sum);
        assert_eq!(u64::from(loss.correct), case["correct"].as_u64().unwrap());
        assert_eq!(loss.examples as usize, labels.len());
        for (index, expected) in case["gradients"].as_array().unwrap().iter().enumerate() {
            assert_close(
                &gradients[index],
                &numbers(expected),
                2e-6,
                &format!("{widths:?} gradient {index}"),
            );
        }
        assert_eq!(model.evaluate(&parameters, batch).unwrap(), loss);
    }
}

#[test]
fn optimizers_agree_step_by_step() {
    let cases = fixture(include_str!("fixtures/optimizers.json"));
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (name, constants) = case["spec"].as_object().unwrap().iter().next().unwrap();
        let mut spec = OptimizerSpec::shipped(name).unwrap();
        for (constant, value) in constants.as_object().unwrap() {
            spec = spec.with(constant, value.as_f64().unwrap());
        }
        let mut optimizer = spec.compile().unwrap();
        let rate = case["learning_rate"].as_f64().unwrap();
        let divisor = case["divisor"].as_f64().unwrap() as f32;
        let mut weights = numbers(&case["start"]);
        let mut state = vec![vec![0.0; weights.len()]; optimizer.program().state_tensors().len()];
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let mut out = numbers(&step["gradient_sum"]);
            let inputs = StepInputs { step: index as u64 + 1, learning_rate: rate, divisor };
            let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut state };
            optimizer.update(inputs, slice, &mut []).unwrap();
            weights = out;
            let what = format!("{name} {constants:?} step {}", index + 1);
            assert_close(&weights, &numbers(&step["weights"]), 3e-7, &what);
        }
    }
}

/// Every program that ships, each with and without weight decay (FTRL: its L1 penalty).
#[test]
fn shipped_programs_agree_step_by_step() {
    let cases = fixture(include_str!("fixtures/programs.json"));
    let mut seen: Vec<&str> = cases.iter().map(|case| case["program"].as_str().unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((cases.len(), seen.len()), (34, shipped::names().count()));
    for case in &cases {
        let name = case["program"].as_str().unwrap();
        let program = shipped::program(name).unwrap().unwrap();
        let constants: Vec<(&str, f64)> = (case["constants"].as_object().unwrap().iter())
            .map(|(name, value)| (name.as_str(), value.as_f64().unwrap()))
            .collect();
        let mut optimizer = Optimizer::new(&program, &constants).unwrap();
        let rate = case["learning_rate"].as_f64().unwrap();
        let divisor = case["divisor"].as_f64().unwrap() as f32;
        let mut weights = numbers(&case["start"]);
        let mut state = vec![vec![0.0; weights.len()]; program.state_tensors().len()];
        let mut scalars: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
        for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            let mut out = numbers(&step["gradient_sum"]);
            let inputs = StepInputs { step: index as u64 + 1, learning_rate: rate, divisor };
            let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut state };
            optimizer.update_tensor(inputs, &mut [slice], &mut scalars).unwrap();
            weights = out;
            let what = format!("{name} {constants:?} step {}", index + 1);
            assert_close(&weights, &numbers(&step["weights"]), 5e-7, &what);
        }
    }
}

/// Bit for bit: rounding to half precision has one right answer.
#[test]
fn half_precision_agrees() {
    let cases = fixture(include_str!("fixtures/codecs.json"));
    for (case, codec) in cases.iter().zip([Codec::Bf16, Codec::F16]) {
        assert_eq!(case["codec"], codec.name());
        let whole = |name: &str| -> Vec<u32> {
            case[name].as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
        };
        let values: Vec<f32> = whole("values").into_iter().map(f32::from_bits).collect();
        assert!(values.len() > 400, "{}", values.len());
        let mut bytes = vec![0; codec.encoded_len(values.len())];
        codec.encode(&values, &mut bytes).unwrap();
        let (found, _) = bytes.as_chunks::<2>();
        for ((found, expected), value) in found.iter().zip(whole("encoded")).zip(&values) {
            assert_eq!(u32::from(u16::from_le_bytes(*found)), expected, "{codec} of {value:e}");
        }
    }
}

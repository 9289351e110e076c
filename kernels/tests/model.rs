//! The `Model` contract, held for the multilayer perceptron: gradients against finite differences and against a plain
//! `f64` computation, bits that depend on the batch alone, order of hand-over, and typed refusals.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use proptest::prelude::*;
use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{
    Batch, Codec, DType, Initial, Loss, ModelError, ModelSpec, OptimizerSpec, ParameterSpec, Philox, Purpose,
    Schedule,
};

struct Problem {
    widths: Vec<usize>,
    spec: ModelSpec,
    parameters: Vec<Vec<f32>>,
    inputs: Vec<f32>,
    labels: Vec<u32>,
}

impl Problem {
    fn new(widths: &[usize], examples: usize, seed: u64) -> Self {
        let [inputs, hidden @ .., classes] = widths else { panic!("two widths at least") };
        let spec = ModelSpec::Mlp { inputs: *inputs, hidden: hidden.to_vec(), classes: *classes };
        let parameters = spec
            .parameters()
            .unwrap()
            .into_iter()
            .map(|mut parameter| {
                // Larger than real initial values, so that every layer matters to the loss.
                parameter.initial = Initial::Normal { std: 0.6 };
                let mut values = vec![0.0; parameter.shape.elements()];
                parameter.initialize(seed, 0, &mut values);
                values
            })
            .collect();
        let draws = Philox::new(seed, Purpose::Noise, 0, 0);
        let count = examples * inputs;
        let numbers =
            (0..count.div_ceil(4)).flat_map(|block| draws.normal(block as u32)).take(count).collect();
        let labels = (0..examples).map(|e| draws.block(1 << 20 | e as u32)[0] % *classes as u32).collect();
        Self { widths: widths.to_vec(), spec, parameters, inputs: numbers, labels }
    }

    fn batch(&self) -> Batch<'_> {
        Batch::new(&self.inputs, &self.labels)
    }

    fn slices(&self) -> Vec<&[f32]> {
        self.parameters.iter().map(Vec::as_slice).collect()
    }

    fn gradients(&self, max_examples: usize) -> (Loss, Vec<Vec<f32>>) {
        let mut model = self.spec.build(max_examples).unwrap();
        let mut gradients = vec![Vec::new(); self.parameters.len()];
        let loss =
            model.gradients(&self.slices(), self.batch(), &mut |i, g| gradients[i] = g.to_vec()).unwrap();
        (loss, gradients)
    }

    /// The loss sum in plain `f64`, with element `element` of parameter `index` moved by `by`.
    fn loss(&self, index: usize, element: usize, by: f64) -> f64 {
        let value = |i: usize, e: usize| {
            f64::from(self.parameters[i][e]) + if (i, e) == (index, element) { by } else { 0.0 }
        };
        let mut loss = 0.0;
        for (input, &label) in self.inputs.chunks(self.widths[0]).zip(&self.labels) {
            let mut x: Vec<f64> = input.iter().copied().map(f64::from).collect();
            for (layer, pair) in self.widths.windows(2).enumerate() {
                let row =
                    |o: usize| (0..pair[0]).map(|k| value(2 * layer, o * pair[0] + k) * x[k]).sum::<f64>();
                let y: Vec<f64> = (0..pair[1]).map(|o| row(o) + value(2 * layer + 1, o)).collect();
                let last = layer + 2 == self.widths.len();
                x = y.into_iter().map(|y| if last { y } else { y.max(0.0) }).collect();
            }
            let greatest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            loss += x.iter().map(|x| (x - greatest).exp()).sum::<f64>().ln() + greatest - x[label as usize];
        }
        loss
    }
}

/// Every element of every parameter: a layer's weights and bias, in first, middle and last layers, each with its ReLU.
#[test]
fn gradients_match_finite_differences() {
    for (widths, examples) in [(&[3, 2][..], 4), (&[1, 1, 2], 3), (&[4, 5, 3], 7), (&[6, 9, 4, 3], 17)] {
        let problem = Problem::new(widths, examples, 11);
        let (loss, gradients) = problem.gradients(examples);
        assert!((loss.loss_sum / problem.loss(0, 0, 0.0) - 1.0).abs() < 1e-6);
        for (index, gradient) in gradients.iter().enumerate() {
            assert_eq!(gradient.len(), problem.parameters[index].len());
            for (element, &found) in gradient.iter().enumerate() {
                let step = 1e-6;
                let slope =
                    (problem.loss(index, element, step) - problem.loss(index, element, -step)) / (2.0 * step);
                let error = (f64::from(found) - slope).abs();
                assert!(
                    error < 2e-5 * (1.0 + slope.abs()),
                    "{widths:?} {index}[{element}]: {found} against {slope}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// The same at any shape, for a few elements of each parameter, skipping those so near a kink that the two
    /// one-sided differences disagree.
    #[test]
    fn gradients_match_finite_differences_at_any_shape(
        inputs in 1usize..40,
        hidden in prop::collection::vec(1usize..20, 0..3),
        classes in 1usize..12,
        examples in 1usize..40,
        seed: u64,
    ) {
        let widths: Vec<usize> = [&[inputs][..], &hidden, &[classes]].concat();
        let problem = Problem::new(&widths, examples, seed);
        let (_, gradients) = problem.gradients(examples);
        let here = problem.loss(0, 0, 0.0);
        for (index, gradient) in gradients.iter().enumerate() {
            for element in [0, gradient.len() / 2, gradient.len() - 1] {
                let step = 1e-6;
                let (up, down) = (problem.loss(index, element, step) - here, here - problem.loss(index, element, -step));
                if (up - down).abs() > 1e-5 * step * (1.0 + up.abs() / step) + 1e-9 {
                    continue;
                }
                let (slope, found) = ((up + down) / (2.0 * step), f64::from(gradient[element]));
                prop_assert!(
                    (found - slope).abs() < 1e-4 * (1.0 + slope.abs()),
                    "{:?} {}[{}]: {} against {}", widths, index, element, found, slope
                );
            }
        }
    }
}

fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|value| value.to_bits()).collect()).collect()
}

/// Invariant 2 of `model`: not `max_examples`, not alignment, not what was computed before.
#[test]
fn bits_depend_on_the_batch_alone() {
    for examples in [1, 5, 16, 33, 70] {
        let problem = Problem::new(&[19, 33, 17, 10], examples, 3);
        let (loss, gradients) = problem.gradients(examples);
        for max_examples in [examples + 1, 64 + examples, 1000] {
            let (other_loss, other) = problem.gradients(max_examples);
            assert_eq!((other_loss, bits(&other)), (loss, bits(&gradients)), "{max_examples}");
        }
        let mut model = problem.spec.build(100).unwrap();
        // Leaves garbage, NaN included, in every buffer.
        let wild = Problem {
            inputs: vec![f32::NAN; 19 * 100],
            labels: vec![9; 100],
            ..Problem::new(&[19, 33, 17, 10], 0, 4)
        };
        for shift in 0..16 {
            model.gradients(&wild.slices(), wild.batch(), &mut |_, _| {}).unwrap();
            let shifted = |values: &[f32]| [&vec![f32::NAN; shift][..], values].concat();
            let parameters: Vec<Vec<f32>> = problem.parameters.iter().map(|values| shifted(values)).collect();
            let parameters: Vec<&[f32]> = parameters.iter().map(|values| &values[shift..]).collect();
            let inputs = shifted(&problem.inputs);
            let batch = Batch::new(&inputs[shift..], &problem.labels);
            let mut found = vec![Vec::new(); parameters.len()];
            let found_loss = model.gradients(&parameters, batch, &mut |i, g| found[i] = g.to_vec()).unwrap();
            assert_eq!((found_loss, bits(&found)), (loss, bits(&gradients)), "shifted by {shift}");
            assert_eq!(model.evaluate(&parameters, batch).unwrap(), loss);
        }
    }
}

/// The same where a layer is wide enough to be cut into groups of columns, at each size that a shard may have.
#[test]
fn bits_do_not_depend_on_room_in_wide_layers() {
    for examples in [1, 63, 65, 100, 129, 200] {
        let problem = Problem::new(&[1500, 3, 2], examples, 3);
        let (loss, gradients) = problem.gradients(examples);
        let (other_loss, other) = problem.gradients(256);
        assert_eq!((other_loss, bits(&other)), (loss, bits(&gradients)), "{examples}");
    }
}

/// Invariant 3 of `model`.
#[test]
fn gradients_come_last_layer_first_and_once() {
    let problem = Problem::new(&[4, 6, 5, 3], 9, 1);
    let mut model = problem.spec.build(9).unwrap();
    let names: Vec<String> = model.parameters().iter().map(|spec| spec.name.clone()).collect();
    let mut order = Vec::new();
    model.gradients(&problem.slices(), problem.batch(), &mut |i, _| order.push(names[i].as_str())).unwrap();
    assert_eq!(order, ["fc3.weight", "fc3.bias", "fc2.weight", "fc2.bias", "fc1.weight", "fc1.bias"]);
    let shapes: Vec<String> = model.parameters().iter().map(|spec| spec.shape.to_string()).collect();
    assert_eq!(shapes, ["6x4", "6", "5x6", "5", "3x5", "3"]);
    assert_eq!(problem.spec.parameters().unwrap(), model.parameters());
}

/// Probabilities are the softmax whose gradient training follows, in softmax regression and in deeper models; and each
/// example's bits are its own, whoever stands beside it.
#[test]
fn probabilities_are_each_examples_own() {
    for (widths, examples) in [(&[3, 2][..], 4), (&[21, 10], 70), (&[19, 33, 17, 10], 33)] {
        let problem = Problem::new(widths, examples, 8);
        let (features, classes) = (widths[0], widths[widths.len() - 1]);
        let mut model = problem.spec.build(examples).unwrap();
        let mut found = vec![f32::NAN; examples * classes];
        model.probabilities(&problem.slices(), &problem.inputs, &mut found).unwrap();
        for (e, row) in found.chunks(classes).enumerate() {
            let input = &problem.inputs[e * features..][..features];
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let single = |label| Problem {
                inputs: input.to_vec(),
                labels: vec![label],
                ..Problem::new(widths, examples, 8)
            };
            for (class, probability) in row.iter().enumerate() {
                // The last layer's bias has the softmax's own gradient: the probability less one for the label.
                let (_, gradients) = single(class as u32).gradients(1);
                assert!((gradients[gradients.len() - 1][class] + 1.0 - probability).abs() < 1e-6);
                let loss = single(class as u32).loss(0, 0, 0.0);
                assert!((f64::from(*probability) - (-loss).exp()).abs() < 2e-5);
            }
            let mut alone = vec![f32::NAN; classes];
            model.probabilities(&problem.slices(), input, &mut alone).unwrap();
            assert_eq!(bits(&[alone]), bits(&[row.to_vec()]), "{widths:?} {e}");
        }
        model.probabilities(&problem.slices(), &[], &mut []).unwrap();
    }
}

#[test]
fn probabilities_of_wrong_lengths_are_refused() {
    let problem = Problem::new(&[4, 6, 3], 5, 1);
    let mut model = problem.spec.build(5).unwrap();
    let good = problem.slices();
    let mut refused = |parameters: &[&[f32]], inputs: usize, outputs: usize| {
        model.probabilities(parameters, &vec![0.0; inputs], &mut vec![0.0; outputs]).unwrap_err()
    };
    assert_eq!(refused(&good[1..], 4, 3), ModelError::ParameterCount { expected: 4, found: 3 });
    for (inputs, outputs) in [(5, 3), (4, 2), (4, 6), (8, 3)] {
        let error = ModelError::OutputLength { inputs, features: 4, outputs, classes: 3 };
        assert_eq!(refused(&good, inputs, outputs), error);
    }
    assert_eq!(refused(&good, 24, 18), ModelError::TooManyExamples { examples: 6, max_examples: 5 });
}

#[test]
fn an_empty_shard_has_no_loss_and_zero_gradients() {
    let problem = Problem::new(&[4, 6, 3], 0, 1);
    let (loss, gradients) = problem.gradients(8);
    assert_eq!(loss, Loss::default());
    assert_eq!(gradients.iter().map(Vec::len).collect::<Vec<_>>(), [24, 6, 18, 3]);
    assert!(gradients.iter().flatten().all(|value| *value == 0.0));
}

/// A poisoned parameter shows in the loss and in gradients; it is never hidden by a ReLU.
#[test]
fn nan_is_not_hidden() {
    let mut problem = Problem::new(&[4, 6, 3], 5, 1);
    problem.parameters[0][7] = f32::NAN;
    let (loss, gradients) = problem.gradients(5);
    assert!(loss.loss_sum.is_nan() && gradients[2].iter().any(|value| value.is_nan()));
    assert_eq!((loss.correct, loss.examples), (0, 5));
}

/// Invariant 4 of `model`.
#[test]
fn refusals_are_typed_and_come_before_any_gradient() {
    let problem = Problem::new(&[4, 6, 3], 5, 1);
    let mut model = problem.spec.build(5).unwrap();
    let mut refused = |parameters: &[&[f32]], inputs: &[f32], labels: &[u32]| {
        let batch = Batch::new(inputs, labels);
        let error = model
            .gradients(parameters, batch, &mut |_, _| panic!("a gradient of a refused batch"))
            .unwrap_err();
        assert_eq!(model.evaluate(parameters, batch).unwrap_err(), error);
        error
    };
    let (good, labels) = (problem.slices(), &problem.labels[..]);
    let (inputs, long) = (&problem.inputs[..], vec![0.0; 24]);
    assert_eq!(refused(&good[..3], inputs, labels), ModelError::ParameterCount { expected: 4, found: 3 });
    let mut short = good.clone();
    short[2] = &good[2][..17];
    let error = ModelError::ParameterLength { parameter: "fc2.weight".into(), expected: 18, found: 17 };
    assert_eq!(refused(&short, inputs, labels), error);
    assert_eq!(
        refused(&good, &inputs[1..], labels),
        ModelError::InputLength { labels: 5, expected: 20, found: 19 }
    );
    assert_eq!(refused(&good, &long, &[0; 6]), ModelError::TooManyExamples { examples: 6, max_examples: 5 });
    for label in [3, u32::MAX] {
        let error = refused(&good, inputs, &[0, 1, 2, label, 0]);
        assert_eq!(error, ModelError::Label { example: 3, label, classes: 3 });
    }
}

#[test]
fn impossible_models_are_refused() {
    let mlp = |inputs, hidden: &[usize], classes| ModelSpec::Mlp { inputs, hidden: hidden.to_vec(), classes };
    assert_eq!(
        mlp(4, &[3, 0], 2).parameters().unwrap_err(),
        ModelError::EmptyLayer { layer: 2, inputs: 3, outputs: 0 }
    );
    assert!(matches!(mlp(usize::MAX, &[], 2).parameters().unwrap_err(), ModelError::Shape { .. }));
    assert!(matches!(
        mlp(1, &[1; 1024], 2).parameters().unwrap_err(),
        ModelError::TooManyLayers { layers: 1025 }
    ));
    for max_examples in [usize::MAX, usize::MAX / 64, 1 << 52] {
        let error = mlp(4, &[3], 2).build(max_examples).map(|_| ()).unwrap_err();
        assert_eq!(error, ModelError::TooLarge { max_examples });
    }
}

#[test]
fn specs_read_as_jobs_write_them() {
    let spec: ModelSpec =
        serde_json::from_str(r#"{"mlp":{"inputs":784,"hidden":[512,512],"classes":10}}"#).unwrap();
    assert_eq!(spec, ModelSpec::Mlp { inputs: 784, hidden: vec![512, 512], classes: 10 });
    assert_eq!((spec.input_elements(), spec.classes()), (784, 10));
    assert!(
        serde_json::from_str::<ModelSpec>(r#"{"mlp":{"inputs":1,"hidden":[],"classes":2,"x":1}}"#).is_err()
    );
}

/// The written arithmetic as a number: a few steps of training must give these bits on every machine. If they change
/// by intent, so must the fingerprint.
#[test]
fn arithmetic_is_what_the_fingerprint_says() {
    let mut problem = Problem::new(&[23, 40, 17, 10], 50, 77);
    let mut optimizer = OptimizerSpec::shipped("adamw").unwrap().compile().unwrap();
    let schedule = Schedule::Cosine { warmup_steps: 2, final_fraction: 0.1 };
    let mut states: Vec<Vec<Vec<f32>>> =
        problem.parameters.iter().map(|p| vec![vec![0.0; p.len()]; 2]).collect();
    for step in 0..6 {
        let (_, gradients) = problem.gradients(50);
        for ((values, mut slice), state) in problem.parameters.iter_mut().zip(gradients).zip(&mut states) {
            let learning_rate = 0.01 * schedule.factor(step, 6);
            let inputs = StepInputs { step: step + 1, learning_rate, divisor: 50.0 };
            let of = Slice { weights: values, gradient_to_weights: &mut slice, state };
            optimizer.update(inputs, of, &mut []).unwrap();
            *values = slice;
        }
    }
    let words = problem.parameters.iter().flatten().map(|value| u64::from(value.to_bits()));
    let hash =
        words.fold(0xcbf2_9ce4_8422_2325u64, |hash, word| (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3));
    assert_eq!(
        (testudo_kernels::fingerprint().as_str(), format!("{hash:016x}").as_str()),
        ("testudo-arithmetic 1; f32 fma ascending; cpu", "7ad6570379680cfe")
    );
}

/// Specs travel in a compact binary form too, which cannot carry names.
#[test]
fn specs_survive_a_compact_form() {
    let parameter = ModelSpec::Mlp { inputs: 3, hidden: vec![2], classes: 2 }.parameters().unwrap().remove(0);
    let value = (
        ModelSpec::Mlp { inputs: 784, hidden: vec![512], classes: 10 },
        OptimizerSpec::shipped("adamw").unwrap().with("beta2", 0.99),
        Schedule::Cosine { warmup_steps: 5, final_fraction: 0.1 },
        (parameter, DType::F32, Codec::F32),
    );
    let bytes = postcard::to_allocvec(&value).unwrap();
    assert_eq!(
        postcard::from_bytes::<(ModelSpec, OptimizerSpec, Schedule, (ParameterSpec, DType, Codec))>(&bytes),
        Ok(value)
    );
}

/// Training works: a perceptron learns which of its first inputs is greatest.
#[test]
fn it_learns() {
    let mut problem = Problem::new(&[12, 24, 3], 256, 5);
    let mut optimizer = OptimizerSpec::shipped("momentum").unwrap().compile().unwrap();
    for (input, label) in problem.inputs.chunks(12).zip(&mut problem.labels) {
        *label = (1..3).fold(0, |best, i| if input[i] > input[best] { i } else { best }) as u32;
    }
    let mut states: Vec<Vec<Vec<f32>>> =
        problem.parameters.iter().map(|p| vec![vec![0.0; p.len()]]).collect();
    let (before, _) = problem.gradients(256);
    for step in 1..=200 {
        let (_, gradients) = problem.gradients(256);
        for ((values, mut slice), state) in problem.parameters.iter_mut().zip(gradients).zip(&mut states) {
            let inputs = StepInputs { step, learning_rate: 0.1, divisor: 256.0 };
            let of = Slice { weights: values, gradient_to_weights: &mut slice, state };
            optimizer.update(inputs, of, &mut []).unwrap();
            *values = slice;
        }
    }
    let (after, _) = problem.gradients(256);
    assert!(after.loss_sum < 0.1 * before.loss_sum && after.correct > 245, "{before:?} {after:?}");
}

//! Whole models, and training with one.

use super::super::programs::Pair;
use super::{assert_bits, hash, numbers};
use crate::cuda::{Buffer, Device, DeviceModel, DeviceSlice};
use crate::layers::Norm;
use crate::model::{Batch, GptSpec, Model, ModelSpec, Place};
use crate::optimizer::{Slice, StepInputs};

fn values(model: &dyn Model) -> Vec<Vec<f32>> {
    let of = |(index, spec): (usize, &crate::ParameterSpec)| {
        let mut values = vec![0.0; spec.shape.elements()];
        spec.initialize(3, 0, &mut values);
        // Those that begin at zero or one, biases and norms, are not to hide what they do.
        let beside = numbers(values.len(), 900 + index as u64);
        values.iter_mut().zip(beside).for_each(|(value, beside)| *value += beside.abs() * 0.05);
        values
    };
    model.parameters().iter().enumerate().map(of).collect()
}

/// Everything that a model can be asked, on a device and on the CPU: gradients in the order of their coming, losses, evaluations and
/// probabilities, of batches as large as there is room and smaller, one after another.
fn compare<D: Device + 'static>(device: D, spec: &ModelSpec, sizes: &[usize]) {
    let most = sizes.iter().copied().max().unwrap();
    let mut on_cpu = spec.build(most).unwrap();
    let mut on_device = DeviceModel::new(device, spec, most).unwrap();
    assert_eq!(on_device.parameters(), on_cpu.parameters());
    let owned = values(on_cpu.as_ref());
    let parameters: Vec<&[f32]> = owned.iter().map(Vec::as_slice).collect();
    let tokens = matches!(spec, ModelSpec::Gpt(_));
    for (round, examples) in sizes.iter().copied().enumerate() {
        let mut inputs = numbers(examples * spec.input_elements(), 40 + round as u64);
        let class = |at: u64| hash(at << 9 | round as u64) as u32 % spec.classes() as u32;
        if tokens {
            inputs.iter_mut().zip(0..).for_each(|(token, at)| *token = class(at + 7) as f32);
        }
        let labels: Vec<u32> = (0..(examples * spec.targets()) as u64).map(class).collect();
        let place = Place { seed: 5, step: round as u64, first: 3 };
        let batch = Batch { inputs: &inputs, labels: &labels, place };
        let run = |model: &mut dyn Model| {
            let mut gradients = Vec::new();
            let loss = model
                .gradients(&parameters, batch, &mut |at, sum| gradients.push((at, sum.to_vec())))
                .unwrap();
            let evaluated = model.evaluate(&parameters, batch).unwrap();
            let mut probabilities = vec![0.0; examples * spec.classes()];
            model.probabilities(&parameters, &inputs, &mut probabilities).unwrap();
            (loss, gradients, evaluated, probabilities)
        };
        let (loss, gradients, evaluated, probabilities) = run(on_cpu.as_mut());
        let found = run(&mut on_device);
        let what = format!("{spec:?}, {examples} examples");
        let order = |of: &[(usize, Vec<f32>)]| of.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        assert_eq!(order(&found.1), order(&gradients), "{what}");
        for ((at, found), (_, expected)) in found.1.iter().zip(&gradients) {
            assert_bits(found, expected, &format!("gradient {at} of {what}"));
        }
        assert_eq!((found.0.loss_sum.to_bits(), found.0), (loss.loss_sum.to_bits(), loss), "{what}");
        let bits = evaluated.loss_sum.to_bits();
        assert_eq!((found.2.loss_sum.to_bits(), found.2), (bits, evaluated), "{what}");
        assert_bits(&found.3, &probabilities, &what);
    }
    if tokens {
        let context = spec.input_elements();
        for length in [1, context / 2, context] {
            let tokens: Vec<f32> = (0..length as u64).map(|at| (hash(at) % 5) as f32).collect();
            let (mut expected, mut found) = (vec![0.0; spec.classes()], vec![0.0; spec.classes()]);
            on_cpu.follow(&parameters, &tokens, &mut expected).unwrap();
            on_device.follow(&parameters, &tokens, &mut found).unwrap();
            assert_bits(&found, &expected, "what follows");
        }
    }
}

/// Gradients by a device whose products are a library's: within the part `most` of the CPU's, and others where they must be.
pub(in crate::cuda::tests) fn products<D: Device + 'static>(device: D, most: f32, differ: bool) {
    let spec = ModelSpec::Mlp { inputs: 37, hidden: vec![50, 20], classes: 10 };
    let examples = 33;
    let mut on_cpu = spec.build(examples).unwrap();
    let mut on_device = DeviceModel::new(device, &spec, examples).unwrap();
    let owned = values(on_cpu.as_ref());
    let parameters: Vec<&[f32]> = owned.iter().map(Vec::as_slice).collect();
    let inputs = numbers(examples * 37, 4);
    let labels: Vec<u32> = (0..examples as u32).map(|example| example % 10).collect();
    let run = |model: &mut dyn Model| {
        let mut gradients = Vec::new();
        let batch = Batch::new(&inputs, &labels);
        model.gradients(&parameters, batch, &mut |_, sum| gradients.extend_from_slice(sum)).unwrap();
        gradients
    };
    let (expected, found) = (run(on_cpu.as_mut()), run(&mut on_device));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    let apart = norm(&mut expected.iter().zip(&found).map(|(expected, found)| expected - found));
    let whole = norm(&mut expected.iter().copied());
    assert!(apart < most * whole && (apart > 0.0 || !differ), "{apart} of {whole}");
}

/// A model of every kind.
pub(in crate::cuda::tests) fn specs() -> Vec<ModelSpec> {
    ["mlp", "cnn", "gpt", "resnet18"].into_iter().flat_map(|kind| of_kind(kind).0).collect()
}

/// The models that a job may name, by what they are called there; `device` makes a device for each.
pub(in crate::cuda::tests) fn models<D: Device + 'static>(kind: &str, mut device: impl FnMut() -> D) {
    let (specs, sizes) = of_kind(kind);
    for spec in specs {
        compare(device(), &spec, sizes);
    }
}

/// Models of a kind, and the batches that they are asked for.
fn of_kind(kind: &str) -> (Vec<ModelSpec>, &'static [usize]) {
    let gpt = |norm, dropout, attention_dropout| {
        ModelSpec::Gpt(GptSpec {
            vocabulary: 17,
            context: 9,
            layers: 2,
            heads: 2,
            width: 8,
            dropout,
            attention_dropout,
            norm,
        })
    };
    match kind {
        "mlp" => (
            vec![
                ModelSpec::Mlp { inputs: 37, hidden: vec![70, 20], classes: 10 },
                ModelSpec::Mlp { inputs: 5, hidden: vec![], classes: 3 },
            ],
            &[33, 7, 33],
        ),
        "cnn" => (
            vec![
                ModelSpec::Cnn { image: [1, 8, 7], classes: 10, label_smoothing: 0.0 },
                ModelSpec::Cnn { image: [3, 7, 6], classes: 4, label_smoothing: 0.1 },
            ],
            &[5, 3],
        ),
        "gpt" => (vec![gpt(Norm::Layer, 0.2, 0.3), gpt(Norm::Rms, 0.0, 0.0)], &[3, 2]),
        _ => (vec![ModelSpec::ResNet18 { image: [3, 4, 3], classes: 5, label_smoothing: 0.1 }], &[3, 2]),
    }
}

/// A few steps of training: a perceptron's gradients, then Adam, all of it on devices, against the same on the CPU.
pub(in crate::cuda::tests) fn training<D: Device + 'static>(mut device: impl FnMut() -> D, adam: &mut Pair) {
    let (features, classes, examples) = (37, 10, 33);
    let spec = ModelSpec::Mlp { inputs: features, hidden: vec![70, 20], classes };
    let mut model = spec.build(examples).unwrap();
    let mut on_device = DeviceModel::new(device(), &spec, examples).unwrap();
    let device = &mut device();
    let mut weights = values(model.as_ref());
    let mut of_weights: Vec<_> =
        weights.iter().map(|values| Buffer::of(device, "parameter", values).unwrap()).collect();
    let mut states: Vec<Vec<Vec<f32>>> =
        weights.iter().map(|weights| vec![vec![0.0; weights.len()]; 2]).collect();
    let mut of_states: Vec<Vec<_>> = states
        .iter()
        .map(|tensors| tensors.iter().map(|state| Buffer::of(device, "state", state).unwrap()).collect())
        .collect();
    for step in 1..=3 {
        let inputs = numbers(examples * features, 50 + step);
        let labels: Vec<u32> =
            (0..examples as u64).map(|e| hash(step << 8 | e) as u32 % classes as u32).collect();
        let mut gradients = vec![Vec::new(); weights.len()];
        let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let batch = Batch::new(&inputs, &labels);
        let expected = model.gradients(&views, batch, &mut |at, sum| gradients[at] = sum.to_vec()).unwrap();
        let mut found = vec![Vec::new(); weights.len()];
        // From what the other device made of them.
        let made: Vec<Vec<f32>> = of_weights.iter().map(|tensor| tensor.to_vec(device).unwrap()).collect();
        let made: Vec<&[f32]> = made.iter().map(Vec::as_slice).collect();
        let loss = on_device.gradients(&made, batch, &mut |at, sum| found[at] = sum.to_vec()).unwrap();
        assert_eq!((loss.loss_sum.to_bits(), loss), (expected.loss_sum.to_bits(), expected));
        let inputs = StepInputs { step, learning_rate: 0.01, divisor: examples as f32 };
        for at in 0..weights.len() {
            assert_bits(&found[at], &gradients[at], &format!("gradient {at} in step {step}"));
            let slice = Slice {
                weights: &weights[at],
                gradient_to_weights: &mut gradients[at],
                state: &mut states[at],
            };
            adam.host.update(inputs, slice, &mut []).unwrap();
            weights[at] = gradients[at].clone();
            let mut out = Buffer::of(device, "gradient", &found[at]).unwrap();
            let slice = DeviceSlice {
                weights: &of_weights[at],
                gradient_to_weights: &mut out,
                state: &mut of_states[at],
            };
            adam.device.update(device, inputs, slice, &mut []).unwrap();
            of_weights[at] = out;
            let after = of_weights[at].to_vec(device).unwrap();
            assert_bits(&after, &weights[at], &format!("parameter {at} after step {step}"));
        }
    }
}

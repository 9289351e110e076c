//! Networks for images: agreement with PyTorch on small problems, gradients against finite differences of a plain `f64`
//! computation, and the `Model` contract.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use serde_json::Value;
use testudo_kernels::{Batch, Initial, Loss, Model, ModelError, ModelSpec, Precision, Update};

/// Element `i` of tensor `index` of what `fixtures/generate.py` calls a pattern.
fn pattern(count: usize, index: usize, bound: f64, middle: f64) -> Vec<f32> {
    let number = |i: usize| ((i * 7919 + index * 104_729) % 2001) as f64 - 1000.0;
    (0..count).map(|i| (middle + number(i) / 1000.0 * bound) as f32).collect()
}

struct Problem {
    spec: ModelSpec,
    parameters: Vec<Vec<f32>>,
    inputs: Vec<f32>,
    labels: Vec<u32>,
}

impl Problem {
    fn new(spec: ModelSpec, examples: usize) -> Self {
        let classes = spec.classes();
        let parameters = (spec.parameters().unwrap().iter().enumerate())
            .map(|(index, parameter)| {
                let dims = parameter.shape.dims();
                let fan_in: usize = dims.iter().skip(1).product();
                let bound = if dims.len() > 1 { 1.5 / (fan_in as f64).sqrt() } else { 0.3 };
                let middle = if parameter.initial == Initial::Ones { 1.0 } else { 0.0 };
                pattern(parameter.shape.elements(), index, bound, middle)
            })
            .collect();
        let inputs = pattern(examples * spec.input_elements(), 1000, 1.0, 0.0);
        let labels = (0..examples).map(|example| (example * 7 % classes) as u32).collect();
        Self { spec, parameters, inputs, labels }
    }

    fn slices(&self) -> Vec<&[f32]> {
        self.parameters.iter().map(Vec::as_slice).collect()
    }

    fn batch(&self) -> Batch<'_> {
        Batch::new(&self.inputs, &self.labels)
    }

    fn gradients(&self, model: &mut dyn Model) -> (Loss, Vec<Vec<f32>>) {
        let mut gradients = vec![Vec::new(); self.parameters.len()];
        let loss =
            model.gradients(&self.slices(), self.batch(), &mut |i, g| gradients[i] = g.to_vec()).unwrap();
        (loss, gradients)
    }
}

fn spec(kind: &str, image: [usize; 3], classes: usize) -> ModelSpec {
    match kind {
        "cnn" => ModelSpec::Cnn { image, classes, label_smoothing: 0.0 },
        "resnet18" => ModelSpec::ResNet18 { image, classes, label_smoothing: 0.0 },
        other => panic!("no {other}"),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn networks_agree_with_pytorch() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("fixtures/images.json")).unwrap();
    for case in cases {
        let image: Vec<usize> = numbers(&case["image"]).into_iter().map(|side| side as usize).collect();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let mut spec = spec(case["kind"].as_str().unwrap(), image.try_into().unwrap(), size("classes"));
        if let ModelSpec::Cnn { label_smoothing, .. } | ModelSpec::ResNet18 { label_smoothing, .. } =
            &mut spec
        {
            *label_smoothing = case["label_smoothing"].as_f64().unwrap() as f32;
        }
        let problem = Problem::new(spec.clone(), size("examples"));
        let specs = spec.parameters().unwrap();
        let [names, shapes, expected] =
            ["names", "shapes", "gradients"].map(|key| case[key].as_array().unwrap());
        assert_eq!([names.len(), shapes.len(), expected.len()], [specs.len(); 3]);
        for (parameter, shape) in specs.iter().zip(shapes) {
            let shape: Vec<usize> = numbers(shape).into_iter().map(|side| side as usize).collect();
            assert_eq!(parameter.shape.dims(), shape, "{}", parameter.name);
        }
        // PyTorch numbers the layers of a `Sequential`.
        if matches!(spec, ModelSpec::ResNet18 { .. }) {
            let found: Vec<&str> = specs.iter().map(|parameter| parameter.name.as_str()).collect();
            assert_eq!(found, names.iter().map(|name| name.as_str().unwrap()).collect::<Vec<_>>());
        }
        let mut model = spec.build(64).unwrap();
        let evaluated = model.evaluate(&problem.slices(), problem.batch()).unwrap();
        let (loss, gradients) = problem.gradients(model.as_mut());
        for (found, key) in [(loss, "loss_sum"), (evaluated, "evaluated_loss_sum")] {
            let expected = case[key].as_f64().unwrap();
            assert!((found.loss_sum / expected - 1.0).abs() < 1e-5, "{} against {expected}", found.loss_sum);
        }
        assert_eq!(u64::from(loss.correct), case["correct"].as_u64().unwrap());
        for ((parameter, gradient), expected) in specs.iter().zip(&gradients).zip(expected) {
            let (expected, step) = (numbers(expected), (gradient.len() / size("samples")).max(1));
            let found: Vec<f32> = gradient.iter().step_by(step).copied().collect();
            assert_eq!(found.len(), expected.len());
            let scale = expected.iter().fold(0f64, |scale, value| scale.max(value.abs()));
            for (element, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(*found) - expected).abs() <= 5e-5 * scale,
                    "{spec:?} {}[{element}]: {found} against {expected}, of {scale}",
                    parameter.name
                );
            }
        }
        // Afterwards as before: nothing of training is left in the model.
        assert_eq!(model.evaluate(&problem.slices(), problem.batch()).unwrap(), evaluated);
    }
}

/// An image of channels x height x width, in plain `f64`.
#[derive(Clone)]
struct Plane {
    sizes: [usize; 3],
    values: Vec<f64>,
}

impl Plane {
    fn at(&self, channel: usize, y: usize, x: usize) -> f64 {
        self.values[(channel * self.sizes[1] + y) * self.sizes[2] + x]
    }

    fn convolve(&self, w: &[f64], b: &[f64], kernel: usize) -> Plane {
        let [channels, height, width] = self.sizes;
        let sizes = [b.len(), height + 1 - kernel, width + 1 - kernel];
        let mut values = Vec::new();
        for (o, b) in b.iter().enumerate() {
            for (y, x) in (0..sizes[1]).flat_map(|y| (0..sizes[2]).map(move |x| (y, x))) {
                let mut sum = *b;
                for (c, (ky, kx)) in (0..channels)
                    .flat_map(|c| (0..kernel).flat_map(move |ky| (0..kernel).map(move |kx| (c, (ky, kx)))))
                {
                    sum += w[((o * channels + c) * kernel + ky) * kernel + kx] * self.at(c, y + ky, x + kx);
                }
                values.push(sum);
            }
        }
        Plane { sizes, values }
    }

    fn pool(&self) -> Plane {
        let [channels, height, width] = self.sizes;
        let sizes = [channels, height / 2, width / 2];
        let mut values = Vec::new();
        for (c, y, x) in
            (0..channels).flat_map(|c| (0..sizes[1]).flat_map(move |y| (0..sizes[2]).map(move |x| (c, y, x))))
        {
            let taps = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| self.at(c, 2 * y + i, 2 * x + j));
            values.push(taps.into_iter().fold(f64::NEG_INFINITY, f64::max));
        }
        Plane { sizes, values }
    }

    fn rectify(mut self) -> Plane {
        self.values.iter_mut().for_each(|value| *value = value.max(0.0));
        self
    }
}

fn linear(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    b.iter()
        .zip(w.chunks(x.len()))
        .map(|(b, w)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b)
        .collect()
}

fn cross_entropy(logits: &[f64], label: u32) -> f64 {
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter().map(|x| (x - greatest).exp()).sum::<f64>().ln() + greatest - logits[label as usize]
}

/// The loss sum of the convolutional network in plain `f64`.
fn cnn_loss(problem: &Problem, parameters: &[Vec<f64>]) -> f64 {
    let ModelSpec::Cnn { image, .. } = problem.spec else { panic!("a convolutional network") };
    let [w1, b1, w2, b2, w3, b3, w4, b4] = parameters else { panic!("eight parameters") };
    let mut loss = 0.0;
    for (input, &label) in problem.inputs.chunks(problem.spec.input_elements()).zip(&problem.labels) {
        let plane = Plane { sizes: image, values: input.iter().copied().map(f64::from).collect() };
        let pooled = plane.convolve(w1, b1, 3).rectify().convolve(w2, b2, 3).rectify().pool();
        let hidden: Vec<f64> = linear(&pooled.values, w3, b3).into_iter().map(|x| x.max(0.0)).collect();
        loss += cross_entropy(&linear(&hidden, w4, b4), label);
    }
    loss
}

/// A few elements of each parameter, skipping those so near a kink that the two one-sided differences disagree.
fn check_slopes(problem: &Problem, loss: impl Fn(&[Vec<f64>]) -> f64) {
    let (found_loss, gradients) = problem.gradients(problem.spec.build(16).unwrap().as_mut());
    let mut parameters: Vec<Vec<f64>> =
        problem.parameters.iter().map(|values| values.iter().copied().map(f64::from).collect()).collect();
    let here = loss(&parameters);
    assert!((found_loss.loss_sum / here - 1.0).abs() < 1e-6, "{} against {here}", found_loss.loss_sum);
    let (mut checked, mut skipped) = (0, 0);
    for (index, gradient) in gradients.iter().enumerate() {
        let greatest = gradient.iter().fold(0f64, |greatest, value| greatest.max(f64::from(value.abs())));
        for element in [0, 1, gradient.len() / 3, gradient.len() / 2, gradient.len() - 1] {
            let element = element.min(gradient.len() - 1);
            let step = 1e-6;
            let mut moved = |by: f64| {
                parameters[index][element] += by;
                let loss = loss(&parameters);
                parameters[index][element] -= by;
                loss
            };
            let (up, down) = (moved(step) - here, here - moved(-step));
            let slope = (up + down) / (2.0 * step);
            if (up - down).abs() > 1e-4 * step * (1.0 + slope.abs()) + 1e-11 * here {
                skipped += 1;
                continue;
            }
            checked += 1;
            let found = f64::from(gradient[element]);
            assert!(
                (found - slope).abs() < 2e-5 * (greatest + slope.abs()) + 1e-7 * here,
                "{index}[{element}]: {found} against {slope}"
            );
        }
    }
    assert!(checked > 3 * skipped, "{checked} checked, {skipped} skipped");
}

#[test]
fn cnn_gradients_match_finite_differences() {
    for (image, classes, examples) in [([1, 6, 6], 3, 3), ([2, 9, 7], 4, 2)] {
        let problem = Problem::new(spec("cnn", image, classes), examples);
        check_slopes(&problem, |parameters| cnn_loss(&problem, parameters));
    }
}

fn bits(gradients: &[Vec<f32>]) -> Vec<Vec<u32>> {
    gradients.iter().map(|gradient| gradient.iter().map(|value| value.to_bits()).collect()).collect()
}

/// Invariants 2 and 3 of `model`: bits depend on the batch alone, not on room or earlier calls; gradients come once, last
/// layer first.
#[test]
fn bits_depend_on_the_batch_alone_and_come_in_order() {
    for (kind, image) in [("cnn", [3, 8, 9]), ("resnet18", [2, 4, 3])] {
        let problem = Problem::new(spec(kind, image, 6), 19);
        let (loss, gradients) = problem.gradients(problem.spec.build(19).unwrap().as_mut());
        let mut model = problem.spec.build(64).unwrap();
        // Leaves garbage, NaN included, in every buffer.
        let wild = Problem {
            inputs: vec![f32::NAN; 64 * problem.spec.input_elements()],
            labels: vec![1; 64],
            ..Problem::new(problem.spec.clone(), 0)
        };
        wild.gradients(model.as_mut());
        let (other_loss, other) = problem.gradients(model.as_mut());
        assert_eq!((other_loss, bits(&other)), (loss, bits(&gradients)), "{kind}");
        let mut order = Vec::new();
        model.gradients(&problem.slices(), problem.batch(), &mut |index, _| order.push(index)).unwrap();
        let specs = model.parameters();
        // A layer's weight and bias come in whatever order, layers from the last.
        let layer = |index: &usize| specs[*index].name.rsplit_once('.').unwrap().0.to_owned();
        let mut layers: Vec<String> = order.iter().map(layer).collect();
        layers.dedup();
        let mut backwards: Vec<String> = (0..specs.len()).rev().map(|index| layer(&index)).collect();
        backwards.dedup();
        assert_eq!(layers, backwards, "{kind}");
        order.sort_unstable();
        assert_eq!(order, (0..specs.len()).collect::<Vec<_>>(), "{kind}");
        assert_eq!(problem.spec.parameters().unwrap(), model.parameters());
    }
}

/// Each example's probabilities are its own, whoever stands beside it, and those that its loss is of.
#[test]
fn probabilities_are_each_examples_own() {
    for (kind, image) in [("cnn", [2, 7, 8]), ("resnet18", [1, 3, 5])] {
        let problem = Problem::new(spec(kind, image, 5), 18);
        let (features, classes) = (problem.spec.input_elements(), 5);
        let mut model = problem.spec.build(18).unwrap();
        let mut found = vec![f32::NAN; 18 * classes];
        model.probabilities(&problem.slices(), &problem.inputs, &mut found).unwrap();
        for (e, row) in found.chunks(classes).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let input = &problem.inputs[e * features..][..features];
            let mut alone = vec![f32::NAN; classes];
            model.probabilities(&problem.slices(), input, &mut alone).unwrap();
            assert_eq!(bits(&[alone]), bits(&[row.to_vec()]), "{kind} {e}");
            let loss = model.evaluate(&problem.slices(), Batch::new(input, &problem.labels[e..=e])).unwrap();
            let probability = f64::from(row[problem.labels[e] as usize]);
            assert!((loss.loss_sum + probability.ln()).abs() < 1e-5);
        }
    }
}

#[test]
fn images_that_fit_no_network_are_refused() {
    for image in [[0, 28, 28], [1, 5, 28], [1, 28, 5], [1, 28, 1 << 15], [1 << 40, 1 << 13, 1 << 13]] {
        let spec = spec("cnn", image, 10);
        let error = spec.parameters().unwrap_err();
        assert!(matches!(error, ModelError::Image { .. } | ModelError::Shape { .. }), "{error}");
        assert_eq!(spec.build(1).err(), Some(error.clone()));
        assert_eq!(spec.buffer_elements(Precision::Bf16, 1), Err(error));
    }
    for label_smoothing in [-0.1, 1.0, f32::NAN] {
        let spec = ModelSpec::ResNet18 { image: [1, 8, 8], classes: 2, label_smoothing };
        assert!(matches!(spec.parameters(), Err(ModelError::Smoothing { .. })));
        assert!(matches!(spec.build(1), Err(ModelError::Smoothing { .. })));
    }
    assert!(matches!(spec("cnn", [1, 28, 28], 0).parameters(), Err(ModelError::EmptyLayer { .. })));
    let model = spec("cnn", [1, 1 << 14, 1 << 14], 10);
    assert!(matches!(model.build(usize::MAX), Err(ModelError::TooLarge { .. })));
}

/// A shard without examples has no gradient, and no part in the running statistics.
#[test]
fn an_empty_shard_gives_zeros() {
    for kind in ["cnn", "resnet18"] {
        let problem = Problem::new(spec(kind, [1, 6, 6], 3), 0);
        let (loss, gradients) = problem.gradients(problem.spec.build(4).unwrap().as_mut());
        assert_eq!(loss, Loss::default());
        assert!(gradients.iter().flatten().all(|value| *value == 0.0), "{kind}");
    }
}

/// What is averaged: batch norm's statistics, and nothing else.
#[test]
fn running_statistics_are_averaged_and_all_else_is_learnt() {
    for parameter in spec("resnet18", [3, 32, 32], 10).parameters().unwrap() {
        let running = parameter.name.contains(".running_");
        let averaged = matches!(parameter.update, Update::Average { momentum } if momentum == 0.1);
        assert_eq!(running, averaged, "{}", parameter.name);
    }
}

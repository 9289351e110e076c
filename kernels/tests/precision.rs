//! Mixed precision: the definition of a pass under bf16, how near it is to f32, and what it learns.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use testudo_kernels::optimizer::{Slice, StepInputs};
use testudo_kernels::{
    Batch, GptSpec, Loss, Model, ModelSpec, Norm, OptimizerSpec, Philox, Place, Precision, Purpose,
};

/// The nearest bfloat16, ties to even, found by comparing distances.
fn nearest(value: f32) -> f32 {
    let low = value.to_bits() & 0xffff_0000;
    let [low, high] = [low, low + 0x1_0000].map(f32::from_bits);
    let [below, above] = [low, high].map(|other| (f64::from(value) - f64::from(other)).abs());
    let low_is_even = low.to_bits() & 0x1_0000 == 0;
    if below < above || (below == above && low_is_even) { low } else { high }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let stream = Philox::new(seed, Purpose::Noise, 0, 0);
    (0..count.div_ceil(4)).flat_map(|block| stream.normal(block as u32)).take(count).collect()
}

fn initial(spec: &ModelSpec, seed: u64) -> Vec<Vec<f32>> {
    let draw = |parameter: &testudo_kernels::ParameterSpec| {
        let mut values = vec![0.0; parameter.shape.elements()];
        parameter.initialize(seed, 0, &mut values);
        values
    };
    spec.parameters().unwrap().iter().map(draw).collect()
}

fn slices(values: &[Vec<f32>]) -> Vec<&[f32]> {
    values.iter().map(Vec::as_slice).collect()
}

fn gradients(model: &mut dyn Model, parameters: &[Vec<f32>], batch: Batch<'_>) -> (Loss, Vec<Vec<f32>>) {
    let mut gradients = vec![Vec::new(); parameters.len()];
    let ready = &mut |index: usize, gradient: &[f32]| gradients[index] = gradient.to_vec();
    let loss = model.gradients(&slices(parameters), batch, ready).unwrap();
    (loss, gradients)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Invariants 1 to 3 of `precision`: a perceptron's gradients of one example, bit for bit.
#[test]
fn a_perceptrons_pass_is_its_definition() {
    let (inputs, hidden, classes) = (19, 13, 7);
    let spec = ModelSpec::Mlp { inputs, hidden: vec![hidden], classes };
    for seed in 0..20 {
        let shapes = [inputs * hidden, hidden, hidden * classes, classes];
        let parameters: Vec<Vec<f32>> =
            shapes.iter().zip(1..).map(|(count, i)| numbers(*count, 10 * seed + i)).collect();
        let (x, label) = (numbers(inputs, 10 * seed), (seed % 7) as u32);
        let mut model = spec.build_in(Precision::Bf16, 3).unwrap();
        let mut likely = vec![0.0; classes];
        model.probabilities(&slices(&parameters), &x, &mut likely).unwrap();
        let (_, found) = gradients(model.as_mut(), &parameters, Batch::new(&x, &[label]));

        let [w1, b1, w2, b2] = &parameters[..] else { panic!("four parameters") };
        let round = |values: &[f32]| values.iter().copied().map(nearest).collect::<Vec<f32>>();
        let (x, w1, w2) = (round(&x), round(w1), round(w2));
        let chain = |start: f32, terms: &mut dyn Iterator<Item = (f32, f32)>| {
            terms.fold(start, |sum, (a, b)| a.mul_add(b, sum))
        };
        let h: Vec<f32> = (0..hidden)
            .map(|o| chain(b1[o], &mut (0..inputs).map(|k| (w1[o * inputs + k], x[k]))))
            .map(|y| nearest(y.max(0.0)))
            .collect();
        let logits: Vec<f64> = (0..classes)
            .map(|o| f64::from(chain(b2[o], &mut (0..hidden).map(|k| (w2[o * hidden + k], h[k])))))
            .collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        for (likely, logit) in likely.iter().zip(&logits) {
            assert!((f64::from(*likely) - logit.exp() / sum).abs() < 1e-6);
        }
        let dy: Vec<f32> = likely
            .iter()
            .enumerate()
            .map(|(class, p)| nearest(if class == label as usize { p - 1.0 } else { *p }))
            .collect();
        let dh: Vec<f32> = (0..hidden)
            .map(|i| chain(0.0, &mut (0..classes).map(|k| (w2[k * hidden + i], dy[k]))))
            .zip(&h)
            .map(|(dh, h)| if *h > 0.0 { nearest(dh) } else { 0.0 })
            .collect();
        let outer = |dy: &[f32], x: &[f32]| {
            dy.iter().flat_map(|dy| x.iter().map(move |x| dy.mul_add(*x, 0.0))).collect::<Vec<f32>>()
        };
        for (found, expected) in found.iter().zip([outer(&dh, &x), dh.clone(), outer(&dy, &h), dy.clone()]) {
            assert_eq!(bits(found), bits(&expected), "{seed}");
        }
    }
}

fn networks() -> Vec<(ModelSpec, usize)> {
    let gpt = GptSpec {
        vocabulary: 23,
        context: 20,
        layers: 2,
        heads: 2,
        width: 24,
        dropout: 0.1,
        attention_dropout: 0.1,
        norm: Norm::Layer,
    };
    vec![
        (ModelSpec::Mlp { inputs: 40, hidden: vec![50, 30], classes: 10 }, 32),
        (ModelSpec::Cnn { image: [2, 10, 9], classes: 10, label_smoothing: 0.1 }, 19),
        (ModelSpec::ResNet18 { image: [3, 8, 8], classes: 10, label_smoothing: 0.0 }, 16),
        (ModelSpec::Gpt(gpt), 4),
    ]
}

fn batch_of(spec: &ModelSpec, examples: usize) -> (Vec<f32>, Vec<u32>) {
    let (inputs, classes) = (spec.input_elements() * examples, spec.classes());
    let inputs = match spec {
        ModelSpec::Gpt(_) => (0..inputs).map(|i| ((i * i + 3 * i) % classes) as f32).collect(),
        _ => numbers(inputs, 3),
    };
    (inputs, (0..examples * spec.targets()).map(|i| (i * 7 % classes) as u32).collect())
}

/// Every network's gradients against those of f32, which finite differences and PyTorch have confirmed. bf16 has 8 bits: what is
/// smooth agrees to a few parts in a hundred. A ReLU whose input is nearly zero may come out on its other side, and a share p of
/// them that do is an error of the square root of p.
#[test]
fn gradients_are_near_those_of_f32() {
    for (spec, examples) in networks() {
        let (inputs, labels) = batch_of(&spec, examples);
        let batch = Batch { inputs: &inputs, labels: &labels, place: Place { seed: 1, step: 2, first: 3 } };
        let parameters = initial(&spec, 4);
        let [(whole_loss, whole), (loss, rounded)] = [Precision::F32, Precision::Bf16].map(|precision| {
            gradients(spec.build_in(precision, examples + 5).unwrap().as_mut(), &parameters, batch)
        });
        assert!((loss.loss_sum / whole_loss.loss_sum - 1.0).abs() < 5e-3, "{loss:?}, not {whole_loss:?}");
        let mut all = [0.0; 2];
        for ((parameter, whole), rounded) in spec.parameters().unwrap().iter().zip(&whole).zip(&rounded) {
            assert!(rounded.iter().all(|value| value.is_finite()), "{}", parameter.name);
            for (whole, rounded) in whole.iter().zip(rounded) {
                all[0] += (f64::from(*whole) - f64::from(*rounded)).powi(2);
                all[1] += f64::from(*whole).powi(2);
            }
        }
        let error = (all[0] / all[1]).sqrt();
        let most = if matches!(spec, ModelSpec::Gpt(_)) { 0.03 } else { 0.3 };
        assert!(error > 1e-4 && error < most, "{spec:?}: {error}");
    }
}

/// Invariant 2 of `model` under bf16: not `max_examples`, not what was computed before; and masters that round to the same
/// weights are the same network.
#[test]
fn bits_depend_on_rounded_weights_and_the_batch_alone() {
    for (spec, examples) in networks() {
        let (inputs, labels) = batch_of(&spec, examples);
        let batch = Batch { inputs: &inputs, labels: &labels, place: Place { seed: 1, step: 2, first: 3 } };
        let parameters = initial(&spec, 4);
        let first = gradients(spec.build_in(Precision::Bf16, examples).unwrap().as_mut(), &parameters, batch);
        let mut model = spec.build_in(Precision::Bf16, examples + 30).unwrap();
        let rounded: Vec<Vec<f32>> = spec
            .parameters()
            .unwrap()
            .iter()
            .zip(&parameters)
            .map(|(parameter, values)| match parameter.shape.dims().len() {
                1 => values.clone(),
                _ => values.iter().copied().map(nearest).collect(),
            })
            .collect();
        assert_ne!(rounded, parameters);
        gradients(model.as_mut(), &initial(&spec, 5), batch);
        assert_eq!(gradients(model.as_mut(), &rounded, batch), first, "{spec:?}");
        assert_eq!(gradients(model.as_mut(), &parameters, batch), first, "{spec:?}");
    }
}

/// Where many layers keep activations, they are what a worker's memory goes to, and bf16 needs far less of it, copies of weights
/// included.
#[test]
fn activations_of_deep_networks_take_less_memory() {
    let resnet = ModelSpec::ResNet18 { image: [3, 32, 32], classes: 10, label_smoothing: 0.0 };
    let gpt = ModelSpec::Gpt(GptSpec {
        vocabulary: 256,
        context: 256,
        layers: 6,
        heads: 6,
        width: 384,
        dropout: 0.0,
        attention_dropout: 0.0,
        norm: Norm::Layer,
    });
    for (spec, examples, most) in [(resnet, 64, 0.80), (gpt, 16, 0.85)] {
        let [whole, halves] = [Precision::F32, Precision::Bf16]
            .map(|precision| spec.buffer_elements(precision, examples).unwrap() as f64);
        println!("{}: {halves} of {whole}", halves / whole);
        assert!(halves < most * whole, "{spec:?}: {halves} of {whole}");
    }
}

/// Points around eight centres, which overlap: no network gets all of them right.
fn points(examples: usize, stream: u64) -> (Vec<f32>, Vec<u32>) {
    let centres = numbers(8 * POINT, 1);
    let mut inputs = numbers(examples * POINT, stream);
    let labels: Vec<u32> = (0..examples).map(|example| example as u32 % 8).collect();
    for (point, label) in inputs.chunks_mut(POINT).zip(&labels) {
        let centre = &centres[*label as usize * POINT..][..POINT];
        point.iter_mut().zip(centre).for_each(|(value, centre)| *value = 1.3 * *value + centre);
    }
    (inputs, labels)
}

const POINT: usize = 16;

/// The share of 8,000 new points that a perceptron gets right after 400 steps on f32 masters.
fn learnt(precision: Precision) -> f64 {
    const BATCH: usize = 64;
    let spec = ModelSpec::Mlp { inputs: POINT, hidden: vec![48, 48], classes: 8 };
    let (mut model, mut parameters) = (spec.build_in(precision, BATCH).unwrap(), initial(&spec, 2));
    let mut optimizer = OptimizerSpec::shipped("momentum").unwrap().compile().unwrap();
    let mut velocity: Vec<Vec<Vec<f32>>> = parameters.iter().map(|v| vec![vec![0.0; v.len()]]).collect();
    let (inputs, labels) = points(400 * BATCH, 11);
    for (step, (inputs, labels)) in inputs.chunks(BATCH * POINT).zip(labels.chunks(BATCH)).enumerate() {
        let (_, mut sums) = gradients(model.as_mut(), &parameters, Batch::new(inputs, labels));
        // What an update leaves where the gradient was is the new value.
        for ((weights, sum), state) in parameters.iter_mut().zip(&mut sums).zip(&mut velocity) {
            let inputs = StepInputs { step: step as u64 + 1, learning_rate: 0.02, divisor: BATCH as f32 };
            let slice = Slice { weights: &weights[..], gradient_to_weights: sum, state };
            optimizer.update(inputs, slice, &mut []).unwrap();
            weights.copy_from_slice(sum);
        }
    }
    let (inputs, labels) = points(8000, 12);
    let (mut right, slices) = (0, slices(&parameters));
    for (inputs, labels) in inputs.chunks(BATCH * POINT).zip(labels.chunks(BATCH)) {
        right += model.evaluate(&slices, Batch::new(inputs, labels)).unwrap().correct;
    }
    f64::from(right) / 8000.0
}

#[test]
fn bf16_learns_what_f32_learns() {
    let [whole, rounded] = [Precision::F32, Precision::Bf16].map(learnt);
    assert!(whole > 0.8, "{whole}");
    assert!((whole - rounded).abs() <= 0.002, "{rounded}, not {whole}");
}

//! The GPT held to PyTorch's loss, gradients and probabilities, and to the `Model` contract: bits that depend on the batch
//! alone, dropout that belongs to examples, order of hand-over, typed refusals, and no allocation once it is warm.

#![allow(clippy::panic, clippy::unwrap_used)] // helpers of the tests fail as tests do

use serde_json::Value;
use testudo_kernels::{Batch, GptSpec, Loss, Model, ModelError, ModelSpec, Norm, Place, Precision};

struct Problem {
    spec: GptSpec,
    parameters: Vec<Vec<f32>>,
    inputs: Vec<f32>,
    labels: Vec<u32>,
}

/// One of gradients or parameters, by index.
type Values = Vec<Vec<f32>>;

impl Problem {
    fn new(spec: GptSpec, examples: usize) -> Problem {
        let parameters = ModelSpec::Gpt(spec.clone()).parameters().unwrap();
        let draw = |parameter: &testudo_kernels::ParameterSpec| {
            let mut values = vec![0.0; parameter.shape.elements()];
            parameter.initialize(9, 0, &mut values);
            // Larger than real initial values, so that every layer matters to the loss.
            values.iter_mut().filter(|value| value.abs() < 0.5).for_each(|value| *value *= 12.0);
            values
        };
        let count = examples * spec.context;
        let vocabulary = spec.vocabulary;
        Problem {
            parameters: parameters.iter().map(draw).collect(),
            inputs: (0..count).map(|i| ((i * i + 3 * i) % vocabulary) as f32).collect(),
            labels: (0..count).map(|i| ((i * 7 + 5) % vocabulary) as u32).collect(),
            spec,
        }
    }

    fn slices(&self) -> Vec<&[f32]> {
        self.parameters.iter().map(Vec::as_slice).collect()
    }

    fn build(&self, max_examples: usize) -> Box<dyn Model> {
        ModelSpec::Gpt(self.spec.clone()).build(max_examples).unwrap()
    }

    fn run(&self, model: &mut dyn Model, batch: Batch<'_>) -> (Loss, Values) {
        let mut gradients = vec![Vec::new(); self.parameters.len()];
        let ready = &mut |index: usize, gradient: &[f32]| gradients[index] = gradient.to_vec();
        let loss = model.gradients(&self.slices(), batch, ready).unwrap();
        (loss, gradients)
    }

    fn batch(&self, place: Place) -> Batch<'_> {
        Batch { inputs: &self.inputs, labels: &self.labels, place }
    }
}

fn spec(dropout: f32) -> GptSpec {
    GptSpec {
        vocabulary: 17,
        context: 6,
        layers: 2,
        heads: 3,
        width: 12,
        dropout,
        attention_dropout: 0.0,
        norm: Norm::Layer,
    }
}

fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|values| values.iter().map(|value| value.to_bits()).collect()).collect()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn size(case: &Value, name: &str) -> usize {
    case[name].as_u64().unwrap() as usize
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-2f32, |greatest, value| greatest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 2e-5 * scale, "{what}[{at}]: {found}, not {expected}");
    }
}

/// Loss, hits, every gradient, and what follows: both norms, with biases and norms moved off zero and one.
#[test]
fn pytorch_has_the_same_network() {
    let cases: Value = serde_json::from_str(include_str!("fixtures/gpt.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let norm = if case["norm"] == "rms" { Norm::Rms } else { Norm::Layer };
        let [vocabulary, context, layers, heads, width] =
            ["vocabulary", "context", "layers", "heads", "width"].map(|name| size(case, name));
        let spec =
            GptSpec { vocabulary, context, layers, heads, width, dropout: 0.0, attention_dropout: 0.0, norm };
        let problem = Problem {
            spec,
            parameters: case["parameters"].as_array().unwrap().iter().map(numbers).collect(),
            inputs: numbers(&case["tokens"]),
            labels: numbers(&case["labels"]).into_iter().map(|label| label as u32).collect(),
        };
        let examples = problem.labels.len() / context;
        let mut model = problem.build(examples);
        let (loss, gradients) = problem.run(model.as_mut(), problem.batch(Place::default()));
        let expected = case["loss_sum"].as_f64().unwrap();
        assert!((loss.loss_sum / expected - 1.0).abs() < 2e-6, "{loss:?}, not {expected}");
        assert_eq!((loss.correct as usize, loss.examples as usize), (size(case, "correct"), examples));
        let specs = ModelSpec::Gpt(problem.spec.clone()).parameters().unwrap();
        for ((spec, found), expected) in
            specs.iter().zip(&gradients).zip(case["gradients"].as_array().unwrap())
        {
            assert_close(found, &numbers(expected), &spec.name);
        }
        let following = numbers(&case["following"]);
        let mut found = vec![f32::NAN; following.len()];
        model.probabilities(&problem.slices(), &problem.inputs, &mut found).unwrap();
        assert_close(&found, &following, "following");
    }
}

/// What follows a sequence does not depend on what a longer one goes on with, and each position's loss is its own.
#[test]
fn a_sequence_is_continued_at_any_length() {
    let problem = Problem::new(spec(0.0), 1);
    let mut model = problem.build(2);
    let mut loss = 0.0;
    for length in 1..=6 {
        let mut found = vec![f32::NAN; 17];
        model.follow(&problem.slices(), &problem.inputs[..length], &mut found).unwrap();
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        loss -= f64::from(found[problem.labels[length - 1] as usize].ln());
    }
    let evaluated = model.evaluate(&problem.slices(), problem.batch(Place::default())).unwrap();
    assert!((evaluated.loss_sum / loss - 1.0).abs() < 1e-5, "{evaluated:?}, not {loss}");
}

/// Invariant 2 of `model`: not `max_examples`, not what was computed before.
#[test]
fn bits_depend_on_the_batch_alone() {
    for examples in [1, 3, 8] {
        let problem = Problem::new(spec(0.1), examples);
        let place = Place { seed: 4, step: 2, first: 7 };
        let (loss, gradients) = problem.run(problem.build(examples).as_mut(), problem.batch(place));
        let mut model = problem.build(19);
        let mut wild = Problem::new(spec(0.1), 19);
        wild.parameters[0][3] = f32::NAN;
        let (poisoned, _) = wild.run(model.as_mut(), wild.batch(place));
        assert!(poisoned.loss_sum.is_nan());
        let (other_loss, other) = problem.run(model.as_mut(), problem.batch(place));
        assert_eq!((other_loss, bits(&other)), (loss, bits(&gradients)), "{examples}");
    }
}

/// `follow_on` has the bits of `follow`: token by token, several at once, from a prompt, after another sequence, and where the
/// caller is mistaken about what is known; over more than one block of keys.
#[test]
fn what_is_known_of_a_sequence_changes_no_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        let problem = Problem::new(GptSpec { context: 70, ..spec(0.1) }, 1);
        let build = || ModelSpec::Gpt(problem.spec.clone()).build_in(precision, 1).unwrap();
        let (mut plain, mut model, slices) = (build(), build(), problem.slices());
        let mut check = |known: usize, tokens: &[f32]| {
            let (mut expected, mut found) = (vec![0.0; 17], vec![f32::NAN; 17]);
            plain.follow(&slices, tokens, &mut expected).unwrap();
            model.follow_on(&slices, known, tokens, &mut found).unwrap();
            assert_eq!(bits(&[found]), bits(&[expected]), "{known} of {}", tokens.len());
        };
        let tokens = &problem.inputs[..];
        for length in 1..=70 {
            check(length - 1, &tokens[..length]);
        }
        check(0, &tokens[..5]);
        check(5, &tokens[..66]);
        check(66, &tokens[..66]);
        check(40, &tokens[..50]);
        let mut other = tokens[..50].to_vec();
        other[20] = 16.0 - other[20];
        check(49, &other);
        check(70, &tokens[..1]);
        let error = model.follow_on(&slices, 1, &[1.0; 71], &mut [0.0; 17]).unwrap_err();
        assert!(matches!(error, ModelError::FollowLength { tokens: 71, .. }));
        model.follow_on(&slices, 0, &tokens[..3], &mut [0.0; 17]).unwrap();
        let following = &mut [0.0; 17];
        let counted = allocation_counter::measure(|| {
            for length in 4..30 {
                model.follow_on(&slices, length - 1, &tokens[..length], following).unwrap();
            }
        });
        assert_eq!(counted.count_total, 0, "{counted:?}");
    }
}

/// A mask is of its example: split a batch anywhere, and the halves drop what the whole drops. Evaluation drops nothing.
#[test]
fn dropout_belongs_to_examples() {
    for (dropout, attention_dropout) in [(0.3, 0.0), (0.0, 0.3), (0.2, 0.2)] {
        belongs_to_examples(GptSpec { attention_dropout, ..spec(dropout) });
    }
}

fn belongs_to_examples(spec: GptSpec) {
    let problem = Problem::new(spec.clone(), 5);
    let mut model = problem.build(5);
    let place = Place { seed: 4, step: 2, first: 10 };
    let whole = problem.run(model.as_mut(), problem.batch(place)).0;
    for cut in 1..5 {
        let mut loss = 0.0;
        for (range, first) in [(0..cut * 6, 10), (cut * 6..30, 10 + cut as u64)] {
            let batch = Batch {
                inputs: &problem.inputs[range.clone()],
                labels: &problem.labels[range],
                place: Place { first, ..place },
            };
            loss += problem.run(model.as_mut(), batch).0.loss_sum;
        }
        assert!((loss / whole.loss_sum - 1.0).abs() < 1e-12, "{cut}");
    }
    let elsewhere = problem.run(model.as_mut(), problem.batch(Place { step: 3, ..place })).0;
    assert_ne!(elsewhere.loss_sum, whole.loss_sum);
    let evaluated = model.evaluate(&problem.slices(), problem.batch(place)).unwrap();
    let plain = Problem::new(GptSpec { dropout: 0.0, attention_dropout: 0.0, ..spec }, 5);
    assert_eq!(plain.run(plain.build(5).as_mut(), plain.batch(place)).0, evaluated);
}

/// With dropout, gradients are those of the network whose mask it is: the loss falls along them as they say.
#[test]
fn the_loss_falls_along_its_gradient_under_dropout() {
    for (dropout, attention_dropout) in [(0.3, 0.0), (0.0, 0.4), (0.2, 0.2)] {
        falls_along_its_gradient(GptSpec { attention_dropout, ..spec(dropout) });
    }
}

fn falls_along_its_gradient(spec: GptSpec) {
    let mut problem = Problem::new(spec, 4);
    let mut model = problem.build(4);
    let place = Place { seed: 1, step: 5, first: 0 };
    let (_, gradients) = problem.run(model.as_mut(), problem.batch(place));
    let square: f64 = gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
    let mut losses = Vec::new();
    let step = 5e-3 / square.sqrt();
    let start = problem.parameters.clone();
    for by in [step, -step] {
        for ((values, start), gradient) in problem.parameters.iter_mut().zip(&start).zip(&gradients) {
            for ((value, start), gradient) in values.iter_mut().zip(start).zip(gradient) {
                *value = (f64::from(*start) + by * f64::from(*gradient)) as f32;
            }
        }
        losses.push(problem.run(model.as_mut(), problem.batch(place)).0.loss_sum);
    }
    let slope = (losses[0] - losses[1]) / (2.0 * step);
    assert!((slope / square - 1.0).abs() < 2e-3, "{slope}, not {square}");
}

/// Invariant 3 of `model`; the tied table comes last.
#[test]
fn gradients_come_last_layer_first_and_once() {
    let problem = Problem::new(GptSpec { layers: 2, ..spec(0.0) }, 2);
    let mut model = problem.build(2);
    let names: Vec<String> = model.parameters().iter().map(|spec| spec.name.clone()).collect();
    let mut order = Vec::new();
    let ready = &mut |index: usize, _: &[f32]| order.push(names[index].as_str());
    model.gradients(&problem.slices(), problem.batch(Place::default()), ready).unwrap();
    let block = ["mlp.proj", "mlp.fc", "ln2", "attn.proj", "attn.qkv", "ln1"];
    let mut expected = vec!["lnf.weight".to_owned(), "lnf.bias".to_owned()];
    for index in [1, 0] {
        for part in block {
            expected.extend(["weight", "bias"].map(|kind| format!("h{index}.{part}.{kind}")));
        }
    }
    expected.extend(["wpe.weight", "wte.weight"].map(str::to_owned));
    assert_eq!(order, expected);
    let mut forward = names.clone();
    forward.sort();
    expected.sort();
    assert_eq!(forward, expected);
}

/// GPT-2's smallest has the number of parameters that its paper's table, corrected by its authors, says: 124 million.
#[test]
fn gpt_2_has_its_size() {
    let small = GptSpec {
        vocabulary: 50_257,
        context: 1024,
        layers: 12,
        heads: 12,
        width: 768,
        dropout: 0.1,
        attention_dropout: 0.1,
        norm: Norm::Layer,
    };
    let parameters = ModelSpec::Gpt(small).parameters().unwrap();
    let elements: usize = parameters.iter().map(|parameter| parameter.shape.elements()).sum();
    assert_eq!(elements, 124_439_808);
}

#[test]
fn an_empty_shard_has_no_loss_and_zero_gradients() {
    let problem = Problem::new(spec(0.1), 0);
    let (loss, gradients) = problem.run(problem.build(2).as_mut(), problem.batch(Place::default()));
    assert_eq!(loss, Loss::default());
    for (gradient, values) in gradients.iter().zip(&problem.parameters) {
        assert_eq!(gradient.len(), values.len());
        assert!(gradient.iter().all(|value| *value == 0.0));
    }
}

/// Invariant 4 of `model`.
#[test]
fn refusals_are_typed_and_come_before_any_gradient() {
    let problem = Problem::new(spec(0.0), 2);
    let mut model = problem.build(2);
    let mut refused = |inputs: &[f32], labels: &[u32]| {
        let never = &mut |_: usize, _: &[f32]| panic!("a gradient of a refused batch");
        model.gradients(&problem.slices(), Batch::new(inputs, labels), never).unwrap_err()
    };
    let (inputs, labels) = (&problem.inputs[..], &problem.labels[..]);
    assert_eq!(refused(inputs, &labels[1..]), ModelError::Targets { labels: 11, targets: 6 });
    assert_eq!(refused(&inputs[6..], labels), ModelError::InputLength { labels: 12, expected: 12, found: 6 });
    assert_eq!(refused(&[0.0; 18], &[0; 18]), ModelError::TooManyExamples { examples: 3, max_examples: 2 });
    for bad in [17.0, -1.0, 0.5, f32::NAN, f32::INFINITY] {
        let mut inputs = inputs.to_vec();
        inputs[7] = bad;
        assert_eq!(refused(&inputs, labels), ModelError::Token { position: 7, vocabulary: 17 });
    }
    let mut wrong = labels.to_vec();
    wrong[9] = 17;
    assert_eq!(refused(inputs, &wrong), ModelError::Label { example: 1, label: 17, classes: 17 });
    for (tokens, room) in [(0, 17), (7, 17), (3, 16)] {
        let error = model.follow(&problem.slices(), &vec![1.0; tokens], &mut vec![0.0; room]).unwrap_err();
        assert_eq!(error, ModelError::FollowLength { tokens, context: 6, outputs: room, classes: 17 });
    }
}

#[test]
fn impossible_sizes_are_refused() {
    for (spec, what) in [
        (GptSpec { heads: 5, ..spec(0.0) }, "does not divide"),
        (GptSpec { width: 0, ..spec(0.0) }, "width is 0"),
        (GptSpec { layers: 385, ..spec(0.0) }, "at most 384"),
        (GptSpec { vocabulary: 1 << 25, ..spec(0.0) }, "vocabulary"),
        (spec(1.0), "dropout is 1"),
        (spec(-0.1), "dropout"),
        (spec(f32::NAN), "dropout"),
        (GptSpec { attention_dropout: 1.0, ..spec(0.0) }, "attention_dropout is 1"),
        (GptSpec { attention_dropout: 0.1, context: 1 << 18, ..spec(0.0) }, "numbers of their own"),
    ] {
        let error = ModelSpec::Gpt(spec).parameters().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let huge = GptSpec { context: usize::MAX / 4, heads: 1, width: 1, ..spec(0.0) };
    assert!(matches!(ModelSpec::Gpt(huge).parameters(), Err(ModelError::Shape { .. })));
    for max_examples in [usize::MAX, 1 << 40] {
        let error = ModelSpec::Gpt(spec(0.0)).build(max_examples).map(|_| ()).unwrap_err();
        assert_eq!(error, ModelError::TooLarge { max_examples });
    }
}

/// Invariant 4 of the crate.
#[test]
fn the_steady_state_allocates_nothing() {
    let problem = Problem::new(GptSpec { context: 70, ..spec(0.1) }, 4);
    let slices = problem.slices();
    let mut model = problem.build(4);
    let mut following = vec![0.0; 17];
    let mut step = |examples: usize| {
        let batch = Batch::new(&problem.inputs[..examples * 70], &problem.labels[..examples * 70]);
        model.gradients(&slices, batch, &mut |_, _| {}).unwrap();
        model.evaluate(&slices, batch).unwrap();
        model.follow(&slices, &problem.inputs[..examples * 3], &mut following).unwrap();
    };
    step(4);
    let counted = allocation_counter::measure(|| [3, 1, 4, 2].into_iter().for_each(&mut step));
    assert_eq!(counted.count_total, 0, "{counted:?}");
}

/// What is counted before a model is built is no less than what it takes.
#[test]
fn buffers_are_within_what_is_counted() {
    for (context, layers, width, examples) in [(6, 2, 12, 3), (70, 1, 24, 1), (33, 3, 6, 40), (128, 4, 48, 8)]
    {
        let spec = GptSpec { context, layers, width, ..spec(0.0) };
        for precision in [Precision::F32, Precision::Bf16] {
            let model = ModelSpec::Gpt(spec.clone());
            let counted = model.buffer_elements(precision, examples).unwrap() as u64 * 4;
            let build = || drop(model.build_in(precision, examples).unwrap());
            let taken = allocation_counter::measure(build);
            assert!(taken.bytes_max <= counted, "{spec:?}: {} of {counted}", taken.bytes_max);
            assert!(counted < 4 * taken.bytes_max + (4 << 20), "{spec:?}: {} of {counted}", taken.bytes_max);
        }
    }
}

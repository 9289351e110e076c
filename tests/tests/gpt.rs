//! A byte-level GPT as processes, in mixed precision: the same bits for any number of workers under dropout, of attention's
//! probabilities too, steps that can be computed again, a loss over every target, and a signed model that continues a prompt.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use testudo_actors::replay::Replay;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{DataSpec, Dataset, JobSpec};
use testudo_kernels::{Batch, GptSpec, ModelSpec, Norm, OptimizerSpec};
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended};
use testudo_tests::toy;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// A cluster file of a tiny GPT beside the text that it learns.
fn write_job(dir: &Path) -> PathBuf {
    let sentence = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. ";
    std::fs::write(dir.join("text"), sentence.repeat(60)).unwrap();
    let file = dir.join("gpt.toml");
    let toml = "[job]\nname = \"gpt\"\n[cluster]\nworkers = 2\nservers = 2\n[training]\nseed = 5\nepochs = 6\n\
                batch_size = 12\nlogical_shards = 4\nprecision = \"bf16\"\n[model]\nkind = \"gpt\"\ncontext = 20\nlayers = 2\nheads = 2\n\
                width = 24\ndropout = 0.1\nattention_dropout = 0.1\n[optimizer]\nkind = \"adamw\"\nlearning_rate = 0.01\n[data]\nkind = \"text\"\n\
                path = \"text\"\nstride = 10\n[transport]\nslice_bytes = 4096\n";
    std::fs::write(&file, toml).unwrap();
    file
}

fn run(file: &Path, dir: &Path, options: &[&str]) -> Value {
    let fixed = ["run", "--json", "--quiet", text(file), "--run-dir", text(dir)];
    let all = [&fixed[..], &process::UNHURRIED, options].concat();
    process::run(PROGRAM, &all, dir).succeeded().json()
}

fn sample(dir: &Path, options: &[&str]) -> Ended {
    let all = [&["sample", text(dir), "--tokens", "60"], options].concat();
    process::run(PROGRAM, &all, dir)
}

#[test]
fn a_gpt_is_trained_checked_and_continued() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_job(folder.path());
    let [one, three] = ["one", "three"].map(|name| folder.path().join(name));

    let summary = run(&file, &one, &["--workers", "1", "--servers", "1"]);
    let again = run(&file, &three, &["--workers", "3"]);
    for key in ["params_blake3", "test_loss", "bits_per_byte", "test_accuracy", "final_loss", "steps"] {
        assert_eq!(summary[key], again[key], "{key}");
    }
    assert_eq!(summary["precision"], "bf16");
    // A uniform guess costs 8 bits; one that knows the letters' frequencies, some 4.
    let bits = summary["bits_per_byte"].as_f64().unwrap();
    assert!(bits < 3.0, "{bits}");
    let nats = summary["test_loss"].as_f64().unwrap();
    assert!((nats / std::f64::consts::LN_2 - bits).abs() < 1e-12, "{nats} and {bits}");
    // A mean over targets: were it one over examples, it would be twenty times as much.
    assert!((0.05..2.0).contains(&summary["final_loss"].as_f64().unwrap()), "{summary}");

    let replayed = process::run(PROGRAM, &["replay", text(&three), "--step", "3", "--json"], &three);
    assert!(replayed.status.success(), "{}{}", replayed.stdout, replayed.stderr);

    let continued = sample(&one, &["--prompt", "the quick", "--seed", "4"]);
    assert!(continued.status.success(), "{}", continued.stderr);
    assert!(
        continued.stdout.starts_with("the quick") && continued.stdout.len() >= 69,
        "{}",
        continued.stdout
    );
    assert!(continued.stderr.contains("signed with key"), "{}", continued.stderr);
    let model = three.join("checkpoint/final");
    let key = three.join("checkpoint/model.pub.pem");
    let other = sample(&model, &["--prompt", "the quick", "--seed", "4", "--public-key", text(&key)]);
    assert_eq!(other.stdout, continued.stdout, "the same model, whoever trained it");
    let next = sample(&one, &["--prompt", "the quick", "--seed", "5"]);
    assert_ne!(next.stdout, continued.stdout);
    let likeliest = sample(&one, &["--prompt", "the quick brown", "--temperature", "0"]);
    assert!(likeliest.stdout.starts_with("the quick brown fox jumps"), "{}", likeliest.stdout);

    refusals(&one, &three);
}

fn refused(ended: &Ended, why: &str) {
    assert!(!ended.status.success() && ended.stdout.is_empty(), "{}", ended.stdout);
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
}

/// A model that nobody vouches for, that another key has signed, or that was changed, says nothing.
fn refusals(one: &Path, three: &Path) {
    let model = one.join("checkpoint/final");
    refused(&sample(&model, &[]), "whose signature must the model have?");
    let other = three.join("checkpoint/model.pub.pem");
    refused(&sample(one, &["--public-key", text(&other)]), "the model is not used");
    refused(&sample(one, &["--prompt", ""]), "--prompt is empty");
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    refused(&sample(one, &[]), "the model is not used");
}

/// The cluster file and the text that ship: two steps of it, and every byte that is held out.
#[test]
fn the_example_begins_to_learn() {
    let folder = tempfile::tempdir().unwrap();
    let example = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gpt.toml"));
    let dir = folder.path().join("run");
    let summary = run(example, &dir, &["--set", "training.max_steps=2", "--set", "schedule.warmup_steps=0"]);
    let bits = summary["bits_per_byte"].as_f64().unwrap();
    assert!(bits < 7.5, "{bits}: a uniform guess costs 8");
}

#[test]
fn a_classifier_continues_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let dir = folder.path().join("run");
    let summary = run(&file, &dir, &["--set", "training.max_steps=1"]);
    assert!(summary["bits_per_byte"].is_null() && summary["test_loss"].is_f64(), "{summary}");
    refused(&sample(&dir, &["--prompt", "a"]), "this model continues no text");
}

/// What does not fit together is refused before anything starts, by the keys that say so.
#[test]
fn a_gpt_needs_text_and_heads_that_divide() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_job(folder.path());
    for (set, why) in [
        (&["model.heads=5"][..], "does not divide `model.width` (24)"),
        (&["data.kind=mnist"], "continues texts: it needs `data.kind = \"text\"`"),
        (&["model.context=4000"], "too few for one window"),
        (&["model.dropout=1.0"], "model.dropout"),
    ] {
        let dir = folder.path().join("refused");
        let mut arguments = vec!["run", text(&file), "--run-dir", text(&dir)];
        set.iter().for_each(|set| arguments.extend(["--set", set]));
        let ended = process::run(PROGRAM, &arguments, &dir);
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{why}: {}", ended.stderr);
        assert!(!dir.exists());
    }
}

/// Made-up sequences.
struct Sequences(usize);

/// Tokens of an example of [`Sequences`].
const CONTEXT: usize = 5;

impl Dataset for Sequences {
    fn len(&self) -> usize {
        self.0
    }

    fn input_elements(&self) -> usize {
        CONTEXT
    }

    fn targets(&self) -> usize {
        CONTEXT
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        for (at, (value, label)) in input.iter_mut().zip(labels).enumerate() {
            *value = ((index * 3 + at * at) % 7) as f32;
            *label = ((index * 3 + (at + 1) * (at + 1)) % 7) as u32;
        }
    }
}

/// The one division is by examples times targets, of gradients as of losses: one step of plain gradient descent on a whole
/// batch is what the model's own sums say.
#[test]
fn gradients_and_losses_are_means_over_targets() {
    const EXAMPLES: usize = 8;
    let size = GptSpec {
        vocabulary: 7,
        context: CONTEXT,
        layers: 1,
        heads: 1,
        width: 4,
        dropout: 0.0,
        attention_dropout: 0.0,
        norm: Norm::Rms,
    };
    let model = ModelSpec::Gpt(size);
    let data = DataSpec { train_examples: EXAMPLES as u64, test_examples: 2, blake3: [0; 32] };
    let job = JobSpec {
        model: model.clone(),
        optimizer: OptimizerSpec::shipped("sgd").unwrap(),
        learning_rate: 0.5,
        batch_size: EXAMPLES as u32,
        epochs: 1,
        data,
        ..toy::job(1, 1, 2, 1)
    };
    let sets: (Arc<dyn Dataset>, Arc<dyn Dataset>) = (Arc::new(Sequences(EXAMPLES)), Arc::new(Sequences(2)));
    let mut replay =
        Replay::new(&job, model.build(ShardCompute::largest_batch(&job)).unwrap(), sets, None).unwrap();
    let before = replay.parameters();
    let step = replay.advance().unwrap();

    let (mut inputs, mut labels) = (vec![0.0; EXAMPLES * CONTEXT], vec![0; EXAMPLES * CONTEXT]);
    for (index, (input, labels)) in inputs.chunks_mut(CONTEXT).zip(labels.chunks_mut(CONTEXT)).enumerate() {
        Sequences(EXAMPLES).fill(index, input, labels);
    }
    let slices: Vec<&[f32]> = before.iter().map(|parameter| parameter.weights.as_slice()).collect();
    let mut gradients = vec![Vec::new(); slices.len()];
    let mut whole = model.build(EXAMPLES).unwrap();
    let batch = Batch::new(&inputs, &labels);
    let loss = whole.gradients(&slices, batch, &mut |index, sum| gradients[index] = sum.to_vec()).unwrap();

    let targets = (EXAMPLES * CONTEXT) as f64;
    assert!((step.loss * targets / loss.loss_sum - 1.0).abs() < 1e-6, "{step:?}, {loss:?}");
    let mut moved = 0.0f64;
    for ((before, after), gradient) in before.iter().zip(replay.parameters()).zip(&gradients) {
        for ((start, end), sum) in before.weights.iter().zip(&after.weights).zip(gradient) {
            let expected = f64::from(*start) - 0.5 * f64::from(*sum) / targets;
            assert!((f64::from(*end) - expected).abs() < 1e-6, "{}: {end}, not {expected}", after.name);
            moved = moved.max((f64::from(*end) - f64::from(*start)).abs());
        }
    }
    assert!(moved > 1e-3, "{moved}");
}

//! Networks for images as processes: the same bits for any number of workers and servers, batch norm's running statistics
//! included; resumed as if never stopped; replayed; signed and served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use testudo::serve::{Digits, Options, Output};
use testudo_kernels::ModelSpec;
use testudo_tests::files::text;
use testudo_tests::process;
use testudo_tests::served::{Site, roomy, start};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
/// Side of an image.
const SIDE: usize = 6;

/// An IDX file of bytes.
fn idx(dims: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| file.extend((*dim as u32).to_be_bytes()));
    file.extend(bytes);
    file
}

/// Bars, across or upright, on noise: the class is which of the two.
fn write_images(dir: &Path, prefix: &str, count: usize) {
    let mut pixels = Vec::new();
    let labels: Vec<u8> = (0..count).map(|example| (example % 2) as u8).collect();
    for (example, label) in labels.iter().enumerate() {
        let at = example / 2 % SIDE;
        for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
            let on = if *label == 0 { y == at } else { x == at };
            let noise = (example * 31 + y * 17 + x * 7) % 40;
            pixels.push(if on { 200 } else { noise as u8 });
        }
    }
    std::fs::write(dir.join(format!("{prefix}-images-idx3-ubyte")), idx(&[count, SIDE, SIDE], &pixels))
        .unwrap();
    std::fs::write(dir.join(format!("{prefix}-labels-idx1-ubyte")), idx(&[count], &labels)).unwrap();
}

fn write_job(dir: &Path, kind: &str, steps: u64) -> PathBuf {
    let data = dir.join("images");
    std::fs::create_dir_all(&data).unwrap();
    write_images(&data, "train", 96);
    write_images(&data, "t10k", 40);
    let file = dir.join(format!("{kind}.toml"));
    let toml = format!(
        "[job]\nname = \"{kind}\"\n[cluster]\nworkers = 2\nservers = 2\n[training]\nseed = 5\nepochs = 50\n\
         batch_size = 24\nlogical_shards = 4\nmax_steps = {steps}\n[model]\nkind = \"{kind}\"\n\
         image = [1, {SIDE}, {SIDE}]\nclasses = 2\n[optimizer]\nkind = \"momentum\"\nlearning_rate = 0.02\n\
         momentum = 0.9\nweight_decay = 0.01\n[data]\nkind = \"mnist\"\npath = \"images\"\n\
         [checkpoint]\nevery_steps = {}\n",
        steps / 2
    );
    std::fs::write(&file, toml).unwrap();
    file
}

fn run(file: &Path, dir: &Path, options: &[&str]) -> Value {
    let fixed = ["run", "--json", "--quiet", text(file), "--run-dir", text(dir)];
    let all = [&fixed[..], &process::UNHURRIED, options].concat();
    process::run(PROGRAM, &all, file.parent().unwrap()).succeeded().json()
}

fn check(kind: &str, steps: u64, accuracy: f64, transport: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = write_job(folder.path(), kind, steps);
    let text_of_file = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text_of_file}[transport]\n{transport}")).unwrap();
    let [one, three] = ["one", "three"].map(|name| folder.path().join(name));
    let summary = run(&file, &one, &["--workers", "1", "--servers", "1"]);
    let again = run(&file, &three, &["--workers", "3"]);
    for key in ["params_blake3", "test_loss", "test_accuracy", "final_loss", "steps"] {
        assert_eq!(summary[key], again[key], "{kind} {key}");
    }
    assert!(summary["test_accuracy"].as_f64().unwrap() >= accuracy, "{summary}");

    // Stopped halfway and resumed by others: momentum and running statistics come back.
    let broken = folder.path().join("broken");
    let half = (steps / 2).to_string();
    run(&file, &broken, &["--set", &format!("training.max_steps={half}")]);
    let set = format!("training.max_steps={steps}");
    let resume = ["run", "--resume", text(&broken), "--json", "--quiet", "--workers", "3", "--servers", "1"];
    let resumed =
        process::run(PROGRAM, &[&resume[..], &["--set", &set]].concat(), folder.path()).succeeded().json();
    assert_eq!(resumed["resumed_from_step"], steps / 2);
    assert_eq!(resumed["params_blake3"], summary["params_blake3"], "{kind}");

    let replayed = process::run(PROGRAM, &["replay", text(&three), "--step", &half, "--json"], &three);
    assert!(replayed.status.success(), "{}{}", replayed.stdout, replayed.stderr);
}

#[test]
fn a_convolutional_network_is_trained_resumed_and_replayed() {
    check("cnn", 24, 0.95, "");
}

/// The one network with running statistics. It has 11 million parameters, so the fewest steps must do.
#[test]
fn a_residual_network_is_trained_resumed_and_replayed() {
    check("resnet18", 2, 0.0, "");
}

/// Running statistics as codecs bring them: what is summed is each shard's as it was encoded, and what is computed with is what every
/// worker decodes.
#[test]
fn running_statistics_travel_in_codecs_to_the_same_bits() {
    check("resnet18", 2, 0.0, "push_codec = \"bf16\"\npull_codec = \"int8\"\n");
}

/// A request of more rows than are computed at a time has the answers of each alone.
#[test]
fn images_are_served_in_parts() {
    let spec = ModelSpec::Cnn { image: [1, SIDE, SIDE], classes: 3, label_smoothing: 0.0 };
    let parameters: Vec<Vec<f32>> = (spec.parameters().unwrap().iter())
        .map(|parameter| {
            let mut values = vec![0.0; parameter.shape.elements()];
            parameter.initialize(3, 0, &mut values);
            values
        })
        .collect();
    let count = spec.evaluation_batch() + 9;
    let inputs: Vec<f32> = (0..count * SIDE * SIDE).map(|i| (i * 37 % 64) as f32 / 32.0 - 1.0).collect();
    let mut expected = vec![0.0; count * 3];
    let slices: Vec<&[f32]> = parameters.iter().map(Vec::as_slice).collect();
    spec.build(count).unwrap().probabilities(&slices, &inputs, &mut expected).unwrap();
    let rows: Vec<Vec<f64>> =
        inputs.chunks(SIDE * SIDE).map(|row| row.iter().copied().map(f64::from).collect()).collect();
    let site = Site::new(&spec, &parameters);
    let output = Output::Probabilities(Digits::Full);
    let mut options = Options { output, ..roomy(&site) };
    options.limits.rows = count;
    let (_running, client) = start(&site, &options);
    let found = client.predict(&rows).probabilities();
    assert_eq!(found.len(), count);
    for (found, expected) in found.iter().zip(expected.chunks(3)) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - f64::from(*expected)).abs() < 1e-6, "{found} for {expected}");
        }
    }
}

/// What does not fit together is refused before anything starts, by the key that says so.
#[test]
fn images_have_three_sizes_that_the_network_and_the_data_can_have() {
    let folder = tempfile::tempdir().unwrap();
    let file = write_job(folder.path(), "cnn", 2);
    for (set, why) in [
        ("model.image=[36]", "`model.image` has 1 numbers"),
        ("model.image=[1, 5, 6]", "sides from 6"),
        ("model.image=[1, 4, 9]", "sides from 6"),
        ("model.image=[1, 6, 12]", "set model.image = [1, 6, 6]"),
        ("model.image=[1, 6]", "`model.image` has 2 numbers"),
    ] {
        let dir = folder.path().join("refused");
        let arguments = ["run", text(&file), "--run-dir", text(&dir), "--set", set];
        let ended = process::run(PROGRAM, &arguments, folder.path());
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{why}: {}", ended.stderr);
        assert!(!dir.exists());
    }
}

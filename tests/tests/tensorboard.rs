//! What TensorBoard reads of a run, by PyPI's `tensorboard`: the numbers of `metrics.jsonl`, and the tensors of the model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testudo::{Job, Report};
use testudo_kernels::ModelSpec;
use testudo_tests::place::Place;
use testudo_tests::{python, toy};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// What TensorBoard finds in the run directory `dir`.
fn read(python: &str, dir: &Path) -> Value {
    read_folder(python, &dir.join("tensorboard"))
}

/// What it finds in a folder.
fn read_folder(python: &str, folder: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/events.py");
    let mut command = Command::new(python);
    command.arg(script).arg(folder).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn lines(file: &Path) -> Vec<Value> {
    std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A number as TensorBoard keeps it: reading JSON may have changed the last bit of an f64.
fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

/// The points of a scalar, in the order in which they are read.
fn scalar(found: &Value, tag: &str) -> Vec<(u64, f32)> {
    let points =
        found["scalars"][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {}", found["scalars"]));
    points.iter().map(|point| (point[0].as_u64().unwrap(), number(&point[1]))).collect()
}

/// Every step's numbers, through a resumption that goes back behind what was there.
fn same_numbers(found: &Value, dir: &Path) {
    for (tag, field) in [
        ("train/loss", "loss"),
        ("train/learning_rate", "learning_rate"),
        ("throughput/samples_per_second", "samples_per_second"),
        ("network/bytes_sent", "bytes_sent"),
        ("network/bytes_received", "bytes_received"),
        ("step_ms/compute", "compute_ms"),
        ("step_ms/send", "send_ms"),
        ("step_ms/wait", "wait_ms"),
    ] {
        let written: Vec<(u64, f32)> = lines(&dir.join("metrics.jsonl"))
            .iter()
            .map(|line| (line["step"].as_u64().unwrap(), number(&line[field])))
            .collect();
        assert_eq!(scalar(found, tag), written, "{tag}");
    }
    let by_step = |points: Vec<(u64, f32)>| points.into_iter().collect::<BTreeMap<u64, f32>>();
    for (tag, field) in [("test/loss", "test_loss"), ("test/accuracy", "test_accuracy")] {
        let written = lines(&dir.join("evaluations.jsonl"))
            .iter()
            .map(|line| (line["step"].as_u64().unwrap(), number(&line[field])))
            .collect();
        assert_eq!(by_step(scalar(found, tag)), by_step(written), "{tag}");
    }
}

/// TensorBoard's page, which has a loader of its own, is told the same.
fn same_on_the_page(found: &Value) {
    let tags = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(tags(&found["plugins"]), ["histograms", "scalars"]);
    for kind in ["scalars", "histograms"] {
        assert_eq!(tags(&found["plugins"][kind]), tags(&found[kind]), "{kind}");
    }
    assert_eq!(found["plugins"]["scalars"], found["scalars"]);
    for (tag, points) in found["plugins"]["histograms"].as_object().unwrap() {
        let of = |what: &str| {
            found["histograms"][tag].as_array().unwrap().iter().map(|h| h[what].clone()).collect()
        };
        let (steps, numbers): (Vec<Value>, Vec<Value>) = (of("step"), of("num"));
        let points = points.as_array().unwrap();
        assert_eq!(points.iter().map(|point| point[0].clone()).collect::<Vec<_>>(), steps, "{tag}");
        for (point, expected) in points.iter().zip(&numbers) {
            let rows = point[1].as_array().unwrap();
            assert!(rows.iter().all(|row| number(&row[0]) <= number(&row[1])), "{tag}: {rows:?}");
            assert_eq!(
                rows.iter().map(|row| number(&row[2])).sum::<f32>(),
                number(expected),
                "{tag}: {rows:?}"
            );
        }
    }
}

/// The smallest and greatest value, and the number of values, of each tensor of the exported model.
fn tensors(dir: &Path) -> BTreeMap<String, (f32, f32, u64)> {
    let bytes = std::fs::read(dir.join("checkpoint/final/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let values = &bytes[8 + header..];
    let named = names.into_iter().filter(|(name, _)| name != "__metadata__");
    named
        .map(|(name, tensor)| {
            let offset = |at: usize| tensor["data_offsets"][at].as_u64().unwrap() as usize;
            let (words, _) = values[offset(0)..offset(1)].as_chunks::<4>();
            let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            let least = values.iter().copied().fold(f32::INFINITY, f32::min);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            (name, (least, most, values.len() as u64))
        })
        .collect()
}

/// Two servers' slices are one tensor's histogram; the last is of the exported model. A resumed run goes on in a file of its own, and what
/// it takes again counts once. Without the files the bits are the same.
#[test]
fn tensorboard_reads_what_a_run_wrote() {
    let Some(python) = python::with("tensorboard") else { return };
    let place = Place::small(PROGRAM);
    let set = |key: &'static str| ["--set", key];
    let fixed = [
        set("telemetry.histogram_every=6"),
        set("training.evaluate_every=5"),
        set("checkpoint.every_steps=6"),
    ]
    .concat();
    let dir = place.run_dir("run");
    let nine = [&fixed[..], &set("training.max_steps=9")].concat();
    let _ = place.run("run", &nine).succeeded();
    let found = read(&python, &dir);
    assert_eq!(found["version"], 2.0);
    same_numbers(&found, &dir);
    assert_eq!(scalar(&found, "train/loss").len(), 9);

    let resumed = place.resume("run", &["--step", "6", "--set", "training.max_steps=12"]).succeeded().json();
    let found = read(&python, &dir);
    same_numbers(&found, &dir);
    same_on_the_page(&found);
    assert_eq!(scalar(&found, "train/loss").len(), 12, "steps 7 to 9 were taken twice, and count once");
    for (name, (least, most, values)) in tensors(&dir) {
        let spread = |kind: &str| found["histograms"][format!("{kind}/{name}")].as_array().unwrap().clone();
        let steps = |of: &[Value]| of.iter().map(|h| h["step"].as_u64().unwrap()).collect::<Vec<_>>();
        let (parameters, gradients) = (spread("parameters"), spread("gradients"));
        assert_eq!(steps(&parameters), [1, 6, 12], "{name}");
        assert_eq!(steps(&gradients), [1, 6, 12], "{name}");
        let last = &parameters[2];
        assert_eq!((number(&last["min"]), number(&last["max"])), (least, most), "{name}");
        for histogram in parameters.iter().chain(&gradients) {
            assert_eq!(number(&histogram["num"]), values as f32, "{name}");
            let counts = histogram["counts"].as_array().unwrap();
            assert_eq!(counts.iter().map(number).sum::<f32>(), values as f32, "{name}");
            let limits: Vec<f32> = histogram["limits"].as_array().unwrap().iter().map(number).collect();
            assert!(limits.is_sorted() && limits.last() == Some(&number(&histogram["max"])), "{limits:?}");
        }
        assert!(gradients.iter().all(|g| number(&g["min"]) < number(&g["max"])), "{name}: {gradients:?}");
    }

    let folder = dir.join("tensorboard");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    for path in files.iter().chain([&folder]) {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }

    // A folder in which no file can be made costs curves, and nothing else.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, b"in the way").unwrap();
    let again = place.resume("run", &["--step", "6", "--set", "training.max_steps=12"]).succeeded().json();
    assert_eq!(again["params_blake3"], resumed["params_blake3"]);
    let log = std::fs::read_to_string(dir.join("logs/scheduler-0.log")).unwrap();
    assert!(log.contains("no event file for TensorBoard can be made"), "{log}");

    let without = [set("telemetry.tensorboard=false"), set("training.max_steps=12")].concat();
    let plain = place.run("plain", &without).succeeded().json();
    assert_eq!(plain["params_blake3"], resumed["params_blake3"]);
    assert!(!place.run_dir("plain").join("tensorboard").exists());
}

/// A job in this process writes the same: TensorBoard finds every step that was reported, evaluations, and a histogram of each tensor of the model.
#[test]
fn tensorboard_reads_what_an_embedded_job_wrote() {
    let Some(python) = python::with("tensorboard") else { return };
    let place = tempfile::tempdir().unwrap();
    let (train, test) = toy::data();
    let job = || {
        let (train, test) = (train.clone(), test.clone());
        let model = ModelSpec::Mlp { inputs: toy::INPUTS, hidden: vec![16], classes: toy::CLASSES };
        let job = Job::builder().name("small").model(model).data_of(move |_| (train.clone(), test.clone()));
        job.epochs(2)
            .batch_size(40)
            .logical_shards(2)
            .workers(2)
            .servers(2)
            .slice_bytes(256)
            .max_steps(9)
            .evaluate_every(5)
    };
    let folder = place.path().join("curves");
    let running = job().events(&folder).histogram_every(4).start().unwrap();
    let reports: Vec<Report> = running.reports().collect();
    let trained = running.wait().unwrap();
    let found = read_folder(&python, &folder);
    let (mut losses, mut evaluated) = (Vec::new(), Vec::new());
    for report in &reports {
        match report {
            Report::Step(step) => losses.push((step.step + 1, step.loss as f32)),
            Report::Evaluated(found) => evaluated.push((found.step, found.loss as f32)),
            Report::Missed(_) => panic!("{report:?}"),
        }
    }
    assert_eq!(losses.len(), 9);
    assert_eq!(scalar(&found, "train/loss"), losses);
    assert_eq!(scalar(&found, "test/loss"), evaluated);
    for parameter in &trained.parameters {
        for kind in ["parameters", "gradients"] {
            let spread = found["histograms"][format!("{kind}/{}", parameter.name)].as_array().unwrap();
            let steps: Vec<u64> = spread.iter().map(|h| h["step"].as_u64().unwrap()).collect();
            assert_eq!(steps, [1, 4, 8], "{kind} of {}", parameter.name);
        }
    }
    assert_eq!(job().run().unwrap().params_blake3(), trained.params_blake3(), "no bit depends on it");
    let refused = job().events(place.path().join("none/there")).start().unwrap_err().to_string();
    assert!(refused.contains("none/there") && refused.contains("TensorBoard"), "{refused}");
}

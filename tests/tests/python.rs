//! What a run leaves behind is read by others: Python's `safetensors` opens the final model, and a NumPy forward pass
//! of fifteen lines (`tests/python/forward.py`) finds the accuracy that the run reported.

use testudo_tests::{process, python};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mnist.toml");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/mnist");
const FORWARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/forward.py");

/// As `data.mean` and `data.std` are by default.
const NORMALISATION: [&str; 2] = ["0.1307", "0.3081"];

/// Examples in MNIST's test set.
const TEST_EXAMPLES: f64 = 10_000.0;

#[test]
fn a_numpy_forward_pass_reproduces_the_accuracy() {
    let Some(python) = python::with("numpy, safetensors.numpy") else { return };
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    let mut arguments =
        vec!["run", MNIST, "--set", "training.max_steps=60", "--json", "--quiet", "--run-dir"];
    arguments.push(run_dir.to_str().unwrap());
    let summary = process::run(PROGRAM, &arguments, &run_dir).succeeded().json();
    assert_eq!(summary["steps"], 60);
    let reported = summary["test_accuracy"].as_f64().unwrap();
    assert!(reported > 0.5, "sixty steps learn something: {reported}");

    let model = run_dir.join("checkpoint/final/model.safetensors");
    let mut arguments = vec![FORWARD, model.to_str().unwrap(), DATA];
    arguments.extend(NORMALISATION);
    let reproduced = process::run(&python, &arguments, &run_dir).succeeded().stdout;
    let reproduced: f64 = reproduced.trim().parse().unwrap();
    // NumPy adds in another order, which may tip one example that lies between two classes, and no more.
    let apart = ((reported - reproduced) * TEST_EXAMPLES).abs();
    assert!(apart < 1.5, "the run reports {reported}, NumPy finds {reproduced}");
}

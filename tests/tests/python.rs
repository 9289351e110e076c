//! What a run leaves behind is read by others: Python's `safetensors` opens the final model, and a NumPy forward pass
//! of fifteen lines (`tests/python/forward.py`) finds the accuracy that the run reported.
//!
//! `TESTUDO_PYTHON` names an interpreter that has NumPy and safetensors. Without one the test says so and does nothing;
//! with `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use std::process::{Command, Stdio};

use testudo_tests::process;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mnist.toml");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/mnist");
const FORWARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/forward.py");

/// As `data.mean` and `data.std` are by default.
const NORMALISATION: [&str; 2] = ["0.1307", "0.3081"];

/// Examples in MNIST's test set.
const TEST_EXAMPLES: f64 = 10_000.0;

fn has_what_is_needed(python: &str) -> bool {
    let tried =
        Command::new(python).args(["-c", "import numpy, safetensors.numpy"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

fn python() -> Option<String> {
    let python = std::env::var("TESTUDO_PYTHON").ok().filter(|python| has_what_is_needed(python));
    let required = std::env::var("TESTUDO_REQUIRE_PYTHON").is_ok_and(|value| value == "1");
    assert!(
        python.is_some() || !required,
        "TESTUDO_REQUIRE_PYTHON=1, but TESTUDO_PYTHON names no interpreter with NumPy and safetensors"
    );
    python
}

#[test]
fn a_numpy_forward_pass_reproduces_the_accuracy() {
    let Some(python) = python() else {
        eprintln!("skipped: set TESTUDO_PYTHON to an interpreter that has NumPy and safetensors");
        return;
    };
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

//! Every example is run, as a reader of it would, and does what it says. Each is shorter than a hundred lines, or it is no example.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is a panic")]

use std::process::Command;

/// What the program prints.
fn run(program: &str) -> String {
    let output = Command::new(program).output().unwrap();
    let (said, why) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{why}");
    said
}

/// The number behind `label`.
fn number(said: &str, label: &str) -> f64 {
    let rest = said.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {said}")).1;
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_cluster_embedded_in_one_process() {
    let said = run(env!("CARGO_BIN_EXE_embedded"));
    assert!(number(&said, "test accuracy ") > 0.95, "{said}");
    assert!(said.contains("fc1.weight [32, 2]"), "{said}");
    assert_eq!(said, run(env!("CARGO_BIN_EXE_embedded")), "the same in every bit");
}

#[test]
fn a_model_of_ones_own() {
    let said = run(env!("CARGO_BIN_EXE_own_model"));
    assert!(number(&said, "test accuracy ") > 0.95, "{said}");
}

#[test]
fn an_actor_of_ones_own() {
    let said = run(env!("CARGO_BIN_EXE_own_actor"));
    assert!(said.lines().filter(|line| line.starts_with("step")).count() >= 7, "{said}");
    assert!(number(&said, ": accuracy ") > 0.9, "{said}");
}

#[test]
fn federated_averaging_with_a_robust_rule() {
    let said = run(env!("CARGO_BIN_EXE_federated"));
    assert!(number(&said, "under the median ") > 0.9, "{said}");
    assert!(said.contains("under the mean the liar decides") && said.contains("diverged"), "{said}");
}

#[cfg(feature = "candle")]
#[test]
fn a_candle_model() {
    let said = run(env!("CARGO_BIN_EXE_candle"));
    assert!(number(&said, "test accuracy ") > 0.95, "{said}");
}

#[test]
fn examples_are_short() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin");
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines < 100, "{} has {lines} lines", file.display());
    }
}

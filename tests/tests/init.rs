//! `testudo init`: what it writes can be run as it stands, and nothing is written over.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::path::Path;

use testudo_tests::files::text;
use testudo_tests::process::{Ended, run};

const TESTUDO: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/mnist");

fn testudo(arguments: &[&str], mark: &Path) -> Ended {
    run(TESTUDO, arguments, mark)
}

/// From an empty folder to a model that continues a text, with nothing but the program; and what is told of the run to programs.
#[test]
fn an_empty_folder_becomes_a_job_that_trains_as_it_stands() {
    let place = tempfile::tempdir().unwrap();
    let (folder, dir) = (place.path().join("first"), place.path().join("run"));
    let said = testudo(&["init", text(&folder)], &folder).succeeded().stdout;
    let file = folder.join("cluster.toml");
    assert!(said.contains(&format!("next: testudo run {}", file.display())), "{said}");
    let _ = testudo(&["doctor", text(&file)], &file).succeeded();
    // As it stands, on a machine that may stand still.
    let unhurried = ["--set", "cluster.heartbeat_timeout_ms=60000"];
    let run = ["run", text(&file), "--run-dir", text(&dir), "--json", "--quiet"];
    let run = testudo(&[&run[..], &unhurried].concat(), &dir);
    let result = run.succeeded().json();
    // Of eight bits, and the text's bytes are not all as likely.
    assert!(result["bits_per_byte"].as_f64().unwrap() < 5.0, "{result}");
    let sample = testudo(&["sample", text(&dir), "--prompt", "testudo ", "--tokens", "40"], &dir).succeeded();
    assert!(sample.stdout.starts_with("testudo "), "{sample:?}");

    let step = &result["steps"];
    let out = place.path().join("model.safetensors");
    let exported = testudo(&["checkpoint", "export", text(&dir), "--out", text(&out), "--json"], &dir);
    let exported = exported.succeeded().json();
    assert_eq!((&exported["step"], &exported["params_blake3"]), (step, &result["params_blake3"]));
    let parts = place.path().join("parts");
    let opened = testudo(&["checkpoint", "decrypt", text(&dir), "--out", text(&parts), "--json"], &dir);
    let opened = opened.succeeded().json();
    let files = opened["files"].as_array().unwrap();
    assert!(&opened["step"] == step && !files.is_empty(), "{opened}");
    assert!(files.iter().all(|file| Path::new(file.as_str().unwrap()).is_file()), "{opened}");
    let log = testudo(&["audit", "show", text(&dir), "--kind", "join", "--json"], &dir).succeeded().stdout;
    let records: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 3, "a server and two workers: {log}");
    assert!(
        records.iter().all(|record| record["kind"] == "join" && record["body"]["node"].is_string()),
        "{log}"
    );
}

#[test]
fn nothing_is_written_over_and_what_is_refused_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let refused = |arguments: &[&str], why: &str| {
        let ended = testudo(&[&["init"], arguments].concat(), Path::new("/no/mark"));
        assert!(ended.code() == Some(2) && ended.stderr.contains(why), "{arguments:?}: {ended:#?}");
    };
    let _ = testudo(&["init", text(&at("a"))], &at("a")).succeeded();
    let before = std::fs::read(at("a/cluster.toml")).unwrap();
    std::fs::remove_file(at("a/text.txt")).unwrap();
    refused(&[text(&at("a")), "--model", "mlp", "--path", MNIST], "is not written over");
    assert_eq!(std::fs::read(at("a/cluster.toml")).unwrap(), before);
    assert!(!at("a/text.txt").exists());

    std::fs::create_dir(at("b")).unwrap();
    std::fs::write(at("b/text.txt"), "mine").unwrap();
    refused(&[text(&at("b"))], "is not written over: train on it with --path");
    assert!(!at("b/cluster.toml").exists());
    assert_eq!(std::fs::read_to_string(at("b/text.txt")).unwrap(), "mine");
    // A link that leads nowhere is there, too.
    std::os::unix::fs::symlink(at("nowhere"), at("b/cluster.toml")).unwrap();
    refused(&[text(&at("b")), "--path", text(&at("b/text.txt"))], "is not written over");
    assert!(!at("nowhere").exists());

    refused(&[text(&at("c")), "--path", text(&at("no text"))], "no text");
    refused(&[text(&at("c")), "--model", "cnn", "--data", "text"], "cnn trains on mnist, not on text");
    refused(&[text(&at("c")), "--model", "resnet18", "--path", text(&at("b"))], "train-images");
    assert!(!at("c").exists(), "nothing is made before all is known to be right");
}

/// Every model, by the doctor: the cluster file, the data and all that the run would ask for.
#[test]
fn what_is_written_for_mnist_has_no_problem() {
    let place = tempfile::tempdir().unwrap();
    for model in ["mlp", "cnn", "resnet18"] {
        let folder = place.path().join(model);
        let made =
            testudo(&["init", text(&folder), "--model", model, "--path", MNIST, "--all", "--json"], &folder);
        let made = made.succeeded().json();
        let ended = testudo(&["doctor", made["cluster_file"].as_str().unwrap(), "--verbose"], &folder);
        assert!(ended.status.success() && ended.stdout.contains("60000 training"), "{model}: {ended:#?}");
        assert!(ended.stdout.contains("memory: a scheduler "), "{ended:#?}");
    }
}

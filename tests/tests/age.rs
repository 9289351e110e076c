//! Others read our checkpoints, and we read theirs: Debian's `age` opens a part, Python's `safetensors` reads what is in it,
//! and a part that `age` encrypted to the run's key is opened by us.
//!
//! Without `age`, or an interpreter in `TESTUDO_PYTHON` that has safetensors, the test says so and does nothing; with
//! `TESTUDO_REQUIRE_AGE=1` that is a failure.

use std::process::{Command, Stdio};

use testudo::checkpoint::keys::Identities;
use testudo::checkpoint::part::Plaintext;
use testudo_actors::checkpoint::PartReceipt;
use testudo_tests::files::{self, text};
use testudo_tests::process;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Prints each tensor's name and number of values, and whether all are finite.
const LIST: &str = "import sys, numpy\nfrom safetensors.numpy import load_file\n\
                    for name, values in sorted(load_file(sys.argv[1]).items()):\n    \
                    print(name, values.size, numpy.isfinite(values).all())\n";

fn works(program: &str, arguments: &[&str]) -> bool {
    let tried = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// The interpreter, if it and `age` are there.
fn tools() -> Option<String> {
    let python = std::env::var("TESTUDO_PYTHON").ok();
    let python = python.filter(|python| works(python, &["-c", "import numpy, safetensors.numpy"]));
    let found = python.filter(|_| works("age", &["--version"]));
    let required = std::env::var("TESTUDO_REQUIRE_AGE").is_ok_and(|value| value == "1");
    assert!(found.is_some() || !required, "TESTUDO_REQUIRE_AGE=1: install age, and set TESTUDO_PYTHON");
    found
}

#[test]
fn debians_age_opens_ours_and_we_open_its() {
    let Some(python) = tools() else {
        eprintln!("skipped: needs age and, in TESTUDO_PYTHON, an interpreter with NumPy and safetensors");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let run = folder.path().join("run");
    let arguments = [
        "run",
        text(&file),
        "--run-dir",
        text(&run),
        "--set",
        "training.max_steps=20",
        "--quiet",
        "--servers",
        "1",
        // No node counts as dead that is only slow.
        "--set",
        "cluster.heartbeat_timeout_ms=60000",
    ];
    let _ = process::run(PROGRAM, &arguments, &run).succeeded();
    let key = run.join("checkpoint/key.txt");
    let part = run.join("checkpoint/step-00000020/server-0.part.age");
    let opened = folder.path().join("opened.safetensors");
    let age = |arguments: &[&str]| process::run("age", arguments, folder.path()).succeeded();
    let _ = age(&["-d", "-i", text(&key), "-o", text(&opened), text(&part)]);
    let listed = process::run(&python, &["-c", LIST, text(&opened)], folder.path()).succeeded().stdout;
    let rows: Vec<&str> = listed.lines().collect();
    assert_eq!(rows.len(), 12, "weights and velocity of three layers' weights and biases: {listed}");
    for row in &rows {
        let fields: Vec<&str> = row.split(' ').collect();
        assert!(fields[0].starts_with("weights/") || fields[0].starts_with("velocity/"), "{row}");
        assert!(fields[0].ends_with("@0") && fields[2] == "True", "{row}");
    }
    // Our own command writes the same plaintext.
    let out = folder.path().join("out");
    let _ =
        process::run(PROGRAM, &["checkpoint", "decrypt", text(&run), "--out", text(&out)], &run).succeeded();
    assert_eq!(std::fs::read(out.join("server-0.safetensors")).unwrap(), std::fs::read(&opened).unwrap());

    // The other way round: the recipient comes from the key file, as `age-keygen -y` reads it.
    let public = process::run("age-keygen", &["-y", text(&key)], folder.path()).succeeded().stdout;
    let theirs = folder.path().join("theirs.age");
    let _ = age(&["-r", public.trim(), "-o", text(&theirs), text(&opened)]);
    let bytes = std::fs::read(&theirs).unwrap();
    let receipt = PartReceipt { bytes: bytes.len() as u64, blake3: *blake3::hash(&bytes).as_bytes() };
    // The key is whoever's the run became: a copy is ours.
    let ours = folder.path().join("key.txt");
    std::fs::copy(&key, &ours).unwrap();
    let identities = Identities::load(&ours).unwrap();
    let mut plaintext = Plaintext::open(&theirs, receipt, &identities).unwrap();
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut plaintext, &mut read).unwrap();
    plaintext.finish().unwrap();
    assert_eq!(read, std::fs::read(&opened).unwrap());
}

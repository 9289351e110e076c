//! Every input that the fuzzers were given or found, through the same functions, on stable Rust.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use testudo_tests::fuzz::{TARGETS, seeds::seeds};

/// More would make a checkout heavy; `cargo fuzz cmin` keeps what covers more.
const MOST_BYTES: u64 = 1 << 20;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// With `TESTUDO_REGENERATE=1`, writes the seeds first.
#[test]
fn nothing_in_the_corpora_breaks_a_promise() {
    let mut total = 0;
    for (target, run) in TARGETS {
        let folder = corpus(target);
        if std::env::var_os("TESTUDO_REGENERATE").is_some() {
            fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in seeds(target) {
                fs::write(folder.join(format!("seed-{name}")), bytes).unwrap();
            }
        }
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut inputs = 0;
        for entry in entries {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            run(&bytes);
            total += bytes.len() as u64;
            inputs += 1;
        }
        assert!(inputs > 0, "{target} has no corpus");
        eprintln!("{target}: {inputs} inputs");
    }
    assert!(total <= MOST_BYTES, "{total} bytes of corpora");
}

/// Seeds of today, whatever the committed ones were made by.
#[test]
fn seeds_keep_every_promise() {
    for (target, run) in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for (_, bytes) in seeds {
            run(&bytes);
        }
    }
}

#[test]
fn every_target_has_a_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut fuzzers: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    fuzzers.sort();
    let mut targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(fuzzers, targets);
}

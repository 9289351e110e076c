//! Class G, checkpoints: a run's own checkpoints, spoiled. `testudo checkpoint verify` and `testudo run --resume` refuse each and
//! leave everything as it was; a run that was killed goes on from its last whole checkpoint to the bits of an unbroken one.
//!
//! The attacker is who can write the run directory. A crash at every single write is simulated in
//! `runtime/src/checkpoint/tests/crash.rs`, and hostile headers under a good hash, which take the run's keys, are in
//! `runtime/src/checkpoint/part/tests.rs`.

use std::path::{Path, PathBuf};

use testudo_tests::files;
use testudo_tests::files::text;
use testudo_tests::process::{self, Signal, nodes, send};

use crate::PROGRAM;
use crate::artefacts::{Artefacts, flip};

/// Steps of the run, and between its checkpoints.
const STEPS: u64 = 40;
const EVERY: u64 = 10;
/// What age encrypts at a time, with its tag (the format's STREAM).
const BLOCK: usize = 64 * 1024 + 16;

fn step(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoint/step-{step:08}"))
}

fn part(run: &Path) -> PathBuf {
    step(run, STEPS).join("server-0.part.age")
}

/// Where the first encrypted block of an age file begins: after the header's last line and a nonce of 16 bytes.
fn payload(file: &[u8]) -> usize {
    let end = file.windows(4).position(|w| w == b"\n---").unwrap() + 4;
    let line = file[end..].iter().position(|b| *b == b'\n').unwrap();
    end + line + 1 + 16
}

fn cut(path: &Path, length: impl FnOnce(&[u8]) -> usize) {
    let bytes = std::fs::read(path).unwrap();
    let length = length(&bytes);
    assert!(length < bytes.len(), "{length} of {} bytes is no cut", bytes.len());
    std::fs::write(path, &bytes[..length]).unwrap();
}

fn swap(one: &Path, other: &Path) {
    let aside = one.with_extension("aside");
    std::fs::rename(one, &aside).unwrap();
    std::fs::rename(other, one).unwrap();
    std::fs::rename(&aside, other).unwrap();
}

#[test]
fn class_g_checkpoints() {
    let (steps, every) = (format!("training.max_steps={STEPS}"), format!("checkpoint.every_steps={EVERY}"));
    let wide = "model.hidden=[256, 256]";
    let set = ["--set", &steps, "--set", &every, "--set", wide, "--set", "checkpoint.keep_last=4"];
    let mut run = Artefacts::train(&set);
    let verify: (&[&str], i32, &[&str]) = (&["checkpoint", "verify", "DIR"], 1, &["step", "head"]);
    let resume: (&[&str], i32, &[&str]) =
        (&["run", "--resume", "DIR", "--quiet", "--set", "training.max_steps=50"], 2, &["checkpoint"]);
    let both = [verify, resume];

    for place in [0, 100, 5_000, usize::MAX] {
        run.case(&format!("a bit of a part, at {place}"), |run| flip(&part(run), place), &both);
    }
    run.case("a bit of the manifest", |run| flip(&step(run, STEPS).join("manifest.json"), 300), &both);
    run.case(
        "a bit of the manifest's signature",
        |run| flip(&step(run, STEPS).join("manifest.sig"), 40),
        &both,
    );
    run.case("a part without its last block", |run| cut(&part(run), |f| f.len() - BLOCK), &both);
    run.case(
        "a part cut on a block boundary",
        |run| {
            cut(&part(run), |file| {
                let blocks = (file.len() - payload(file)) / BLOCK;
                assert!(blocks >= 2, "{} bytes have no boundary to cut at", file.len());
                payload(file) + BLOCK * (blocks - 1)
            });
        },
        &both,
    );
    run.case("a part of no block", |run| cut(&part(run), payload), &both);
    run.case("an empty part", |run| cut(&part(run), |_| 0), &both);
    run.case("no part", |run| std::fs::remove_file(part(run)).unwrap(), &both);
    run.case(
        "a part that is a link",
        |run| {
            let moved = run.join("moved");
            std::fs::rename(part(run), &moved).unwrap();
            std::os::unix::fs::symlink(&moved, part(run)).unwrap();
        },
        &both,
    );
    run.case(
        "parts of two servers, swapped",
        |run| swap(&part(run), &step(run, STEPS).join("server-1.part.age")),
        &both,
    );
    run.case(
        "a part of an earlier step",
        |run| {
            std::fs::copy(step(run, STEPS - EVERY).join("server-0.part.age"), part(run)).unwrap();
        },
        &both,
    );
    run.case("steps swapped", |run| swap(&step(run, STEPS), &step(run, STEPS - EVERY)), &both);
    run.case("a rollback", |run| std::fs::remove_dir_all(step(run, STEPS)).unwrap(), &both);
    run.case(
        "a rollback, and the head away",
        |run| {
            std::fs::remove_dir_all(step(run, STEPS)).unwrap();
            std::fs::remove_file(run.join("checkpoint/head.json")).unwrap();
        },
        &both,
    );
    run.case("a bit of the head", |run| flip(&run.join("checkpoint/head.json"), 60), &both);
    run.case(
        "a hostile header in place of a part",
        |run| {
            let header =
                [&u64::MAX.to_le_bytes()[..], b"{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296]"];
            std::fs::write(part(run), header.concat()).unwrap();
        },
        &both,
    );
    run.finish();
}

/// Killed without warning, launcher and nodes, again and again: each time it goes on, and the end is that of an unbroken run.
#[test]
fn class_g_a_killed_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let at = |name: &str| folder.path().join(name);
    let set = ["--json", "--quiet", "--set", "training.max_steps=1200", "--set", "checkpoint.every_steps=20"];
    let whole = at("whole");
    let arguments = [&["run", text(&file), "--run-dir", text(&whole)], &set[..]].concat();
    let whole = process::run(PROGRAM, &arguments, &whole).succeeded().json();

    let run = at("killed");
    let mut begin = vec!["run", text(&file), "--run-dir", text(&run)];
    for kills in 1..=3_u64 {
        let mut started = process::start(PROGRAM, &[&begin, &set[..]].concat(), &run);
        let newest =
            |run: &Path| (1..60).rev().map(|n| n * 20).find(|n| step(run, *n).join("manifest.json").exists());
        started.until("a newer checkpoint", |run| (newest(run)? >= 200 * kills).then_some(()));
        let victims = nodes(&run);
        send(started.pid(), Signal::KILL);
        victims.iter().for_each(|node| send(node.pid, Signal::KILL));
        let _ = started.wait();
        process::assert_nothing_left(&run);
        begin = vec!["run", "--resume", text(&run)];
    }
    let result = process::run(PROGRAM, &[&begin, &set[..]].concat(), &run).succeeded().json();
    assert_eq!(result["params_blake3"], whole["params_blake3"]);
    assert!(result["resumed_from_step"].as_u64().unwrap() >= 600, "{result}");
}

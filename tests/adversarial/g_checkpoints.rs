//! Class G, checkpoints: a run's own checkpoints, spoiled. `testudo checkpoint verify` and `testudo run --resume` refuse each and
//! leave everything as it was; a run that was killed goes on from its last whole checkpoint to the bits of an unbroken one.
//!
//! The attacker is who can write the run directory. A crash at every single write is simulated in
//! `runtime/src/checkpoint/tests/crash.rs`, and hostile headers under a good hash, which take the run's keys, are `g_headers.rs`.

use std::path::{Path, PathBuf};

use testudo_tests::files;
use testudo_tests::files::text;
use testudo_tests::process::{self, Signal, nodes, send};

use crate::PROGRAM;
use crate::artefacts::{Artefacts, Expected, another, flip};

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
    // On a slow disk a checkpoint is left out where the one before it is not there yet: such a run is made anew.
    let has_all = |run: &Artefacts| made(&run.path()).len() as u64 == STEPS / EVERY;
    let mut run =
        (0..20).map(|_| Artefacts::train(&set)).find(has_all).expect("a run with all of its checkpoints");
    // What both say of the newest checkpoint, or what each says.
    let verify = ["checkpoint", "verify", "DIR"];
    let resume = ["run", "--resume", "DIR", "--quiet", "--set", "training.max_steps=50"];
    let mut refused = |what: &str, spoil: &dyn Fn(&Path), says: &[&str], of_resume: &[&str]| {
        let of_resume = if of_resume.is_empty() { says } else { of_resume };
        run.case(what, spoil, &[Expected(&verify, 1, says), Expected(&resume, 2, of_resume)]);
    };

    let hash = ["step-00000040/server-0.part.age: its BLAKE3 is not the manifest's"];
    for place in [0, 100, 5_000, usize::MAX] {
        refused(&format!("a bit of a part, at {place}"), &|run| flip(&part(run), place), &hash, &[]);
    }
    let manifest = |run: &Path| step(run, STEPS).join("manifest.json");
    refused(
        "a number in the manifest",
        &|run| {
            let text = std::fs::read_to_string(manifest(run)).unwrap();
            let more = text.replace("\"samples\": 2560", "\"samples\": 2561");
            assert_ne!(text, more);
            std::fs::write(manifest(run), more).unwrap();
        },
        &["step-00000040/manifest.json: signature does not verify under"],
        &["audit log does not hold", "step-00000040/manifest.json: the log names manifest"],
    );
    let signature = |run: &Path| step(run, STEPS).join("manifest.sig");
    refused(
        "a letter of the manifest's signature",
        &|run| another(&signature(run), "\"signature\": \"", 40),
        &["step-00000040/manifest.json: signature does not verify under"],
        &[],
    );
    refused(
        "the signer's certificate, changed",
        &|run| {
            let text = std::fs::read_to_string(signature(run)).unwrap();
            let end = text.find("\",\n").unwrap();
            another(&signature(run), "\"certificate\": \"", end - "{\n  \"certificate\": \"".len() - 12);
        },
        &["step-00000040/manifest.json: certificate does not chain to the job's CA", "BadSignature"],
        &[],
    );
    let size = ["step-00000040/server-0.part.age: ", " bytes, the manifest says "];
    refused("a part without its last block", &|run| cut(&part(run), |f| f.len() - BLOCK), &size, &[]);
    refused(
        "a part cut on a block boundary",
        &|run| {
            cut(&part(run), |file| {
                let blocks = (file.len() - payload(file)) / BLOCK;
                assert!(blocks >= 2, "{} bytes have no boundary to cut at", file.len());
                payload(file) + BLOCK * (blocks - 1)
            });
        },
        &size,
        &[],
    );
    refused("a part of no block", &|run| cut(&part(run), payload), &size, &[]);
    refused("an empty part", &|run| cut(&part(run), |_| 0), &[size[0], ": 0 bytes, the manifest says "], &[]);
    refused(
        "no part",
        &|run| std::fs::remove_file(part(run)).unwrap(),
        &["cannot open", "step-00000040/server-0.part.age: No such file"],
        &[],
    );
    refused(
        "a part that is a link",
        &|run| {
            let moved = run.join("moved");
            std::fs::rename(part(run), &moved).unwrap();
            std::os::unix::fs::symlink(&moved, part(run)).unwrap();
        },
        &["cannot open", "step-00000040/server-0.part.age: Too many levels of symbolic links"],
        &[],
    );
    refused(
        "parts of two servers, swapped",
        &|run| swap(&part(run), &step(run, STEPS).join("server-1.part.age")),
        &size,
        &[],
    );
    refused(
        "a part of an earlier step",
        &|run| {
            std::fs::copy(step(run, STEPS - EVERY).join("server-0.part.age"), part(run)).unwrap();
        },
        // Its size may be the same: how much age adds is chosen by chance.
        &["step-00000040/server-0.part.age: ", "the manifest"],
        &[],
    );
    refused(
        "steps swapped",
        &|run| swap(&step(run, STEPS), &step(run, STEPS - EVERY)),
        &[
            "step-00000030/manifest.json cannot be read: it is of step 40",
            "step-00000040/manifest.json cannot be read: it is of step 30",
        ],
        &["audit log does not hold", "step-00000030/manifest.json: the log names manifest"],
    );
    let gone = ["audit log does not hold", "step-00000040/manifest.json: it is gone, and no record says"];
    refused(
        "a rollback",
        &|run| std::fs::remove_dir_all(step(run, STEPS)).unwrap(),
        &["was rolled back: the checkpoint at step 40 was the newest and is not there"],
        &gone,
    );
    refused(
        "a rollback, and the head away",
        &|run| {
            std::fs::remove_dir_all(step(run, STEPS)).unwrap();
            std::fs::remove_file(run.join("checkpoint/head.json")).unwrap();
        },
        &["was rolled back: head.json, which says what is the newest, is gone"],
        &gone,
    );
    refused(
        "a letter of the head's signature",
        &|run| another(&run.join("checkpoint/head.json"), "\"signature\": \"", 40),
        &["checkpoint/head.json: signature does not verify under"],
        &[],
    );
    refused(
        "what is no part in the place of one",
        &|run| std::fs::write(part(run), [&u64::MAX.to_le_bytes()[..], b"{}"].concat()).unwrap(),
        &[size[0], ": 10 bytes, the manifest says "],
        &[],
    );
    run.finish();
}

/// The steps whose checkpoints have a manifest, the newest first.
fn made(run: &Path) -> Vec<u64> {
    let folders = std::fs::read_dir(run.join("checkpoint")).into_iter().flatten().flatten();
    let made = folders.filter(|folder| folder.path().join("manifest.json").exists());
    let number =
        |folder: std::fs::DirEntry| folder.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let mut steps: Vec<u64> = made.filter_map(number).collect();
    steps.sort_unstable();
    steps.reverse();
    steps
}

/// Killed without warning, launcher and nodes, again and again: each time it goes on, and the end is that of an unbroken run.
#[test]
fn class_g_a_killed_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let at = |name: &str| folder.path().join(name);
    let set = ["--json", "--quiet", "--set", "checkpoint.every_steps=20", "--set"];
    let run = at("killed");
    let mut begin = vec!["run", text(&file), "--run-dir", text(&run)];
    for kills in 1..=3_u64 {
        // Far more steps than are taken until it is killed, however late that is.
        let arguments = [&begin[..], &set, &["training.max_steps=10000000"]].concat();
        let mut started = process::start(PROGRAM, &arguments, &run);
        // Of the newest, only the manifest may be there: the one before it is whole.
        started.until("a newer checkpoint", |run| {
            made(run).get(1).filter(|step| **step >= 200 * kills).copied()
        });
        let victims = nodes(&run);
        send(started.pid(), Signal::KILL);
        victims.iter().for_each(|node| send(node.pid, Signal::KILL));
        let _ = started.wait();
        process::assert_nothing_left(&run);
        begin = vec!["run", "--resume", text(&run)];
    }
    let steps = format!("training.max_steps={}", made(&run)[0] + 100);
    let arguments = [&begin[..], &set, &[steps.as_str()]].concat();
    let result = process::run(PROGRAM, &arguments, &run).succeeded().json();
    let whole = at("whole");
    let unbroken = ["run", text(&file), "--run-dir", text(&whole)];
    let arguments = [&unbroken[..], &set, &[steps.as_str()]].concat();
    let whole = process::run(PROGRAM, &arguments, &whole).succeeded().json();
    assert_eq!(result["params_blake3"], whole["params_blake3"]);
    assert!(result["resumed_from_step"].as_u64().unwrap() >= 600, "{result}");
}

//! Class E, a full disk: for a while no file of a node may grow. Training goes on, nothing that was to be written is lost, and
//! the run has an undisturbed one's bits.
//!
//! The disk is made full with `RLIMIT_FSIZE`, node by node, from outside and while they run: what they write fails as on a disk
//! without room (EFBIG in the place of ENOSPC), without rights to mount one.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testudo_tests::collector::Collector;
use testudo_tests::files::{self, text};
use testudo_tests::live::{MEMORY, peak, until};
use testudo_tests::process::{self, Ended, NodeProcess};

use crate::PROGRAM;

/// Steps that are taken before the disk is full, and while it is.
const STEPS: u64 = 200;

/// Longer than the whole test, on any machine.
const LIFE: Duration = Duration::from_secs(900);

/// From one checkpoint to the next.
const EVERY: u64 = 50;

/// So many bytes may the files of `nodes` have, or as many as they like. A process may set that for those of its own user, so
/// util-linux's `prlimit` does it as the user that the node is.
fn limit(nodes: &[NodeProcess], bytes: &str) {
    for node in nodes {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid)).unwrap();
        let number = |name: &str| -> u32 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let mut command = Command::new("prlimit");
        command.args(["--pid", &node.pid.to_string(), &format!("--fsize={bytes}:unlimited")]);
        if number("Uid:") != rustix::process::geteuid().as_raw() {
            command.gid(number("Gid:")).uid(number("Uid:"));
        }
        let ended = command.output().expect("prlimit of util-linux is there");
        assert!(ended.status.success(), "{ended:?}");
    }
}

/// The command line with these arguments, to its end and in order.
fn testudo(arguments: &[&str]) -> Ended {
    process::run(PROGRAM, arguments, Path::new("/no/mark")).succeeded()
}

/// Steps taken, by the word of the scheduler, who is not asked too often: an address has so many handshakes a second.
fn taken(run: &Path) -> u64 {
    std::thread::sleep(Duration::from_millis(300));
    let report = testudo(&["status", text(run), "--json"]).json();
    report["step"].as_u64().unwrap_or_else(|| panic!("no step in {report}"))
}

/// The newest checkpoint that is whole.
fn newest(run: &Path) -> Option<u64> {
    let told = process::run(PROGRAM, &["checkpoint", "list", text(run), "--json"], Path::new("/no/mark"));
    let list: Value = serde_json::from_str(&told.stdout).ok()?;
    list["checkpoints"].as_array()?.iter().filter_map(|checkpoint| checkpoint["step"].as_u64()).max()
}

/// Files in the folders of checkpoints that have not got their names yet.
fn half_written(run: &Path) -> usize {
    let folders = std::fs::read_dir(run.join("checkpoint")).unwrap().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.path())).flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|end| end == "tmp")).count()
}

#[test]
fn class_e_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (file, run) = (files::write_job(folder.path()), folder.path().join("run"));
    let every = format!("checkpoint.every_steps={EVERY}");
    let options = ["--set", "training.max_steps=1000000", "--set", &every, "--json", "--quiet"];
    let Some(collector) = Collector::start() else { return };
    let arguments = [&["run", text(&file), "--run-dir", text(&run)], options.as_slice()].concat();
    let started = process::start_in(PROGRAM, &arguments, &run, &collector.environment()).patient(LIFE);
    until("a checkpoint", || newest(&run).filter(|step| *step >= STEPS));
    let nodes = process::nodes(&run);
    assert_eq!(nodes.len(), 5, "{nodes:?}");
    let calm: Vec<u64> = nodes.iter().map(|node| peak(node.pid).unwrap()).collect();

    let parts = |server: &str, outcome: &str| -> f64 {
        let parts = collector.newest(server, "testudo.checkpoint.parts");
        parts.get(&format!("outcome={outcome}")).copied().unwrap_or_default()
    };
    let made = || collector.number("scheduler/0", "testudo.checkpoints").unwrap_or_default();
    let servers = ["server/0", "server/1"];
    assert_eq!(servers.map(|server| parts(server, "failed")), [0.0; 2]);

    limit(&nodes, "0");
    // What was under way when the disk filled is over a checkpoint later.
    let (full, before) = (taken(&run), process::steps(&run));
    let again =
        until("steps while the disk is full", || Some(taken(&run)).filter(|now| *now >= full + STEPS));
    let written = process::steps(&run) as u64;
    assert!(written < again, "the disk is full: {before}, {written} of {again} steps are in metrics.jsonl");
    let kept = until("a list of checkpoints", || newest(&run));
    assert!(kept < again, "no checkpoint is made on a full disk: {kept}");
    until("a moment at which nothing lies about half written", || (half_written(&run) == 0).then_some(()));
    until("failed parts in the metrics of some server", || {
        servers.iter().any(|server| parts(server, "failed") > 0.0).then_some(())
    });
    let before = (servers.map(|server| parts(server, "written")), made());
    // Those before are whole.
    let _ = testudo(&["checkpoint", "verify", text(&run)]);

    limit(&nodes, "unlimited");
    until("another checkpoint", || newest(&run).filter(|step| *step > again));
    until("parts and checkpoints in the metrics", || {
        let written = servers.iter().zip(before.0).all(|(server, before)| parts(server, "written") > before);
        (written && made() > before.1).then_some(())
    });
    for (node, calm) in nodes.iter().zip(calm) {
        let now = peak(node.pid).unwrap_or_else(|| panic!("{node:?} has ended"));
        assert!(now < calm + MEMORY, "{node:?} grew from {calm} to {now} bytes");
    }
    let _ = testudo(&["stop", text(&run)]);
    let summary = started.wait().succeeded().json();
    let steps = summary["steps"].as_u64().unwrap();

    // What waited for the disk is in metrics.jsonl and in the audit log, whole and in order.
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap();
    let numbers: Vec<u64> = metrics.lines().map(step).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&steps)));
    assert!((1..=full + STEPS).all(|step| numbers.binary_search(&step).is_ok()), "{numbers:?}");
    let report = testudo(&["audit", "verify", text(&run), "--json"]).json();
    assert_eq!(report["good"], true, "{report}");
    assert_eq!(report["head"], summary["audit_head"]);
    let log = std::fs::read_to_string(run.join("logs/scheduler-0.log")).unwrap();
    assert!(log.contains("the audit log is written again"), "{log}");
    assert!(!log.contains("panicked") && !log.contains(" ERROR "), "{log}");

    let calm = folder.path().join("undisturbed");
    let steps = format!("training.max_steps={steps}");
    let arguments =
        ["run", text(&file), "--run-dir", text(&calm), "--set", &steps, "--set", &every, "--json", "--quiet"];
    let undisturbed = process::run(PROGRAM, &arguments, &calm).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"]);
}

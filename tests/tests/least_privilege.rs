//! What a run's processes are left with, as the kernel tells it of live ones.
//!
//! Some of this takes root to set up: those tests say so and check nothing for others.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use testudo_tests::files;
use testudo_tests::process::{self, Started, assert_nothing_left, nodes, steps};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Debian's `nobody`; any number but root's would do.
const NOBODY: u32 = 65534;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not checked: this takes root to set up");
    }
    root
}

/// What `/proc/PID/status` says of `name`.
fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Asserts what holds for every process of a run, whoever started it.
fn assert_hardened(pid: u32) {
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "CapAmb"), "0000000000000000");
    assert_eq!(status(pid, "CapInh"), "0000000000000000");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "{limits}");
}

/// Waits until the run is under way; the launcher and every node.
fn processes(run: &mut Started) -> Vec<u32> {
    run.until("steps", |dir| (steps(dir) >= 3).then_some(()));
    let nodes = run.until("all nodes", |dir| Some(nodes(dir)).filter(|nodes| nodes.len() == 5));
    std::iter::once(run.pid()).chain(nodes.iter().map(|node| node.pid)).collect()
}

/// Stops the run, and asserts that every log has the line of what holds, with `parts` in it.
fn ends_and_says(run: Started, dir: &Path, parts: &[&str]) {
    run.signal(process::Signal::INT);
    let ended = run.wait().succeeded();
    let mut said = vec![ended.stderr];
    for node in ["scheduler-0", "server-0", "server-1", "worker-0", "worker-1"] {
        said.push(std::fs::read_to_string(dir.join(format!("logs/{node}.log"))).unwrap());
    }
    for said in said {
        let line = said.lines().find(|line| line.contains("protections that hold: "));
        let line = line.unwrap_or_else(|| panic!("it does not say what holds: {said}"));
        for part in parts {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
    }
    assert_nothing_left(dir);
}

/// Attack class I: no core dump, no tracing, no way up.
#[test]
fn every_process_gives_away_what_it_does_not_need_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let mut run = process::start(PROGRAM, &["run", text(&file), "--run-dir", text(&dir)], &dir);
    for pid in processes(&mut run) {
        assert_hardened(pid);
    }
    ends_and_says(run, &dir, &["no_new_privs", "no core dumps", "memory closed to other processes"]);
}

/// A place that `nobody` can reach and write, with the program in it.
struct Nobodys {
    folder: tempfile::TempDir,
    program: PathBuf,
    file: PathBuf,
}

impl Nobodys {
    fn new() -> Nobodys {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("testudo");
        std::fs::copy(PROGRAM, &program).unwrap();
        let file = files::write_job(folder.path());
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        Nobodys { folder, program, file }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run that `nobody` starts, by `setpriv` with these options more.
    fn start(&self, name: &str, options: &[&str]) -> Started {
        let dir = self.dir(name);
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let run = [text(&self.program), "run", text(&self.file), "--run-dir", text(&dir)];
        process::start("setpriv", &[&user[..], options, &run].concat(), &dir)
    }
}

/// Capabilities that a service manager hands to an unprivileged process go, the inheritable and ambient ones too; and whoever
/// shares its user can read neither its memory nor its environment.
#[test]
fn capabilities_that_are_handed_down_are_dropped() {
    if !is_root() {
        return;
    }
    let place = Nobodys::new();
    let more = ["--inh-caps=+net_bind_service,+sys_ptrace", "--ambient-caps=+net_bind_service,+sys_ptrace"];
    let mut run = place.start("run", &more);
    for pid in processes(&mut run) {
        assert_hardened(pid);
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(status(pid, set), "0000000000000000");
        }
        assert!(status(pid, "Uid").starts_with("65534\t65534\t65534"));
        let environment = format!("/proc/{pid}/environ");
        let peek = process::run(
            "setpriv",
            &["--reuid=65534", "--regid=65534", "--clear-groups", "cat", &environment],
            &place.dir("none"),
        );
        assert!(!peek.status.success() && peek.stderr.contains("Permission denied"), "{peek:?}");
    }
    ends_and_says(
        run,
        &place.dir("run"),
        &["runs as nobody (65534)", "an unprivileged user, no capabilities"],
    );
}

//! A run of the small job that goes on far longer than a test looks at it, and an operator's commands on it.

use std::path::{Path, PathBuf};

use testudo_tests::attacker::Attacker;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Started, UNHURRIED};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Far longer than any test looks at it.
pub(crate) const STEPS: &str = "training.max_steps=100000";

/// A cluster file and a place for its runs, gone when the test is over.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    pub(crate) fn start(&self, name: &str, options: &[&str]) -> (Started, PathBuf) {
        let dir = self.folder.path().join(name);
        let first = ["run", text(&self.file), "--run-dir", text(&dir), "--json", "--quiet"];
        (process::start(PROGRAM, &[&first[..], &UNHURRIED, options].concat(), &dir), dir)
    }
}

/// Runs an operator's command on the run in `dir`.
pub(crate) fn operate(command: &str, dir: &Path, options: &[&str]) -> Ended {
    process::run(PROGRAM, &[&[command, text(dir)], options].concat(), Path::new("/no/mark"))
}

/// Has a run take the keys that strangers in Python can agree on, so that they come as far as their certificates.
#[allow(dead_code, reason = "not every test of a steered run has strangers")]
pub(crate) const FOR_STRANGERS: [&str; 2] = ["--set", "transport.key_exchange=\"pq-first\""];

/// Has `count` strangers, whom the job's CA does not know, knock at the door of the scheduler of the run in `dir` until each is turned away.
#[allow(dead_code, reason = "not every test of a steered run has strangers")]
pub(crate) fn strangers(attacker: &Attacker, dir: &Path, count: u32) {
    let control = std::fs::read_to_string(dir.join("control.json")).unwrap();
    let control: serde_json::Value = serde_json::from_str(&control).unwrap();
    let address: std::net::SocketAddr = control["scheduler"].as_str().unwrap().parse().unwrap();
    for _ in 0..count {
        let order = serde_json::json!({
            "target": [address.ip().to_string(), address.port()],
            "name": "spiffe://elsewhere.example/job/other/worker/0",
            "expect": control["identity"],
        });
        let closed = attacker.attack("handshake.stranger", order);
        assert_eq!(closed["code"], 0x100 + 48, "TLS's alert of an unknown CA: {closed}");
    }
}

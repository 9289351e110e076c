//! A cluster that is started node by node, and what it goes on from when it has lost a server: a checkpoint that its operator signs for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Signal, Started};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

const NODES: [(&str, u32); 5] =
    [("scheduler", 0), ("server", 0), ("server", 1), ("worker", 0), ("worker", 1)];

/// The files of a cluster whose nodes have one run directory.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = files::write_job(folder.path());
        let job = std::fs::read_to_string(&file).unwrap() + "\n[checkpoint]\nevery_steps = 10\n";
        std::fs::write(&file, job).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let place = Place { folder };
        place.authority("ca", "id");
        for (role, index) in NODES {
            place.issue("ca", "id", role, &index.to_string());
        }
        place.issue("ca", "id", "actor", "audit");
        let _ = place.job(&[text(&file), "--identity", text(&place.at("id/operator-0"))]).succeeded();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An authority in `ca`, and an operator's identity in `ids`.
    fn authority(&self, ca: &str, ids: &str) {
        let _ = testudo(&["pki", "init", text(&self.at(ca)), "--job", "small"]).succeeded();
        std::fs::create_dir(self.at(ids)).unwrap();
        self.issue(ca, ids, "operator", "0");
    }

    fn issue(&self, ca: &str, ids: &str, role: &str, name: &str) {
        let (ca, out) = (self.at(ca), self.at(ids).join(format!("{role}-{name}")));
        let issue = ["pki", "issue", "--ca", text(&ca), "--role", role, "--name", name, "--out", text(&out)];
        let _ = testudo(&issue).succeeded();
    }

    fn job(&self, options: &[&str]) -> Ended {
        testudo(&[&["job"], options].concat())
    }

    /// Starts every node; the scheduler, which is the first of them, has `job`. Also says where the scheduler is.
    fn start(&self, life: &str, job: &str) -> (Vec<Started>, String) {
        let (mut nodes, mut scheduler) = (Vec::new(), String::new());
        for (role, index) in NODES {
            let log = self.at(&format!("{role}-{index}-{life}.log"));
            let [config, run, job, summary, audit] =
                ["small.toml", "run", job, "run/summary.json", "id/actor-audit"].map(|name| self.at(name));
            let (identity, index) = (self.at(&format!("id/{role}-{index}")), index.to_string());
            let mut line = vec!["node", "--role", role, "--index", &index, "--config", text(&config)];
            line.extend(["--run-dir", text(&run), "--identity", text(&identity), "--log", text(&log)]);
            match role {
                "scheduler" => line.extend([
                    "--job",
                    text(&job),
                    "--summary",
                    text(&summary),
                    "--audit-identity",
                    text(&audit),
                ]),
                _ => line.extend(["--scheduler", &scheduler]),
            }
            let mut started = process::start(PROGRAM, &line, &log);
            if role == "scheduler" {
                scheduler = started.until("the scheduler's address", |log| {
                    let log = std::fs::read_to_string(log).ok()?;
                    Some(log.split_once("address=")?.1.split_whitespace().next()?.to_owned())
                });
            }
            nodes.push(started);
        }
        (nodes, scheduler)
    }

    /// The steps of whole checkpoints, in order.
    fn checkpoints(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(self.at("run/checkpoint")) else { return Vec::new() };
        let whole = entries.flatten().filter(|entry| entry.path().join("manifest.json").exists());
        let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
        let mut steps: Vec<u64> = whole.filter_map(|entry| step(entry.file_name())).collect();
        steps.sort_unstable();
        steps
    }
}

fn testudo(arguments: &[&str]) -> Ended {
    process::run(PROGRAM, arguments, Path::new("/no/mark"))
}

fn flip_last_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A server's death ends all nodes, with a status that says so. An operator signs from where the job goes on: from the newest checkpoint
/// that is undamaged and of his own authority. It then ends with the bits of a run that nothing happened to, and leaves a summary.
#[test]
fn a_cluster_that_lost_a_server_goes_on_from_the_checkpoint_that_is_signed_for() {
    let place = Place::new();
    let (mut nodes, _) = place.start("first", "small.job");
    nodes[0].until("two checkpoints", |_| (place.checkpoints().len() >= 2).then_some(()));
    nodes[2].signal(Signal::KILL);
    let ended: Vec<Ended> = nodes.into_iter().map(Started::wait).collect();
    assert_eq!(ended[0].code(), Some(5), "{:#?}", ended[0]);
    assert!(ended[0].stderr.contains("server/1 was lost"), "{}", ended[0].stderr);
    let run = place.at("run");
    assert_eq!(std::fs::read(run.join("summary.json")).unwrap(), b"", "nothing was come to");

    // Not by word of another authority, nor from what is not there.
    place.authority("other-ca", "other");
    let (file, out) = (place.at("small.toml"), place.at("resumed.job"));
    let other = place.at("other/operator-0");
    let sign = |operator: &Path, what: &[&str], from: &Path| {
        let fixed = ["--identity", text(operator), "--resume", text(from), "--out", text(&out), "--json"];
        place.job(&[what, &fixed].concat())
    };
    let refused = sign(&other, &[text(&file)], &run);
    assert!(
        refused.code() == Some(2) && refused.stderr.contains("does not chain to the job's CA"),
        "{refused:#?}"
    );
    let (operator, signed) = (place.at("id/operator-0"), place.at("small.job"));
    let again = ["--signed", text(&signed)];
    let refused = sign(&operator, &again, &place.at("id"));
    assert!(refused.code() == Some(2) && refused.stderr.contains("no whole checkpoint"), "{refused:#?}");
    assert!(!out.exists());

    // What is damaged is passed over.
    let [.., before, newest] = place.checkpoints()[..] else { panic!("two checkpoints") };
    flip_last_byte(&run.join(format!("checkpoint/step-{newest:08}/server-0.part.age")));
    let said = sign(&operator, &again, &run).succeeded();
    assert_eq!(said.json()["resumed_from_step"], before, "{said:#?}");
    assert!(said.stderr.contains(&format!("step {newest} is passed over")), "{said:#?}");

    let (mut nodes, scheduler) = place.start("second", "resumed.job");
    let wanted = usize::try_from(newest).unwrap() + 10;
    nodes[0].until("more steps", |_| (process::steps(&run) >= wanted).then_some(()));
    let stop = ["stop", "--scheduler", &scheduler, "--identity", text(&operator), "--config", text(&file)];
    let _ = testudo(&stop).succeeded();
    for node in nodes {
        let _ = node.wait().succeeded();
    }
    let log = std::fs::read_to_string(place.at("scheduler-0-second.log")).unwrap();
    assert!(log.contains(&format!("resuming from step {before} of")), "{log}");
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["resumed_from_step"], before);
    assert_eq!(summary["steps"], process::steps(&run), "each step stands once in metrics.jsonl");
    let verified = testudo(&["audit", "verify", text(&run)]).succeeded().stdout;
    assert!(verified.contains(summary["audit_head"].as_str().unwrap()), "{verified}");

    let (local, steps) = (place.at("local"), format!("training.max_steps={}", summary["steps"]));
    let whole = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &steps];
    let undisturbed = process::run(PROGRAM, &whole, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"], "{log}");
}

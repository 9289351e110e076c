//! A cluster that is started node by node, and what it goes on from when it has lost a server: a checkpoint that its operator signs for.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
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

    /// What becomes of a scheduler that is started alone, in `run` and for `job`, and is not to come up.
    fn scheduler(&self, run: &str, job: &str, audit: &str) -> Ended {
        let [config, run, job, audit, identity, log, summary] =
            ["small.toml", run, job, audit, "id/scheduler-0", "refused.log", &format!("{run}/summary.json")]
                .map(|name| self.at(name));
        let line = ["node", "--role", "scheduler", "--index", "0", "--config", text(&config)];
        let places = ["--run-dir", text(&run), "--identity", text(&identity), "--log", text(&log)];
        let others = ["--job", text(&job), "--summary", text(&summary), "--audit-identity", text(&audit)];
        process::run(PROGRAM, &[&line[..], &places, &others].concat(), &log)
    }

    /// What a scheduler must not change before it knows that the run is its own.
    fn kept(&self, run: &str) -> [(u64, Vec<u8>); 2] {
        ["metrics.jsonl", "summary.json"].map(|name| {
            let path = self.at(run).join(name);
            (std::fs::metadata(&path).unwrap().ino(), std::fs::read(&path).unwrap())
        })
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
    for dismissed in [&ended[1], &ended[3], &ended[4]] {
        assert_eq!(dismissed.code(), Some(6), "it may be started again: {dismissed:#?}");
    }
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
    let refused_by = |refused: Ended, why: &str| {
        assert!(refused.code() == Some(2) && refused.stderr.contains(why), "{why}: {refused:#?}");
    };
    refused_by(sign(&other, &[text(&file)], &run), "not among those given");
    let log = run.join("audit.log");
    std::fs::rename(&log, place.at("audit.log")).unwrap();
    refused_by(sign(&other, &[text(&file)], &run), "does not chain to the job's CA");
    std::fs::rename(place.at("audit.log"), &log).unwrap();
    let (operator, signed) = (place.at("id/operator-0"), place.at("small.job"));
    let again = ["--signed", text(&signed)];
    refused_by(sign(&operator, &again, &place.at("id")), "no whole checkpoint");
    // Nor by word of a scheduler whose certificate has been taken back since.
    let ca = place.at("ca");
    let _ = testudo(&["pki", "revoke", "scheduler/0", "--ca", text(&ca)]).succeeded();
    let list = ca.join("crl.pem");
    refused_by(sign(&operator, &["--signed", text(&signed), "--crl", text(&list)], &run), "is revoked");
    assert!(!out.exists());

    // What is damaged is passed over.
    let [.., before, newest] = place.checkpoints()[..] else { panic!("two checkpoints") };
    flip_last_byte(&run.join(format!("checkpoint/step-{newest:08}/server-0.part.age")));
    let said = sign(&operator, &again, &run).succeeded();
    assert_eq!(said.json()["resumed_from_step"], before, "{said:#?}");
    assert!(said.stderr.contains(&format!("step {newest} is passed over")), "{said:#?}");

    // A scheduler that is not to begin changes nothing.
    std::fs::create_dir(place.at("elsewhere")).unwrap();
    for name in ["metrics.jsonl", "summary.json"] {
        std::fs::copy(run.join(name), place.at("elsewhere").join(name)).unwrap();
    }
    for (into, audit, why) in [
        ("elsewhere", "id/actor-audit", "no whole checkpoint of step"),
        ("run", "id/actor-nobody", "actor-nobody"),
        ("run", "id/worker-0", "the audit log is signed by"),
    ] {
        let before = place.kept(into);
        refused_by(place.scheduler(into, "resumed.job", audit), why);
        assert!(place.kept(into) == before, "{into}, {audit}");
    }

    let (mut nodes, scheduler) = place.start("second", "resumed.job");
    let wanted = usize::try_from(newest).unwrap() + 10;
    nodes[0].until("more steps", |_| (process::steps(&run) >= wanted).then_some(()));
    // Nor one that comes while the run is under way.
    let [(metrics, _), _] = place.kept("run");
    let second = place.scheduler("run", "resumed.job", "id/actor-audit");
    for busy in [second, sign(&operator, &again, &run)] {
        assert!(busy.code() == Some(1) && busy.stderr.contains("is in use"), "that passes: {busy:#?}");
    }
    assert_eq!(place.kept("run")[0].0, metrics);
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

    // Nobody has signed for going back once more.
    let before = (place.kept("run"), place.checkpoints());
    refused_by(place.scheduler("run", "resumed.job", "id/actor-audit"), "this very job has written");
    assert!((place.kept("run"), place.checkpoints()) == before);

    let (local, steps) = (place.at("local"), format!("training.max_steps={}", summary["steps"]));
    let whole = ["run", text(&file), "--run-dir", text(&local), "--quiet", "--json", "--set", &steps];
    let undisturbed = process::run(PROGRAM, &whole, &local).succeeded().json();
    assert_eq!(undisturbed["params_blake3"], summary["params_blake3"], "{log}");
}

//! `testudo run --resume` and `testudo checkpoint` as real processes.

use std::path::{Path, PathBuf};

use serde_json::Value;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Signal, Started, UNHURRIED, assert_nothing_left, steps};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mnist.toml");
/// More steps than any of these runs takes: it is ended, however late.
const ENDLESS: [&str; 2] = ["--set", "training.max_steps=100000000"];

/// A cluster file and a place for its runs.
struct Place {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn small() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, name: &str, options: &[&str]) -> Started {
        let dir = self.dir(name);
        let first = ["run", text(&self.file), "--run-dir", text(&dir), "--json", "--quiet"];
        process::start(PROGRAM, &[&first[..], &UNHURRIED, options].concat(), &dir)
    }

    fn run(&self, name: &str, options: &[&str]) -> Ended {
        self.start(name, options).wait()
    }

    fn resume(&self, name: &str, options: &[&str]) -> Ended {
        let dir = self.dir(name);
        let arguments = [&["run", "--resume", text(&dir), "--json", "--quiet"], options].concat();
        process::run(PROGRAM, &arguments, &dir)
    }

    fn checkpoint(&self, command: &str, name: &str, options: &[&str]) -> Ended {
        let dir = self.dir(name);
        process::run(PROGRAM, &[&["checkpoint", command, text(&dir)], options].concat(), &dir)
    }
}

fn hash(result: &Value) -> String {
    result["params_blake3"].as_str().expect("a hash").to_owned()
}

fn metrics(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refused(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code(), Some(code), "{ended:#?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
}

/// The line: MNIST for 120 steps, and the same stopped at 60 and resumed with 4 workers and 3 servers.
#[test]
fn mnist_resumed_with_other_workers_and_servers_has_the_bits_of_an_unbroken_run() {
    let place = Place { folder: tempfile::tempdir().unwrap(), file: MNIST.into() };
    let whole = place.run("whole", &["--set", "training.max_steps=120"]).succeeded().json();
    let former = place.run("resumed", &["--set", "training.max_steps=60"]).succeeded().json();
    assert_eq!((&former["steps"], &former["checkpoint_step"]), (&60.into(), &60.into()));
    assert_ne!(hash(&former), hash(&whole));
    let options = ["--set", "training.max_steps=120", "--workers", "4", "--servers", "3"];
    let result = place.resume("resumed", &options).succeeded().json();
    assert_eq!(hash(&result), hash(&whole));
    assert_eq!((&result["steps"], &result["resumed_from_step"]), (&120.into(), &60.into()));
    assert_eq!((&result["workers"], &result["servers"]), (&4.into(), &3.into()));
    assert_eq!(result["test_accuracy"], whole["test_accuracy"]);
    let loss =
        |dir: &str| metrics(&place.dir(dir)).into_iter().map(|m| (m["step"].clone(), m["loss"].clone()));
    assert_eq!(
        loss("resumed").collect::<Vec<_>>(),
        loss("whole").collect::<Vec<_>>(),
        "one series of losses"
    );
    assert_nothing_left(&place.dir("resumed"));
}

/// Ctrl-C leaves a checkpoint at the step that the run stopped at; what it does not say again is as it was.
#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let place = Place::small();
    let seed = ["--set", "training.seed=5"];
    let mut run = place.start("run", &[&seed[..], &ENDLESS].concat());
    run.until("steps", |dir| (steps(dir) >= 20).then_some(()));
    run.signal(Signal::INT);
    let stopped = run.wait().succeeded().json();
    assert_eq!((&stopped["stopped_early"], &stopped["checkpoint_step"]), (&true.into(), &stopped["steps"]));
    let dir = place.dir("run");
    let former = std::fs::read(dir.join("job.signed")).unwrap();
    let most = stopped["steps"].as_u64().unwrap() + 200;
    let most_set = format!("training.max_steps={most}");
    let most_steps = ["--set", most_set.as_str()];
    let others = [&["--workers", "1", "--servers", "3"][..], &most_steps].concat();
    let result = place.resume("run", &others).succeeded().json();
    let whole = place.run("whole", &[&seed[..], &most_steps].concat()).succeeded().json();
    assert_eq!(hash(&result), hash(&whole));
    assert_eq!(result["resumed_from_step"], stopped["steps"]);
    let numbers: Vec<u64> = metrics(&dir).iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=most).collect::<Vec<_>>());
    assert_eq!(std::fs::read(dir.join("job-1.signed")).unwrap(), former, "the former job is kept");
    assert!(dir.join("cluster-1.toml").exists() && dir.join("job.signed").exists());
    assert!(!dir.join("identities/server-3").exists() && dir.join("identities/server-2").exists());
    // At its end there is nothing to train, and what is left to do is done.
    let again = place.resume("run", &[]).succeeded().json();
    assert_eq!((hash(&again), &again["steps"]), (hash(&whole), &most.into()));
}

/// A dead server ends the run; the newest checkpoint on the way is where it goes on, and what was done since is done again.
#[test]
fn a_run_whose_server_was_killed_goes_on_from_a_checkpoint_on_the_way() {
    let place = Place::small();
    let set = ["--set", "checkpoint.every_steps=50", "--set", "cluster.restarts=0"];
    let mut run = place.start("run", &[&set[..], &ENDLESS].concat());
    run.until("a checkpoint", |dir| {
        let mut entries = std::fs::read_dir(dir.join("checkpoint")).ok()?.flatten();
        entries.any(|entry| entry.path().join("manifest.json").exists()).then_some(())
    });
    process::send(run.node("server", 1).pid, Signal::KILL);
    let ended = run.wait();
    refused(&ended, 1, &["server/1", "newest checkpoint is at step", "testudo run --resume"]);
    let listed = place.checkpoint("list", "run", &["--json"]).succeeded().json();
    let newest = listed["checkpoints"].as_array().unwrap().last().unwrap()["step"].as_u64().unwrap();
    assert_eq!(newest % 50, 0);
    let most = newest + 500;
    let most_set = format!("training.max_steps={most}");
    let most_steps = ["--set", most_set.as_str()];
    let result = place.resume("run", &[&["--servers", "1"][..], &most_steps].concat()).succeeded().json();
    let whole = place.run("whole", &most_steps).succeeded().json();
    assert_eq!((hash(&result), &result["resumed_from_step"]), (hash(&whole), &newest.into()));
    let kept = place.checkpoint("list", "run", &["--json"]).succeeded().json();
    let kept: Vec<u64> =
        kept["checkpoints"].as_array().unwrap().iter().map(|c| c["step"].as_u64().unwrap()).collect();
    assert_eq!((kept.len(), kept.last()), (3, Some(&most)), "checkpoint.keep_last is 3: {kept:?}");
    let verified = place.checkpoint("verify", "run", &["--json"]).succeeded().json();
    assert_eq!(verified["problems"], serde_json::json!([]));
}

/// What may not differ is named, and nothing is started or touched; neither is a run that is under way.
#[test]
fn what_cannot_be_resumed_is_refused_before_anything_is_touched() {
    let place = Place::small();
    let _ = place.run("run", &["--set", "training.max_steps=10"]).succeeded();
    let dir = place.dir("run");
    let before = std::fs::read(dir.join("cluster.toml")).unwrap();
    let set = [
        "--set",
        "training.seed=4",
        "--set",
        "optimizer.learning_rate=0.5",
        "--set",
        "training.max_steps=20",
    ];
    refused(&place.resume("run", &set), 2, &["training.seed is 4, was 3", "optimizer.learning_rate"]);
    refused(&place.resume("run", &["--set", "training.max_steps=5"]), 2, &["step 10", "training.max_steps"]);
    refused(&place.resume("run", &["--step", "7"]), 2, &["of step 7", "there are those of steps: 10"]);
    refused(&place.resume("none", &[]), 2, &["no run directory"]);
    let part = dir.join("checkpoint/step-00000010/server-0.part.age");
    let bytes = std::fs::read(&part).unwrap();
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&part, flipped).unwrap();
    refused(&place.resume("run", &["--set", "training.max_steps=20"]), 2, &["server-0.part.age", "BLAKE3"]);
    refused(&place.checkpoint("verify", "run", &[]), 1, &["server-0.part.age", "BLAKE3"]);
    std::fs::write(&part, bytes).unwrap();
    assert_eq!(std::fs::read(dir.join("cluster.toml")).unwrap(), before);
    assert!(!dir.join("job-1.signed").exists());

    let mut run = place.start("busy", &[]);
    run.until("steps", |dir| (steps(dir) >= 3).then_some(()));
    let (busy, mark) = (place.dir("busy"), place.dir("nobody"));
    for command in [&["run", "--resume", text(&busy)][..], &["checkpoint", "prune", text(&busy)]] {
        // Under another mark: what ends with these commands is not the run.
        refused(&process::run(PROGRAM, command, &mark), 2, &["is in use"]);
    }
    run.signal(Signal::INT);
    let _ = run.wait().succeeded();
}

/// Opened, exported, pruned, and made unreadable for good.
#[test]
fn checkpoints_are_decrypted_exported_pruned_and_their_key_destroyed() {
    let place = Place::small();
    let set = ["--set", "training.max_steps=40", "--set", "checkpoint.every_steps=10"];
    let result = place.run("run", &set).succeeded().json();
    let dir = place.dir("run");
    let (model, parts) = (place.dir("model.safetensors"), place.dir("parts"));
    let exported = place.checkpoint("export", "run", &["--out", text(&model)]).succeeded();
    assert!(
        exported.stdout.contains(&hash(&result)) && exported.stdout.contains("step 40"),
        "{}",
        exported.stdout
    );
    let ours = std::fs::read(dir.join("checkpoint/final/model.safetensors")).unwrap();
    assert_eq!(std::fs::read(&model).unwrap(), ours, "the same file as the run's own export");
    let _ = place.checkpoint("decrypt", "run", &["--out", text(&parts)]).succeeded();
    for server in 0..2 {
        let part = std::fs::read(parts.join(format!("server-{server}.safetensors"))).unwrap();
        let header = String::from_utf8_lossy(&part[8..400]).into_owned();
        assert!(header.contains("testudo checkpoint part"), "{header}");
    }
    let key = dir.join("checkpoint/key.txt");
    let verified =
        place.checkpoint("verify", "run", &["--identity-file", text(&key), "--json"]).succeeded().json();
    assert!(verified["good"].as_array().unwrap().contains(&40.into()), "{verified}");

    let pruned = place.checkpoint("prune", "run", &["--keep", "1", "--json"]).succeeded().json();
    assert_eq!(pruned["key_destroyed"], false);
    let listed = place.checkpoint("list", "run", &["--json"]).succeeded().json();
    assert_eq!(listed["checkpoints"].as_array().unwrap().len(), 1);
    refused(&place.checkpoint("prune", "run", &["--destroy-key"]), 2, &["--yes"]);
    assert!(key.exists());
    let gone = place.checkpoint("prune", "run", &["--destroy-key", "--yes", "--json"]).succeeded().json();
    assert_eq!(gone["key_destroyed"], true);
    assert!(!key.exists());
    let record = std::fs::read_to_string(dir.join("checkpoint/deletions.jsonl")).unwrap();
    assert!(record.contains("key_destroyed") && record.contains("age1"), "{record}");
    refused(&place.resume("run", &["--set", "training.max_steps=50"]), 2, &["key.txt", "--identity-file"]);
    assert_eq!(place.checkpoint("decrypt", "run", &["--out", text(&parts)]).code(), Some(2));
}

/// Recipients of the operator's own: the run makes no key, and the key comes by path.
#[test]
fn with_recipients_the_key_is_given_by_path() {
    let place = Place::small();
    // A key as the run would make it, moved out of reach.
    let _ = place.run("keys", &["--set", "training.max_steps=1"]).succeeded();
    let key = place.dir("key.txt");
    std::fs::rename(place.dir("keys").join("checkpoint/key.txt"), &key).unwrap();
    let keyfile = std::fs::read_to_string(&key).unwrap();
    let recipient = keyfile.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    let set = format!("checkpoint.recipients=[\"{recipient}\"]");
    let max = ["--set", "training.max_steps=20"];
    let _ = place.run("run", &["--set", "training.max_steps=10", "--set", &set]).succeeded();
    assert!(!place.dir("run").join("checkpoint/key.txt").exists());
    refused(&place.resume("run", &max), 2, &["--identity-file"]);
    let other = place.dir("other");
    let _ = place.run("other", &["--set", "training.max_steps=1"]).succeeded();
    let wrong = other.join("checkpoint/key.txt");
    refused(
        &place.resume("run", &[&max[..], &["--identity-file", text(&wrong)]].concat()),
        2,
        &["none of the given"],
    );
    let result =
        place.resume("run", &[&max[..], &["--identity-file", text(&key)]].concat()).succeeded().json();
    assert_eq!(result["steps"], 20);
    let whole = place.run("whole", &max).succeeded().json();
    assert_eq!(hash(&result), hash(&whole));
    let secret = keyfile.lines().last().unwrap();
    for file in ["logs/server-0.log", "logs/scheduler-0.log", "cluster.toml"] {
        let text = std::fs::read_to_string(place.dir("run").join(file)).unwrap();
        assert!(!text.contains(secret), "the key is in {file}");
    }
}

//! Wire codecs by real processes: colocated and dedicated, stopped and resumed by others, with what error feedback keeps back in
//! checkpoints that the run's own key opens, or a recipient's.

use std::path::PathBuf;

use serde_json::Value;
use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const COLOCATED: &str = "cluster.placement=colocated";

struct Place {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// With so many workers and servers; `set` in the cluster file's words, `key: ` before an identity file.
    fn run(&self, name: &str, nodes: (u32, u32), set: &[String]) -> Value {
        let dir = self.dir(name);
        let first = ["run", text(&self.file), "--run-dir", text(&dir)];
        self.started(name, &first, nodes, set).succeeded().json()
    }

    fn resume(&self, name: &str, nodes: (u32, u32), set: &[String]) -> Ended {
        self.started(name, &["run", "--resume", text(&self.dir(name))], nodes, set)
    }

    fn started(&self, name: &str, first: &[&str], (workers, servers): (u32, u32), set: &[String]) -> Ended {
        let (workers, servers) = (workers.to_string(), servers.to_string());
        let mut all = first.to_vec();
        all.extend(["--json", "--quiet", "--workers", &workers, "--servers", &servers]);
        for value in set {
            match value.strip_prefix("key: ") {
                Some(file) => all.extend(["--identity-file", file]),
                None => all.extend(["--set", value]),
            }
        }
        process::run(PROGRAM, &all, &self.dir(name))
    }

    fn checkpoint(&self, command: &str, name: &str, options: &[&str]) -> Ended {
        let dir = self.dir(name);
        process::run(PROGRAM, &[&["checkpoint", command, text(&dir)], options].concat(), &dir)
    }
}

/// The two codecs, and what else is set.
fn set(push: &str, pull: &str, rest: &[&str]) -> Vec<String> {
    let codecs = [format!("transport.push_codec=\"{push}\""), format!("transport.pull_codec=\"{pull}\"")];
    let threshold = match push {
        "2bit" => Some("transport.push_threshold=0.5"),
        "1bit" => Some("transport.push_threshold=0.0"),
        _ => None,
    };
    codecs.into_iter().chain(threshold.iter().chain(rest).map(|text| (*text).to_owned())).collect()
}

/// What peers hand each other in memory is encoded as well: where a server is changes no bit, nor do numbers of nodes.
#[test]
fn colocated_nodes_give_the_bits_of_dedicated_ones() {
    let place = Place::new();
    for (at, (push, pull)) in [("bf16", "bf16"), ("int8", "int8"), ("topk", "f16")].into_iter().enumerate() {
        let set = |rest: &[&str]| set(push, pull, &[&["training.max_steps=20"], rest].concat());
        let dedicated = place.run(&format!("dedicated{at}"), (1, 1), &set(&[]));
        let colocated = place.run(&format!("colocated{at}"), (3, 3), &set(&[COLOCATED]));
        for key in ["params_blake3", "test_loss", "final_loss"] {
            assert_eq!(colocated[key], dedicated[key], "{push}, {pull}: {key}");
        }
        assert_eq!((&colocated["push_codec"], &colocated["pull_codec"]), (&push.into(), &pull.into()));
        assert_eq!(colocated["residuals_lost"], 0);
    }
}

/// Residuals come back with the rest, whoever computes which shard then.
#[test]
fn what_was_kept_back_is_resumed_by_others_to_the_same_bits() {
    let place = Place::new();
    for (at, (push, pull)) in [("2bit", "int8"), ("1bit", "bf16")].into_iter().enumerate() {
        let set = |rest: &[&str]| set(push, pull, rest);
        let whole = place.run(&format!("whole{at}"), (3, 1), &set(&["training.max_steps=40"]));
        let name = format!("run{at}");
        let begun = place.run(&name, (2, 2), &set(&["training.max_steps=16", COLOCATED]));
        assert_eq!(begun["checkpoint_step"], 16);
        let on = ["training.max_steps=28", "cluster.placement=dedicated"].map(str::to_owned);
        assert_eq!(place.resume(&name, (4, 1), &on).succeeded().json()["steps"], 28);
        let ended = place.resume(&name, (1, 2), &["training.max_steps=40".into()]).succeeded().json();
        assert_eq!(ended["params_blake3"], whole["params_blake3"], "{push}, {pull}");
        assert_eq!((&ended["resumed_from_step"], &ended["residuals_lost"]), (&28.into(), &0.into()));
    }
    // Its parts are listed, opened and checked like all others.
    let (key, out) = (place.dir("run0/checkpoint/key.txt"), place.dir("parts"));
    let _ = place.checkpoint("verify", "run0", &["--identity-file", text(&key)]).succeeded();
    let _ = place.checkpoint("decrypt", "run0", &["--step", "28", "--out", text(&out)]).succeeded();
    let header = std::fs::read(out.join("worker-3.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&header[..200]).contains("\"worker\":\"3\""));
    let listed = place.checkpoint("list", "run0", &["--json"]).succeeded().json();
    let parts: Vec<&Value> = listed["checkpoints"].as_array().unwrap().iter().map(|c| &c["parts"]).collect();
    assert_eq!(parts, [4, 5, 3], "servers' and workers'");
    let part = place.dir("run0/checkpoint/step-00000040/worker-0.part.age");
    let mut bytes = std::fs::read(&part).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let refused = place.resume("run0", (1, 1), &["training.max_steps=50".into()]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("worker-0.part.age"), "{refused:#?}");
}

/// With recipients of the operator's own, workers are handed the key as servers are.
#[test]
fn workers_open_residuals_with_a_recipients_key() {
    let place = Place::new();
    let _ = place.run("keys", (1, 1), &["training.max_steps=1".into()]);
    let key = place.dir("key.txt");
    std::fs::rename(place.dir("keys/checkpoint/key.txt"), &key).unwrap();
    let keyfile = std::fs::read_to_string(&key).unwrap();
    let recipient = keyfile.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    let recipients = format!("checkpoint.recipients=[\"{recipient}\"]");
    let set = |rest: &[&str]| set("topk", "f32", rest);
    let whole = place.run("whole", (1, 1), &set(&["training.max_steps=20"]));
    let _ = place.run("run", (2, 1), &set(&[&recipients, "training.max_steps=10"]));
    assert!(!place.dir("run/checkpoint/key.txt").exists());
    let opening = [format!("key: {}", text(&key)), "training.max_steps=20".into()];
    let ended = place.resume("run", (3, 1), &opening).succeeded().json();
    assert_eq!(ended["params_blake3"], whole["params_blake3"]);
}

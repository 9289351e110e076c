//! Wire codecs by real processes: colocated and dedicated, stopped and resumed by others, with what error feedback keeps back in
//! checkpoints that the run's own key opens, or a recipient's.

use serde_json::Value;
use testudo_actors::JobSpec;
use testudo_actors::job::Codecs;
use testudo_kernels::Codec;
use testudo_tests::cluster::{Links, Site};
use testudo_tests::files::{self, text};
use testudo_tests::place::Place;
use testudo_tests::process::{self, Ended, UNHURRIED};
use testudo_tests::toy;
use testudo_transport::Role;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const COLOCATED: &str = "cluster.placement=colocated";

/// With so many workers and servers; `set` in the cluster file's words, `key: ` before an identity file.
fn run(place: &Place, name: &str, nodes: (u32, u32), set: &[String]) -> Value {
    let dir = place.run_dir(name);
    let first = [&["run", text(&place.file), "--run-dir", text(&dir)][..], &UNHURRIED].concat();
    started(place, name, &first, nodes, set).succeeded().json()
}

fn resume(place: &Place, name: &str, nodes: (u32, u32), set: &[String]) -> Ended {
    started(place, name, &["run", "--resume", text(&place.run_dir(name))], nodes, set)
}

fn started(
    place: &Place,
    name: &str,
    first: &[&str],
    (workers, servers): (u32, u32),
    set: &[String],
) -> Ended {
    let (workers, servers) = (workers.to_string(), servers.to_string());
    let mut all = first.to_vec();
    all.extend(["--json", "--quiet", "--workers", &workers, "--servers", &servers]);
    for value in set {
        match value.strip_prefix("key: ") {
            Some(file) => all.extend(["--identity-file", file]),
            None => all.extend(["--set", value]),
        }
    }
    process::run(PROGRAM, &all, &place.run_dir(name))
}

fn checkpoint(place: &Place, command: &str, name: &str, options: &[&str]) -> Ended {
    let dir = place.run_dir(name);
    process::run(PROGRAM, &[&["checkpoint", command, text(&dir)], options].concat(), &dir)
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
    let place = Place::small(PROGRAM);
    for (at, (push, pull)) in [("bf16", "bf16"), ("int8", "int8"), ("topk", "f16")].into_iter().enumerate() {
        let set = |rest: &[&str]| set(push, pull, &[&["training.max_steps=20"], rest].concat());
        let dedicated = run(&place, &format!("dedicated{at}"), (1, 1), &set(&[]));
        let colocated = run(&place, &format!("colocated{at}"), (3, 3), &set(&[COLOCATED]));
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
    let place = Place::small(PROGRAM);
    for (at, (push, pull)) in [("2bit", "int8"), ("1bit", "bf16")].into_iter().enumerate() {
        let set = |rest: &[&str]| set(push, pull, rest);
        let whole = run(&place, &format!("whole{at}"), (3, 1), &set(&["training.max_steps=40"]));
        let name = format!("run{at}");
        let begun = run(&place, &name, (2, 2), &set(&["training.max_steps=16", COLOCATED]));
        assert_eq!(begun["checkpoint_step"], 16);
        let on = ["training.max_steps=28", "cluster.placement=dedicated"].map(str::to_owned);
        assert_eq!(resume(&place, &name, (4, 1), &on).succeeded().json()["steps"], 28);
        let ended = resume(&place, &name, (1, 2), &["training.max_steps=40".into()]).succeeded().json();
        assert_eq!(ended["params_blake3"], whole["params_blake3"], "{push}, {pull}");
        assert_eq!((&ended["resumed_from_step"], &ended["residuals_lost"]), (&28.into(), &0.into()));
    }
    // Its parts are listed, opened and checked like all others.
    let (key, out) = (place.run_dir("run0/checkpoint/key.txt"), place.run_dir("parts"));
    let _ = checkpoint(&place, "verify", "run0", &["--identity-file", text(&key)]).succeeded();
    let _ = checkpoint(&place, "decrypt", "run0", &["--step", "28", "--out", text(&out)]).succeeded();
    let header = std::fs::read(out.join("worker-3.safetensors")).unwrap();
    assert!(String::from_utf8_lossy(&header[..200]).contains("\"worker\":\"3\""));
    let listed = checkpoint(&place, "list", "run0", &["--json"]).succeeded().json();
    let parts: Vec<&Value> = listed["checkpoints"].as_array().unwrap().iter().map(|c| &c["parts"]).collect();
    assert_eq!(parts, [4, 5, 3], "servers' and workers'");
    let part = place.run_dir("run0/checkpoint/step-00000040/worker-0.part.age");
    let mut bytes = std::fs::read(&part).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let refused = resume(&place, "run0", (1, 1), &["training.max_steps=50".into()]);
    assert!(refused.code() == Some(2) && refused.stderr.contains("worker-0.part.age"), "{refused:#?}");
}

/// With recipients of the operator's own, workers are handed the key as servers are.
#[test]
fn workers_open_residuals_with_a_recipients_key() {
    let place = Place::small(PROGRAM);
    let _ = run(&place, "keys", (1, 1), &["training.max_steps=1".into()]);
    let key = place.run_dir("key.txt");
    std::fs::rename(place.run_dir("keys/checkpoint/key.txt"), &key).unwrap();
    let keyfile = std::fs::read_to_string(&key).unwrap();
    let recipient = keyfile.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    let recipients = format!("checkpoint.recipients=[\"{recipient}\"]");
    let set = |rest: &[&str]| set("topk", "f32", rest);
    let whole = run(&place, "whole", (1, 1), &set(&["training.max_steps=20"]));
    let _ = run(&place, "run", (2, 1), &set(&[&recipients, "training.max_steps=10"]));
    assert!(!place.run_dir("run/checkpoint/key.txt").exists());
    let opening = [format!("key: {}", text(&key)), "training.max_steps=20".into()];
    let ended = resume(&place, "run", (3, 1), &opening).succeeded().json();
    assert_eq!(ended["params_blake3"], whole["params_blake3"]);
}

/// Who is configured with another codec than the operator signed is told before it takes part, with the exit status of a wrong
/// configuration; the wire never sees it.
#[test]
fn a_codec_that_peers_do_not_share_is_an_error_of_the_configuration() {
    let bf16 = Codecs { push: Codec::Bf16, pull: Codec::F32 };
    for role in [Role::Server, Role::Worker] {
        // A scheduler for each: a run whose only server has gone is over.
        let site = Site::new(JobSpec { codecs: bf16, ..toy::job(1, 1, 1, 4) }, Links::Quic);
        let (scheduler, _running) = site.scheduler();
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text
            .replace("name = \"small\"", "name = \"toy\"\ntrust_domain = \"test.local\"")
            .replace("[transport]\n", "[transport]\npush_codec = \"int8\"\n");
        std::fs::write(&file, text).unwrap();
        let home = folder.path().join("identity");
        site.identity(role, "0").save(&home).unwrap();
        let word = role.to_string();
        let node = ["node", "--role", &word, "--index", "0", "--config", files::text(&file)];
        let more = ["--identity", files::text(&home), "--scheduler", &scheduler];
        let refused = process::start(PROGRAM, &[&node[..], &more[..]].concat(), folder.path()).wait();
        assert_eq!(refused.code(), Some(2), "{refused:#?}");
        let said = "configured with transport.push_codec int8 and transport.pull_codec f32, and the signed job says bf16 and f32";
        assert!(refused.stderr.contains(said), "{refused:#?}");
    }
}

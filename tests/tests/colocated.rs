//! Peers: a server and a worker in one process, by real processes. Who shares one changes no bit, and what crosses the
//! network.

use std::path::Path;

use serde_json::Value;
use testudo_tests::files;
use testudo_tests::place::Place;
use testudo_tests::process::{self, Signal, assert_nothing_left, nodes};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const COLOCATED: [&str; 2] = ["--set", "cluster.placement=colocated"];

fn run(place: &Place, name: &str, options: &[&str]) -> Value {
    place.run(name, &[&["--quiet"], options].concat()).succeeded().json()
}

fn log(dir: &Path, node: &str) -> String {
    std::fs::read_to_string(dir.join("logs").join(format!("{node}.log"))).unwrap_or_default()
}

/// Half of what two dedicated workers send goes to the server in their own process when they are peers.
#[test]
fn peers_give_the_same_bits_and_send_half() {
    let place = Place::small(PROGRAM);
    let steps = ["--set", "training.max_steps=60"];
    let dedicated = run(&place, "dedicated", &steps);
    let colocated = run(&place, "colocated", &[steps, COLOCATED].concat());
    assert_eq!(colocated["params_blake3"], dedicated["params_blake3"]);
    assert_eq!(
        (&dedicated["placement"], &colocated["placement"]),
        (&"dedicated".into(), &"colocated".into())
    );
    for way in ["bytes_sent", "bytes_received"] {
        let share = colocated[way].as_f64().unwrap() / dedicated[way].as_f64().unwrap();
        assert!((0.3..0.7).contains(&share), "{way}: {share}");
    }
    let dir = place.run_dir("colocated");
    for peer in ["peer-0", "peer-1"] {
        assert!(log(&dir, peer).contains("is up"), "{}", log(&dir, peer));
    }
    assert!(!dir.join("logs/server-0.log").exists() && !dir.join("logs/worker-0.log").exists());
    assert_nothing_left(&dir);
}

/// As many servers as workers, without a word about servers; and placement may change when a run is resumed.
#[test]
fn a_run_of_peers_goes_on_dedicated_and_the_other_way_round() {
    let place = Place::small(PROGRAM);
    let whole = run(&place, "whole", &["--set", "training.max_steps=40"]);
    let text = std::fs::read_to_string(&place.file).unwrap();
    std::fs::write(&place.file, text.replace("servers = 2\n", "")).unwrap();
    let peers = [&COLOCATED[..], &["--workers", "3", "--set", "training.max_steps=20"]].concat();
    let begun = run(&place, "run", &peers);
    assert_eq!((&begun["workers"], &begun["servers"]), (&3.into(), &3.into()));
    let dedicated = ["--set", "cluster.placement=dedicated", "--workers", "2", "--servers", "1"];
    let to_30 = [&dedicated[..], &["--set", "training.max_steps=30"]].concat();
    assert_eq!(place.resume("run", &to_30).succeeded().json()["steps"], 30);
    let to_40 = ["--workers", "2", "--servers", "2", "--set", "training.max_steps=40"];
    let ended = place.resume("run", &[&COLOCATED[..], &to_40].concat()).succeeded().json();
    assert_eq!(ended["params_blake3"], whole["params_blake3"]);
}

/// What a peer's server keeps is lost with it.
#[test]
fn a_killed_peer_ends_the_run_by_name() {
    let place = Place::small(PROGRAM);
    let mut run = place.start("run", &COLOCATED);
    run.until_steps(5);
    let dir = place.run_dir("run");
    let names: Vec<String> = nodes(&dir).iter().map(|n| format!("{}/{}", n.role, n.index)).collect();
    assert_eq!(names, ["peer/0", "peer/1", "scheduler/0"]);
    process::send(run.node("peer", 1).pid, Signal::KILL);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    for part in ["peer/1", "killed by signal 9 (SIGKILL)", "logs/peer-1.log"] {
        assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
    }
    assert_nothing_left(&dir);
}

/// Each of a peer's nodes has a key of its own, under its own role: neither can speak as the other.
#[test]
fn a_peer_needs_both_its_identities() {
    let place = Place::small(PROGRAM);
    let _ = run(&place, "run", &["--set", "training.max_steps=1"]);
    let dir = place.run_dir("run");
    let identity = |node: &str| dir.join("identities").join(node).display().to_string();
    let node = |rest: &[&str]| {
        let file = dir.join("cluster.toml");
        let first = ["node", "--role", "peer", "--config", files::text(&file), "--scheduler", "127.0.0.1:1"];
        process::run(PROGRAM, &[&first[..], rest].concat(), &dir)
    };
    let (server, worker) = (identity("server-0"), identity("worker-0"));
    let missing = node(&["--identity", &server]);
    assert!(missing.code() == Some(2) && missing.stderr.contains("--worker-identity"), "{missing:#?}");
    for (identity, other) in [(&server, &server), (&worker, &worker), (&worker, &server)] {
        let swapped = node(&["--identity", identity, "--worker-identity", other]);
        assert!(swapped.code() == Some(2) && swapped.stderr.contains("not of"), "{swapped:#?}");
    }
}

#[test]
fn as_many_servers_as_workers_make_peers() {
    let place = Place::small(PROGRAM);
    let ended = place.start("run", &[&COLOCATED[..], &["--workers", "3"]].concat()).wait();
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("leave `cluster.servers` out, or set it to 3"), "{}", ended.stderr);
    assert!(!place.run_dir("run").exists(), "nothing was started");
}

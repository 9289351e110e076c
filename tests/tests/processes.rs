//! Real processes: `testudo run` from its start to its end, however it ends.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use testudo_tests::files;
use testudo_tests::place::Place;
use testudo_tests::process::{self, Signal, Started, assert_nothing_left, nodes, steps};
use testudo_tests::sockets;

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");
const MNIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mnist.toml");
/// More than any of these runs takes: they are stopped.
const ENDLESS: &str = "training.max_steps=100000000";
const EPOCHS: &str = "training.epochs=100000";
/// Who dies does not come back.
const FOR_GOOD: &str = "cluster.worker_restarts=0";

/// With the small job.
fn small() -> Place {
    Place::small(PROGRAM)
}

/// With the example that the README runs.
fn mnist() -> Place {
    Place::of(PROGRAM, Path::new(MNIST))
}

fn hash(result: &Value) -> String {
    let hash = result["params_blake3"].as_str().expect("a hash");
    assert_eq!(hash.len(), 64, "{result}");
    hash.to_owned()
}

fn log(dir: &Path, node: &str) -> String {
    std::fs::read_to_string(dir.join("logs").join(format!("{node}.log"))).unwrap_or_default()
}

/// The files under `dir` that hold `text`, relative to it.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains(text) {
                found.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    found
}

/// Bit-identical training over real processes: for any number of workers and servers, on a repeat, and through the
/// SIGKILL of a worker.
#[test]
fn mnist_gives_the_same_bits_for_any_cluster_and_through_a_kill() {
    let place = mnist();
    let options = |workers, servers| to("training.max_steps=60", workers, servers);
    let mut hashes = Vec::new();
    for (nth, (workers, servers)) in [("1", "1"), ("2", "2"), ("4", "3"), ("2", "2")].into_iter().enumerate()
    {
        let name = format!("run-{nth}");
        let ended = place.run(&name, &options(workers, servers)).succeeded();
        let result = ended.json();
        assert_eq!(result["steps"], 60, "{result}");
        assert_eq!(result["stopped_early"], false, "{result}");
        assert!(result["test_accuracy"].as_f64().unwrap() > 0.8, "it learns: {result}");
        assert!(ended.stderr.is_empty(), "--quiet prints nothing: {}", ended.stderr);
        hashes.push(hash(&result));
        assert_nothing_left(&place.run_dir(&name));
    }
    assert!(hashes.iter().all(|h| *h == hashes[0]), "{hashes:?}");

    // However late the kill comes, this run is under way, and is stopped after it.
    let options = [&to(ENDLESS, "4", "2")[..], &["--set", EPOCHS, "--set", FOR_GOOD]].concat();
    let mut run = place.start("killed", &options);
    run.until_steps(8);
    kill_worker(&mut run, 2);
    let log = log(&place.run_dir("killed"), "scheduler-0");
    assert!(log.contains("SIGKILL"), "{log}");
    run.signal(Signal::INT);
    let result = run.wait().succeeded().json();
    let set = format!("training.max_steps={}", result["steps"]);
    let whole =
        place.run("whole", &[&to(&set, "1", "1")[..], &["--set", EPOCHS]].concat()).succeeded().json();
    assert_eq!(hash(&result), hash(&whole), "a killed worker changed bits");
}

/// Options of a run that ends at a step.
fn to<'a>(steps: &'a str, workers: &'a str, servers: &'a str) -> [&'a str; 7] {
    ["--set", steps, "--quiet", "--workers", workers, "--servers", servers]
}

/// Kills a worker, and waits until the scheduler has heard of that.
fn kill_worker(run: &mut Started, worker: u32) {
    process::send(run.node("worker", worker).pid, Signal::KILL);
    let lost = format!("worker/{worker} was lost");
    run.until("the scheduler to notice", |dir| log(dir, "scheduler-0").contains(&lost).then_some(()));
}

/// semantics.md, line 10, on real processes: second and third failures are like the first.
#[test]
fn all_workers_but_one_may_be_killed() {
    let place = small();
    let options = ["--set", ENDLESS, "--set", FOR_GOOD, "--quiet", "--workers", "3"];
    let mut run = place.start("killed", &options);
    for (after, worker) in [(5, 0), (40, 2)] {
        run.until_steps(after);
        kill_worker(&mut run, worker);
    }
    let taken = steps(&place.run_dir("killed"));
    run.until_steps(taken + 40);
    run.signal(Signal::INT);
    let result = run.wait().succeeded().json();
    let set = format!("training.max_steps={}", result["steps"]);
    let whole = place.run("whole", &["--set", &set, "--quiet"]).succeeded().json();
    assert_eq!(hash(&result), hash(&whole));
    assert_nothing_left(&place.run_dir("killed"));
}

fn sockets(pid: u32) -> Vec<&'static str> {
    sockets::of(pid).into_iter().map(|socket| socket.table).collect()
}

/// Training, operators' commands and all else share one UDP socket: a node has no other port, for control or anything.
#[test]
fn a_node_has_one_port_and_no_other() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("not checked: a node's open files are shown to root alone");
    }
    let place = small();
    let mut run = place.start("run", &["--set", ENDLESS, "--quiet"]);
    run.until_steps(3);
    let all = run.until("all nodes", |dir| Some(nodes(dir)).filter(|nodes| nodes.len() == 5));
    for node in &all {
        assert_eq!(sockets(node.pid), ["udp"], "{node:?}");
    }
    let dir = place.run_dir("run");
    let _ = process::run(PROGRAM, &["pause", dir.to_str().unwrap()], &place.run_dir("none")).succeeded();
    for node in &all {
        assert_eq!(sockets(node.pid), ["udp"], "operated, {node:?}");
    }
    assert!(!sockets(run.pid()).iter().any(|socket| socket.starts_with("tcp")), "the launcher");
    run.signal(Signal::KILL);
    let _ = run.wait();
    assert_nothing_left(&dir);
}

/// Everything that a run leaves behind is there, and is what it should be.
#[test]
fn the_run_directory_holds_everything() {
    let place = small();
    let options = ["--set", "training.max_steps=30", "--set", "training.evaluate_every=10"];
    let ended = place.run("run", &options).succeeded();
    let (dir, result) = (place.run_dir("run"), ended.json());
    for key in [
        "test_accuracy",
        "final_loss",
        "steps",
        "samples_per_second",
        "params_blake3",
        "wall_seconds",
        "bytes_sent",
        "workers",
        "servers",
    ] {
        assert!(!result[key].is_null(), "{key} is missing: {result}");
    }
    assert!(result["bytes_sent"].as_u64().unwrap() > 0 && result["wall_seconds"].as_f64().unwrap() > 0.0);
    assert!(
        ended.stderr.contains(result["params_blake3"].as_str().unwrap().get(..8).unwrap()),
        "a table: {}",
        ended.stderr
    );

    let summary: Value = serde_json::from_slice(&std::fs::read(dir.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary, result);

    let metrics = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let numbers: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>(), "one line a step, from 1");
    for line in &lines {
        for key in [
            "epoch",
            "loss",
            "learning_rate",
            "samples_per_second",
            "bytes_sent",
            "bytes_received",
            "compute_ms",
            "send_ms",
            "wait_ms",
            "elapsed_seconds",
        ] {
            assert!(line[key].is_number(), "{key} is missing: {line}");
        }
        assert!(line["loss"].as_f64().unwrap() > 0.0 && line["epoch"].as_u64().unwrap() >= 1, "{line}");
        assert!(
            line["compute_ms"].as_f64().unwrap() > 0.0 && line["samples_per_second"].as_f64().unwrap() > 0.0,
            "{line}"
        );
    }
    assert_eq!(lines[29]["loss"], result["final_loss"]);
    let steps_per_epoch = files::TRAIN as u64 / 64;
    assert_eq!(lines[29]["epoch"].as_u64().unwrap(), 29 / steps_per_epoch + 1, "epochs count from 1");

    let evaluations = std::fs::read_to_string(dir.join("evaluations.jsonl")).unwrap();
    let found: Vec<Value> = evaluations.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(found.iter().map(|f| f["step"].as_u64().unwrap()).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!(found[2]["test_accuracy"], result["test_accuracy"]);
    assert!(found.iter().all(|f| f["test_loss"].as_f64().unwrap() > 0.0), "{found:?}");

    let plot = std::fs::read_to_string(dir.join("loss.svg")).unwrap();
    assert!(plot.contains("test set"), "the evaluations are drawn");
    assert!(plot.starts_with("<svg") || plot.starts_with("<?xml"), "{}", &plot[..50.min(plot.len())]);
    assert!(plot.contains("small") && plot.contains("</svg>"));

    let model = std::fs::read(dir.join("checkpoint/final/model.safetensors")).unwrap();
    let header = usize::try_from(u64::from_le_bytes(model[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&model[8..8 + header]).unwrap();
    let tensors: Vec<_> =
        header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__").collect();
    assert_eq!(tensors.len(), 6, "three layers' weights and biases: {header}");
    assert!(tensors.iter().all(|(_, t)| t["dtype"] == "F32"));

    for node in ["scheduler-0", "server-0", "server-1", "worker-0", "worker-1"] {
        assert!(log(&dir, node).contains("is up"), "the log of {node}: {:?}", log(&dir, node));
    }
    let mut keys: Vec<String> = files_with(&dir, "PRIVATE KEY");
    keys.sort();
    let nodes = ["audit", "operator-0", "scheduler-0", "server-0", "server-1", "worker-0", "worker-1"];
    let expected = nodes.map(|node| format!("identities/{node}/key.pem"));
    assert_eq!(
        keys, expected,
        "each node's key, the operator's, the audit log's and no other, the certificate authority's least of all"
    );
    assert_nothing_left(&dir);
}

/// The death of a server or of the scheduler ends the run with its name, its exit and the last lines of its log.
#[test]
fn a_killed_server_or_scheduler_ends_the_run_by_name() {
    for (role, index) in [("server", 1), ("server", 0), ("scheduler", 0)] {
        let place = small();
        let mut run = place.start("run", &["--quiet"]);
        run.until_steps(5);
        process::send(run.node(role, index).pid, Signal::KILL);
        let ended = run.wait();
        assert_eq!(ended.code(), Some(1), "{ended:#?}");
        // However much it has logged until then.
        let logged = log(&place.run_dir("run"), &format!("{role}-{index}"));
        assert!(logged.contains(&format!("{role}/{index} is up")), "{logged}");
        for part in [
            &format!("{role}/{index}"),
            "killed by signal 9 (SIGKILL)",
            &format!(
                "the last lines of {}",
                place.run_dir("run").join(format!("logs/{role}-{index}.log")).display()
            ),
            logged.lines().last().unwrap(),
        ] {
            assert!(ended.stderr.contains(part), "{part:?} is missing in {}", ended.stderr);
        }
        assert!(ended.stdout.is_empty(), "no result of a run that failed: {}", ended.stdout);
        assert_nothing_left(&place.run_dir("run"));
    }
}

/// However slow the launcher is: training may have begun, and the scheduler have died, before it has asked for a report.
#[test]
fn a_scheduler_that_is_killed_before_its_run_is_followed_is_named() {
    let place = small();
    let mut run = place.start("run", &["--quiet"]);
    run.until("all nodes", |dir| (nodes(dir).len() == 5).then_some(()));
    run.signal(Signal::STOP);
    run.until_steps(5);
    process::send(run.node("scheduler", 0).pid, Signal::KILL);
    run.signal(Signal::CONT);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    let named = "scheduler/0 ended before the run was over: killed by signal 9 (SIGKILL)";
    assert!(ended.stderr.contains(named), "{}", ended.stderr);
    assert_nothing_left(&place.run_dir("run"));
}

/// A run may be over before a launcher that stands still has heard of its first step.
#[test]
fn a_run_that_is_over_before_its_launcher_looks_is_told_as_it_ended() {
    let place = small();
    let run = ended_while_its_launcher_stands(&place, &[]);
    run.signal(Signal::CONT);
    let result = run.wait().succeeded().json();
    assert!(hash(&result).len() == 64 && result["steps"].as_u64() > Some(0), "{result}");
}

/// A launcher that was stopped for so long that nobody kept its line hears no last report: a run that is over is not begun again.
#[test]
fn a_run_that_ended_unheard_is_not_begun_again() {
    let place = small();
    let run = ended_while_its_launcher_stands(&place, &["--set", "transport.idle_timeout_ms=2000"]);
    std::thread::sleep(Duration::from_secs(3));
    run.signal(Signal::CONT);
    let ended = run.wait();
    let told = ended.code() == Some(0)
        || ended
            .stderr
            .contains("scheduler/0 has ended in order, and this process has not heard what the run came to");
    assert!(told && !ended.stderr.contains("goes on"), "{ended:#?}");
}

/// A run that an operator has ended since its launcher was stopped.
fn ended_while_its_launcher_stands(place: &Place, options: &[&str]) -> Started {
    let mut run = place.start("run", &[&["--quiet"], options].concat());
    run.until_steps(5);
    run.signal(Signal::STOP);
    let dir = place.run_dir("run");
    let _ = process::run(PROGRAM, &["stop", files::text(&dir)], &place.run_dir("none")).succeeded();
    run.until("the others' end", |dir| nodes(dir).is_empty().then_some(()));
    run
}

/// What fails for good is not begun again either, however late its launcher hears of it.
#[test]
fn a_run_that_failed_unheard_is_not_begun_again() {
    let place = small();
    let set = ["cluster.worker_restarts=0", "cluster.worker_return_ms=100", "checkpoint.every_steps=10"];
    let mut arguments = vec!["--quiet"];
    set.iter().for_each(|set| arguments.extend(["--set", set]));
    let mut run = place.start("run", &arguments);
    run.until_steps(50);
    run.signal(Signal::STOP);
    for worker in [0, 1] {
        process::send(run.node("worker", worker).pid, Signal::KILL);
    }
    run.until("the others' end", |dir| nodes(dir).is_empty().then_some(()));
    run.signal(Signal::CONT);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("no worker is left, and none came back"), "{ended:#?}");
    assert!(!ended.stderr.contains("goes on from"), "{ended:#?}");
}

/// No process outlives its launcher, even one that had no chance to say goodbye.
#[test]
fn a_killed_launcher_leaves_no_process_behind() {
    let place = small();
    let mut run = place.start("run", &["--quiet"]);
    run.until_steps(5);
    let dir = place.run_dir("run");
    let started = nodes(&dir);
    let names: Vec<String> = started.iter().map(|n| format!("{}/{}", n.role, n.index)).collect();
    assert_eq!(names, ["scheduler/0", "server/0", "server/1", "worker/0", "worker/1"]);
    assert!(started.iter().all(|n| n.parent == run.pid()), "{started:?}");
    run.signal(Signal::KILL);
    assert_eq!(run.wait().killed_by(), Some(9));
    assert_nothing_left(&dir);
}

/// Ctrl-C once: the run ends in order, with a model of the steps that were taken.
#[test]
fn an_interrupt_ends_in_order_with_a_model() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = small();
        let mut run = place.start("run", &[]);
        run.until_steps(5);
        run.signal(signal);
        let ended = run.wait().succeeded();
        let result = ended.json();
        assert_eq!(result["stopped_early"], true, "{result}");
        let taken = result["steps"].as_u64().unwrap();
        assert!(taken >= 5 && taken as usize == steps(&place.run_dir("run")), "{result}");
        assert!(ended.stderr.contains("interrupt again to end at once"), "{}", ended.stderr);
        assert!(place.run_dir("run").join("checkpoint/final/model.safetensors").exists());
        assert_nothing_left(&place.run_dir("run"));
        // What was stopped has the bits of a run that was never to go further.
        let set = format!("training.max_steps={taken}");
        let again = place.run("again", &["--quiet", "--set", &set]).succeeded().json();
        assert_eq!(hash(&again), hash(&result));
    }
}

/// Ctrl-C twice: the run ends at once, and nothing is left.
#[test]
fn a_second_interrupt_ends_at_once() {
    let place = small();
    let mut run = place.start("run", &["--set", "cluster.heartbeat_timeout_ms=600000"]);
    run.until_steps(5);
    // A worker that stands still keeps the run from ending in order before the second interrupt.
    process::send(run.node("worker", 0).pid, Signal::STOP);
    run.signal(Signal::INT);
    run.until("the first interrupt to be heard", |dir| {
        log(dir, "scheduler-0").contains("an operator stops the run").then_some(())
    });
    run.signal(Signal::INT);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(130), "{ended:#?}");
    assert!(ended.stderr.contains("ended at once"), "{}", ended.stderr);
    assert!(ended.stdout.is_empty(), "{}", ended.stdout);
    assert_nothing_left(&place.run_dir("run"));
}

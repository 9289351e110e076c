//! Metrics as an OpenTelemetry collector gets them, from real processes: PyPI's `opentelemetry-proto` decodes what they send.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use testudo_observability::setup::UNTAKEN;
use testudo_tests::attacker::Attacker;
use testudo_tests::collector::{Collector, Told, documented};
use testudo_tests::files::{self, text};
use testudo_tests::https::Client;
use testudo_tests::live::{Live, Plan, until};
use testudo_tests::process::{self, Signal};
use testudo_tests::receiver::told_in_time;
use testudo_tests::served::site;
use testudo_transport::{Cause, Role};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// No node counts as dead that is only slow.
const UNHURRIED: [&str; 2] = ["--set", "cluster.heartbeat_timeout_ms=60000"];

const SCHEDULER: &str = "scheduler/0";
/// Bad certificates that the attacker shows, each refused.
const STRANGERS: f64 = 39.0;
/// Identities of workers that the attacker has made, each cut off for what it frames.
const WORKERS: f64 = 32.0;
/// What no node of this job has to tell: it writes no checkpoint.
const NOT_HERE: &str = "testudo.checkpoint.part.duration";

/// Strangers and nodes of the job that misbehave are there by cause and role, and by nothing else; what a node's other numbers are
/// called is what `docs/metrics.md` says.
#[test]
fn whom_a_cluster_refuses_is_in_its_metrics_by_cause_and_role() {
    let (Some(collector), Some(attacker)) = (Collector::start(), Attacker::start()) else { return };
    let plan = Plan { environment: collector.environment(), ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, plan, |_| ());
    let refusals = || collector.newest(SCHEDULER, "testudo.refusals");
    let with = |words: &str| -> f64 {
        refusals().iter().filter(|(series, _)| series.contains(words)).map(|(_, count)| count).sum()
    };
    live.case("strangers", |live| {
        let order = live.order(live.node(Role::Scheduler, 0));
        attacker.attack("handshake.strangers", order);
        until("strangers in the metrics", || (with("role=none") >= STRANGERS).then_some(()));
        assert!(refusals()["cause=certificate,role=none"] >= STRANGERS / 2.0, "{:?}", refusals());
        assert_eq!(with("role=worker"), 0.0, "{:?}", refusals());
    });
    live.case("a node of the job for each of many bad frames", |live| {
        let mut order = live.order(live.node(Role::Scheduler, 0));
        order["cases"] = json!("framing");
        order["stem"] = json!(live.stem("worker"));
        order["first"] = json!(1000);
        order.as_object_mut().unwrap().remove("name");
        attacker.attack("frames.run", order);
        // An export may come between two of them.
        until("bad frames in the metrics", || {
            let found = refusals();
            let of =
                |cause: &str| found.get(&format!("cause={cause},role=worker")).copied().unwrap_or_default();
            let each = ["framing", "policy", "credit"].into_iter().all(|cause| of(cause) >= 3.0);
            (each && with("role=worker") >= WORKERS).then_some(())
        });
    });
    live.case("no series but for causes and roles", |_| {
        let causes = Cause::ALL.iter().map(|cause| cause.as_str());
        let roles: Vec<&str> = Role::ALL.iter().map(|role| role.as_str()).chain(["none"]).collect();
        let known: Vec<String> = causes
            .flat_map(|cause| roles.iter().map(move |role| format!("cause={cause},role={role}")))
            .collect();
        let found = refusals();
        assert!(found.keys().all(|series| known.contains(series)), "{found:?}");
        // Seventy names and as many addresses, and a handful of series.
        assert!(found.len() < 12, "{found:?}");
    });
    live.case("numbers that an operator looks at", |_| {
        let number = |metric| collector.number(SCHEDULER, metric).unwrap();
        assert!(number("testudo.connections") >= 4.0, "two servers, two workers");
        assert!(number("process.memory.usage") > f64::from(1 << 20));
        assert!(number("testudo.steps") >= 3.0 && number("testudo.samples") > number("testudo.steps"));
        assert!(number("testudo.audit.records") >= 2.0);
        assert_eq!(number("testudo.log.left_out"), 0.0);
        for metric in ["testudo.network.messages", "testudo.network.io"] {
            // What a server tells may be some steps old.
            until(metric, || {
                let found = collector.newest("server/0", metric);
                (found.len() == 2 && found.values().all(|count| *count > 100.0)).then_some(())
            });
        }
    });
    let (stem, ca) = (live.stem("worker"), live.folder().to_owned());
    let mut log = File::open(live.run_dir(Role::Scheduler, 0).join("node.log")).unwrap();
    live.finish();

    // The last export is the one at the process's end, and all that was told is here; but for what was taken too late.
    collector.catch_up();
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    let steps = collector.number(SCHEDULER, "testudo.steps");
    assert!(steps == Some(150.0) || said.contains(UNTAKEN), "{steps:?}");
    let nodes = [SCHEDULER, "server/0", "server/1"];
    for node in nodes {
        let everything = collector.everything(node);
        for word in ["127.0.0.", "worker/1", "spiffe:", stem.as_str(), text(&ca)] {
            assert!(!everything.contains(word), "{node} tells {word}");
        }
    }
    let mut told: Vec<Told> = nodes.iter().flat_map(|node| collector.told(node)).collect();
    told.sort();
    told.dedup();
    let mut expected = documented();
    expected.retain(|metric| !metric.name.starts_with("testudo.serve.") && metric.name != NOT_HERE);
    expected.sort();
    assert_eq!(told, expected, "what is exported is what docs/metrics.md says");
}

/// Codecs in either direction: what they save, and what they lose.
#[test]
fn what_codecs_save_and_lose_is_in_the_metrics() {
    let run = |codecs: [&str; 2]| -> Option<[f64; 4]> {
        let [push, pull] = codecs.map(|codec| format!("\"{codec}\""));
        let (push, pull) = (format!("transport.push_codec={push}"), format!("transport.pull_codec={pull}"));
        let set = [&push, &pull, "training.max_steps=12"].map(|set| ["--set", set]).concat();
        let (collector, summary) = told_in_time(Collector::start, |collector, folder| {
            let (file, dir) = (files::write_job(folder), folder.join("told"));
            let arguments = ["run", text(&file), "--run-dir", text(&dir), "--json", "--quiet"];
            let arguments = [&arguments[..], &UNHURRIED, &set].concat();
            process::start_in(PROGRAM, &arguments, &dir, &collector.environment()).wait().succeeded().json()
        })?;
        // The last export is the one at the process's end.
        collector.catch_up();
        let number = |node: &str, metric: &str| collector.number(node, metric).unwrap();
        assert_eq!(number(SCHEDULER, "testudo.steps"), 12.0);
        let ratios = ["testudo.push.ratio", "testudo.pull.ratio"].map(|metric| number(SCHEDULER, metric));
        assert_eq!(ratios.map(Some), ["push_ratio", "pull_ratio"].map(|key| summary[key].as_f64()));
        let errors = [number(SCHEDULER, "testudo.push.error"), number("server/1", "testudo.pull.error")];
        let told = summary["pull_error"].as_f64().unwrap();
        // Two servers hold all slices, none of which is longer than what is measured of it.
        assert!(told == 0.0 && errors[1] == 0.0 || (errors[1] / told - 1.0).abs() < 0.5, "{errors:?} {told}");
        Some([ratios[0], ratios[1], errors[0], errors[1]])
    };
    let Some([push, pull, push_error, pull_error]) = run(["bf16", "int8"]) else { return };
    assert_eq!(push, 0.5);
    assert!(pull > 0.25 && pull < 0.28, "{pull}");
    assert!(push_error > 1e-4 && push_error < 0.01 && pull_error > 1e-4 && pull_error < 0.01);
    assert_eq!(run(["f32", "f32"]), Some([1.0, 1.0, 0.0, 0.0]));
}

/// A collector that takes connections and never answers changes nothing of a run, and holds up no end.
#[test]
fn a_collector_that_never_answers_changes_nothing() {
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", hole.local_addr().unwrap());
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&posts);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in hole.incoming().flatten() {
            let mut begin = [0; 17];
            if stream.read_exact(&mut begin).is_ok() && &begin == b"POST /v1/metrics " {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            held.push(stream);
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = files::write_job(folder.path());
    let run = |name: &str, environment: &[(&str, String)]| {
        let dir = folder.path().join(name);
        let arguments = ["run", text(&file), "--run-dir", text(&dir), "--json", "--quiet", "--set"];
        let arguments = [&arguments[..], &["training.max_steps=40"], &UNHURRIED].concat();
        let ended = process::start_in(PROGRAM, &arguments, &dir, environment).wait().succeeded();
        ended.json()["params_blake3"].as_str().unwrap().to_owned()
    };
    let undisturbed = run("undisturbed", &[]);
    let interval = ("OTEL_METRIC_EXPORT_INTERVAL", "100".to_owned());
    let found = run("hole", &[("OTEL_EXPORTER_OTLP_ENDPOINT", url), interval]);
    assert_eq!(found, undisturbed);
    // What has come may not have been read yet.
    until("an export that was begun", || (posts.load(Ordering::SeqCst) >= 1).then_some(()));
}

/// Requests that `testudo serve` refuses, by cause.
#[test]
fn what_a_server_of_models_refuses_is_in_its_metrics_by_cause() {
    let Some(collector) = Collector::start() else { return };
    let site = site();
    let token = site.token("alice");
    let at = |name: &str| text(&site.at(name)).to_owned();
    let (dir, cert, key, public) = (at("model"), at("cert.pem"), at("server.pem"), at("key.pub.pem"));
    let mut server = Command::new(PROGRAM)
        .args(["serve", &dir, "--listen", "127.0.0.1:0", "--cert", &cert, "--key", &key])
        .args(["--public-key", &public, "--state", &at("state")])
        .args(["--budget", "3", "--max-connections-per-address", "2"])
        .envs(collector.environment())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening https://").unwrap().parse().unwrap();
    let nobody = Client::new(address, &site.root());
    let alice = Client::new(address, &site.root()).with_token(&token);
    let row = [[0.0, 0.0]];
    assert_eq!(nobody.predict(&row).status, 401);
    let announced = alice.head("POST", "/v1/predict", usize::MAX, "");
    assert_eq!(alice.send(announced.as_bytes()).unwrap().status, 413);
    for _ in 0..3 {
        assert_eq!(alice.predict(&row).status, 200);
    }
    assert_eq!((alice.predict(&row).status, alice.predict(&row).status), (403, 403));
    let expected = [("unauthenticated", 1.0), ("too_large", 1.0), ("budget_spent", 2.0)];
    let expected: BTreeMap<String, f64> =
        expected.into_iter().map(|(cause, count)| (format!("cause={cause}"), count)).collect();
    // An export may come between two requests, and read the one count before them and the other after.
    until("the refusals, and the rows", || {
        let refusals = collector.newest("serve", "testudo.serve.refusals");
        (refusals == expected && collector.number("serve", "testudo.serve.rows") == Some(3.0)).then_some(())
    });
    process::send(server.id(), Signal::TERM);
    assert!(server.wait().unwrap().success());
    let everything = collector.everything("serve");
    for word in ["alice", "127.0.0.", token.as_str()] {
        assert!(!everything.contains(word), "it tells {word}");
    }
    let mut shared = documented();
    let stems = ["testudo.serve.", "testudo.telemetry.", "process."];
    shared.retain(|metric| stems.iter().any(|stem| metric.name.starts_with(stem)));
    shared.sort();
    assert_eq!(collector.told("serve"), shared, "what is exported is what docs/metrics.md says");
}

//! What nodes tell a collector: a step as one trace of all roles, the log, and metrics, over both protocols; and what becomes of a run
//! whose collector does not listen. Judged by PyPI's `opentelemetry-proto`, `grpcio` and `prometheus-client`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test support: a failure is a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testudo_tests::files::{self, text};
use testudo_tests::live::until;
use testudo_tests::process::{self, Signal};
use testudo_tests::python;
use testudo_tests::receiver::{Receiver, Seen, told_in_time};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// No node counts as dead that is only slow.
const UNHURRIED: [&str; 2] = ["--set", "cluster.heartbeat_timeout_ms=60000"];

const NODES: [&str; 5] = ["scheduler/0", "server/0", "server/1", "worker/0", "worker/1"];
const ROLES: [&str; 3] = ["testudo.scheduler", "testudo.server", "testudo.worker"];
/// Every span of a step.
const SPANS: [&str; 12] = [
    "aggregate",
    "backward",
    "contribute",
    "encode",
    "forward",
    "lease",
    "send",
    "step",
    "testudo.Server/Pull",
    "testudo.Server/Push",
    "update",
    "verify",
];
/// OpenTelemetry's span kinds.
const SERVER: u64 = 2;
const CLIENT: u64 = 3;

/// `docs/metrics.md` has these spans, and no others.
#[test]
fn every_span_stands_in_the_reference_and_no_other() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("### ").find(|part| part.starts_with("A step as one trace")).unwrap();
    let first_cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let documented: BTreeSet<&str> =
        first_cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
    assert_eq!(documented, BTreeSet::from(SPANS));
}

/// Runs a job of twelve steps; the hash of its parameters.
fn run(folder: &Path, name: &str, set: &[String], environment: &[(&str, String)]) -> String {
    let file = files::write_job(folder);
    let dir = folder.join(name);
    let arguments =
        ["run", text(&file), "--run-dir", text(&dir), "--json", "--quiet", "--set", "training.max_steps=12"];
    let set = set.iter().flat_map(|set| ["--set", set.as_str()]);
    let arguments: Vec<&str> = arguments.into_iter().chain(UNHURRIED).chain(set).collect();
    let ended = process::start_in(PROGRAM, &arguments, &dir, environment).wait().succeeded();
    ended.json()["params_blake3"].as_str().unwrap().to_owned()
}

/// Everything that the run told is there, over `protocol`.
fn judge(receiver: &Receiver, protocol: &str, sampled: &[u64]) {
    // What a collector is told is told when a process ends, and its end is waited for.
    receiver.catch_up();
    let spans = receiver.spans();
    let ids: BTreeSet<(&str, &str)> =
        spans.iter().map(|span| (span.text("trace"), span.text("span"))).collect();
    assert_eq!(ids.len(), spans.len(), "no two spans are one");
    for span in &spans {
        let parent = span.text("parent");
        assert!(parent.is_empty() || ids.contains(&(span.text("trace"), parent)), "no parent: {span:?}");
        assert!(span.of["begin"].as_u64() <= span.of["end"].as_u64(), "{span:?}");
    }
    let mut steps: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for span in spans.iter().filter(|span| ROLES.contains(&span.text("scope"))) {
        steps.entry(span.text("trace")).or_default().push(span);
    }
    let run = spans.iter().find(|span| span.text("name") == "run").expect("the run's own span");
    let mut found: Vec<u64> = steps
        .values()
        .map(|spans| {
            let roots: Vec<_> = spans.iter().filter(|span| span.text("parent").is_empty()).collect();
            assert_eq!(roots.len(), 1, "{roots:?}");
            assert_eq!((roots[0].text("name"), roots[0].node.as_str()), ("step", "scheduler/0"));
            assert_eq!(roots[0].of["links"], serde_json::json!([run.text("trace")]));
            whole(spans);
            roots[0].of["attributes"]["testudo.step"].as_u64().unwrap()
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, sampled);

    for signal in ["traces", "metrics", "logs"] {
        let all = receiver.of(signal);
        let nodes: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(nodes, NODES, "{signal}");
        for (node, (protocols, found)) in &all {
            assert_eq!(protocols.iter().collect::<Vec<_>>(), [protocol], "{node}'s {signal}");
            assert!(!found.is_empty(), "{node}'s {signal}");
        }
    }
    for (node, (_, lines)) in receiver.of("logs") {
        let up = lines.iter().find(|line| line["body"].as_str().unwrap().ends_with("is up"));
        let up = up.unwrap_or_else(|| panic!("{node}: {lines:?}"));
        assert_eq!((&up["severity"], &up["number"]), (&"INFO".into(), &9.into()), "{up}");
        assert!(
            up["attributes"]["release"].is_string() && up["attributes"]["code.line.number"].is_u64(),
            "{up}"
        );
    }
    assert!(receiver.of("metrics")["scheduler/0"].1.contains(&"testudo.loss".into()));
}

/// The spans of one step: every kind, of every node, and as many as there are slices and workers.
fn whole(spans: &[&Seen]) {
    let names: BTreeSet<&str> = spans.iter().map(|span| span.text("name")).collect();
    assert_eq!(names, BTreeSet::from(SPANS));
    assert_eq!(spans.iter().map(|span| span.node.as_str()).collect::<BTreeSet<_>>(), BTreeSet::from(NODES));
    assert_eq!(spans.iter().map(|span| span.text("scope")).collect::<BTreeSet<_>>(), BTreeSet::from(ROLES));
    let named = |name: &str| spans.iter().filter(|span| span.text("name") == name).collect::<Vec<_>>();
    let of_kind = |name: &str, kind: u64| {
        named(name)
            .into_iter()
            .filter(|span| span.of["kind"] == kind)
            .map(|span| span.text("span"))
            .collect::<Vec<_>>()
    };
    let slices = named("update").len();
    assert!(slices > 4, "{slices} slices");
    for (method, kinds) in
        [("testudo.Server/Push", [CLIENT, SERVER]), ("testudo.Server/Pull", [CLIENT, SERVER])]
    {
        let [asked, served] = kinds.map(|kind| of_kind(method, kind));
        assert_eq!((asked.len(), served.len()), (2 * slices, 2 * slices), "{method}");
        // A request has two sides: the server's hangs under the worker's.
        let parents: BTreeSet<&str> = named(method)
            .iter()
            .filter(|span| span.of["kind"] == SERVER)
            .map(|span| span.text("parent"))
            .collect();
        assert_eq!(parents, asked.into_iter().collect(), "{method}");
        assert!(named(method).iter().all(|span| span.of["attributes"]["rpc.system"] == "testudo"));
    }
    for (name, count) in
        [("encode", 2 * slices), ("send", 2 * slices), ("verify", 2 * slices), ("aggregate", 2 * slices)]
    {
        assert_eq!(named(name).len(), count, "{name}");
    }
    // Two workers have two shards each, of six parameters.
    assert_eq!((named("contribute").len(), named("forward").len(), named("backward").len()), (2, 4, 24));
    let parameters: BTreeSet<_> = named("backward")
        .iter()
        .map(|span| span.of["attributes"]["testudo.parameter"].as_str().unwrap())
        .collect();
    assert_eq!(parameters.len(), 6, "{parameters:?}");
}

/// The cluster file names the collector; over gRPC.
#[test]
fn a_step_is_one_trace_of_all_roles_over_grpc() {
    let told = told_in_time(Receiver::start, |receiver, folder| {
        let set = [
            format!("telemetry.endpoint={}", receiver.grpc),
            "telemetry.protocol=grpc".into(),
            "telemetry.sample_every=4".into(),
        ];
        run(folder, "told", &set, &[])
    });
    let Some((receiver, told)) = told else { return };
    judge(&receiver, "grpc", &[2, 6, 10]);
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(told, run(folder.path(), "untold", &[], &[]), "no bit depends on who is told");
}

/// The variables name it; over HTTP.
#[test]
fn a_step_is_one_trace_of_all_roles_over_http() {
    // What the cluster file says comes after.
    let set = ["telemetry.endpoint=http://127.0.0.1:9".to_owned(), "telemetry.sample_every=1".to_owned()];
    let told = told_in_time(Receiver::start, |receiver, folder| {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http.clone()),
            ("OTEL_TRACES_SAMPLER", "traceidratio".to_owned()),
            ("OTEL_TRACES_SAMPLER_ARG", "0.2".to_owned()),
        ];
        run(folder, "told", &set, &environment)
    });
    let Some((receiver, _)) = told else { return };
    judge(&receiver, "http", &[2, 7]);
}

/// A listener that takes connections and whatever is sent, and never answers; or none.
fn deaf(listens: bool) -> String {
    if !listens {
        // The system gives this port to nobody: one that was bound and left might be another test's collector by now.
        return "http://127.0.0.1:9".into();
    }
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", hole.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in hole.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while matches!(stream.read(&mut bytes), Ok(1..)) {}
            });
        }
    });
    url
}

/// With every step traced and a queue of a few spans, a run whose collector is down or deaf ends, with the same bits. That nobody waits for such a
/// collector on the way, `observability/src/export.rs` tests.
#[test]
fn a_collector_that_does_not_listen_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let undisturbed = run(folder.path(), "undisturbed", &[], &[]);
    for (listens, protocol) in [(true, "grpc"), (true, "http/protobuf"), (false, "grpc")] {
        let name = format!("{listens}-{}", &protocol[..4]);
        let set = [
            format!("telemetry.endpoint={}", deaf(listens)),
            format!("telemetry.protocol={protocol}"),
            "telemetry.sample_every=1".into(),
            "telemetry.metrics_interval_ms=100".into(),
        ];
        let small =
            [("OTEL_BSP_MAX_QUEUE_SIZE", "16".to_owned()), ("OTEL_BLRP_MAX_QUEUE_SIZE", "4".to_owned())];
        assert_eq!(run(folder.path(), &name, &set, &small), undisturbed, "{name}");
    }
}

/// Every node is scraped while the run goes on; what a deaf collector makes it drop is counted there.
#[test]
fn prometheus_reads_every_node() {
    let Some(python) = python::with("prometheus_client") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (files::write_job(folder.path()), folder.path().join("run"));
    let collector = format!("telemetry.endpoint={}", deaf(true));
    let arguments = [
        "run",
        text(&file),
        "--run-dir",
        text(&dir),
        "--quiet",
        "--set",
        "telemetry.prometheus_port=0",
        "--set",
        "telemetry.sample_every=1",
        "--set",
        &collector,
    ];
    let small = [("OTEL_BSP_MAX_QUEUE_SIZE", "16".to_owned())];
    let started = process::start_in(PROGRAM, &[&arguments[..], &UNHURRIED].concat(), &dir, &small);
    let target = |node: &str| -> Option<String> {
        let file = dir.join("prometheus").join(format!("{}.json", node.replace('/', "-")));
        let targets: Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()?;
        assert_eq!(targets[0]["labels"]["testudo_node"], node);
        let address = targets[0]["targets"][0].as_str().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        Some(format!("http://{address}/metrics"))
    };
    let urls =
        until("every node's address", || NODES.map(target).into_iter().collect::<Option<Vec<String>>>());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/prometheus.py");
    let scrape = || -> Option<Vec<Value>> {
        let out = Command::new(&python).arg(&script).args(&urls).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        // A node that has only just bound its port answers when it is set up.
        out.status.success().then(|| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    };
    let sum = |node: &Value, family: &str| -> f64 {
        let samples = node[family]["samples"].as_array().into_iter().flatten();
        samples.map(|sample| sample["value"].as_f64().unwrap()).sum()
    };
    let nodes = until("steps, and spans that were dropped", || {
        let nodes = scrape()?;
        let dropped = nodes.iter().all(|node| node["testudo_telemetry_dropped"].is_object())
            && nodes[3..].iter().all(|worker| sum(worker, "testudo_telemetry_dropped") > 100.0);
        (dropped && sum(&nodes[0], "testudo_steps") >= 3.0).then_some(nodes)
    });
    for (name, node) in NODES.iter().zip(&nodes) {
        assert_eq!(node["target_info"]["samples"][0]["labels"]["service_instance_id"], *name);
        let memory = &node["process_memory_usage_bytes"];
        assert!(memory["type"] == "gauge" && sum(node, "process_memory_usage_bytes") > 1e6, "{memory}");
        let io = &node["testudo_network_io_bytes"];
        assert_eq!(io["type"], "counter");
        assert_eq!(io["samples"][0]["name"], "testudo_network_io_bytes_total");
        let ways: BTreeSet<_> = io["samples"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| &s["labels"]["network_io_direction"])
            .map(Value::to_string)
            .collect();
        assert_eq!(ways.len(), 2, "{io}");
    }
    assert!(sum(&nodes[0], "testudo_loss_ratio") > 0.0);
    // A push and a pull of each of some eight slices: what is answered is counted no more.
    for node in &nodes[1..] {
        assert!(sum(node, "testudo_requests_active") <= 64.0, "{}", node["testudo_requests_active"]);
    }
    started.signal(Signal::INT);
    let _ = started.wait().succeeded();
}

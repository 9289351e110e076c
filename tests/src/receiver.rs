//! A collector of traces, metrics and logs over gRPC and HTTP that is no code of ours: `tests/python/otlp_receiver.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use testudo_observability::setup::UNTAKEN;

use crate::python::{Followed, Script};

/// What it needs to import.
const MODULES: &str = "grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc";

/// A collector that listens until this is dropped.
#[derive(Debug)]
pub struct Receiver {
    _script: Script,
    followed: Followed,
    /// The URL for OTLP/gRPC.
    pub grpc: String,
    /// The URL for OTLP/HTTP.
    pub http: String,
    exports: Arc<Mutex<Vec<Value>>>,
}

/// A span as it was exported.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The node that exported it: `worker/1`.
    pub node: String,
    /// What the protocol says of it.
    pub of: Value,
}

impl Seen {
    /// A text of it: `trace`, `span`, `parent`, `name`, `scope`.
    #[must_use]
    pub fn text(&self, key: &str) -> &str {
        self.of[key].as_str().unwrap_or_default()
    }
}

impl Receiver {
    /// Starts one; `None` if there is no interpreter for it and none is required.
    ///
    /// # Panics
    /// When it says something else than a collector should.
    #[must_use]
    pub fn start() -> Option<Receiver> {
        Receiver::start_with(&[])
    }

    /// The same, speaking TLS alone, with the files of a certificate, of its key, and of the CA whose certificates it takes.
    ///
    /// # Panics
    /// As [`Receiver::start`].
    #[must_use]
    pub fn secured(certificate: &str, key: &str, ca: &str) -> Option<Receiver> {
        Receiver::start_with(&[certificate, key, ca])
    }

    fn start_with(arguments: &[&str]) -> Option<Receiver> {
        let mut script = Script::start_with("otlp_receiver.py", MODULES, arguments)?;
        let mut lines = BufReader::new(script.0.stdout.take().unwrap()).lines();
        let addresses: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let exports: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&exports);
        let followed = Followed::new(&mut script, lines, move |export| kept.lock().unwrap().push(export));
        let url = |key: &str| addresses[key].as_str().unwrap().to_owned();
        Some(Receiver { _script: script, followed, grpc: url("grpc"), http: url("http"), exports })
    }

    /// Waits until everything is here that was told, and taken, before this was asked.
    pub fn catch_up(&self) {
        self.followed.catch_up();
    }

    /// All that came of one signal, by node: over which protocols, and what.
    #[must_use]
    pub fn of(&self, signal: &str) -> BTreeMap<String, (BTreeSet<String>, Vec<Value>)> {
        let mut all: BTreeMap<String, (BTreeSet<String>, Vec<Value>)> = BTreeMap::new();
        for export in self.exports.lock().unwrap().iter().filter(|export| export["signal"] == signal) {
            let node = export["resource"]["service.instance.id"].as_str().unwrap().to_owned();
            let (protocols, found) = all.entry(node).or_default();
            protocols.insert(export["protocol"].as_str().unwrap().to_owned());
            found.extend(export["found"].as_array().unwrap().iter().cloned());
        }
        all
    }

    /// Whether nothing at all came.
    #[must_use]
    pub fn heard_nothing(&self) -> bool {
        self.exports.lock().unwrap().is_empty()
    }

    /// Every span.
    #[must_use]
    pub fn spans(&self) -> Vec<Seen> {
        let all = self.of("traces").into_iter();
        all.flat_map(|(node, (_, spans))| spans.into_iter().map(move |of| Seen { node: node.clone(), of }))
            .collect()
    }
}

/// Has `run` make the run `told` in a folder, for one collector after the other that `start` starts, until every node was let tell all. A
/// process waits at its end for two seconds and no longer: what a machine that stands still meanwhile takes too late is lost, and the log
/// says so. The collector, and what `run` gave; `None` if there can be no collector.
///
/// # Panics
/// When what is told comes too late again and again.
pub fn told_in_time<C, T>(start: impl Fn() -> Option<C>, run: impl Fn(&C, &Path) -> T) -> Option<(C, T)> {
    for _ in 0..5 {
        let (collector, folder) = (start()?, tempfile::tempdir().unwrap());
        let given = run(&collector, folder.path());
        let logs = std::fs::read_dir(folder.path().join("told/logs")).unwrap();
        let mut logs = logs.map(|log| std::fs::read_to_string(log.unwrap().path()).unwrap());
        if !logs.any(|log| log.contains(UNTAKEN)) {
            return Some((collector, given));
        }
    }
    panic!("what nodes tell comes too late again and again");
}

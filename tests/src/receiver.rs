//! A collector of traces, metrics and logs over gRPC and HTTP that is no code of ours: `tests/python/otlp_receiver.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::python::Script;

/// What it needs to import.
const MODULES: &str = "grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc";

/// A collector that listens until this is dropped.
#[derive(Debug)]
pub struct Receiver {
    _script: Script,
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
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        let url = |key: &str| addresses[key].as_str().unwrap().to_owned();
        Some(Receiver { _script: script, grpc: url("grpc"), http: url("http"), exports })
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

//! A collector of OpenTelemetry metrics that is no code of ours: `tests/python/otlp_metrics.py`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::python::{Followed, Script};

/// What the collector needs to import.
const MODULES: &str = "opentelemetry.proto.collector.metrics.v1.metrics_service_pb2";

/// Between two exports of a process under test, in milliseconds: the shortest that it takes.
const INTERVAL: &str = "100";

/// One metric as it was exported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// `counter`, `updowncounter` or `gauge`.
    pub kind: String,
    /// The keys of its attributes.
    pub keys: Vec<String>,
}

/// A collector that listens until this is dropped.
#[derive(Debug)]
pub struct Collector {
    _script: Script,
    followed: Followed,
    url: String,
    /// By node, its exports' metrics, the newest last.
    exports: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
}

impl Collector {
    /// Starts one; `None` if there is no interpreter for it and none is required.
    #[must_use]
    pub fn start() -> Option<Collector> {
        let mut script = Script::start("otlp_metrics.py", MODULES)?;
        let mut lines = BufReader::new(script.0.stdout.take().unwrap()).lines();
        let url = lines.next().expect("it says where it listens").unwrap();
        let exports: Arc<Mutex<BTreeMap<String, Vec<Value>>>> = Arc::default();
        let kept = Arc::clone(&exports);
        let followed = Followed::new(&mut script, lines, move |mut line| {
            assert_eq!(line["type"], "application/x-protobuf");
            for export in line["exports"].as_array_mut().unwrap() {
                let node = export["resource"]["service.instance.id"].as_str().unwrap().to_owned();
                kept.lock().unwrap().entry(node).or_default().push(export.take());
            }
        });
        Some(Collector { _script: script, followed, url, exports })
    }

    /// Waits until everything is here that was told, and taken, before this was asked.
    pub fn catch_up(&self) {
        self.followed.catch_up();
    }

    /// What has a process export metrics here, and nothing else.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.url.clone()),
            ("OTEL_TRACES_EXPORTER", "none".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL.to_owned()),
        ]
    }

    /// How many exports of `node` there have been.
    #[must_use]
    pub fn exports(&self, node: &str) -> usize {
        self.exports.lock().unwrap().get(node).map_or(0, Vec::len)
    }

    /// The series of `metric` in the newest export of `node`, by their attributes (`key=value`, in order of their keys).
    #[must_use]
    pub fn newest(&self, node: &str, metric: &str) -> BTreeMap<String, f64> {
        let exports = self.exports.lock().unwrap();
        let Some(export) = exports.get(node).and_then(|all| all.last()) else { return BTreeMap::new() };
        let metrics = export["metrics"].as_array().unwrap();
        let points = metrics.iter().filter(|found| found["name"] == metric);
        let points = points.flat_map(|found| found["points"].as_array().unwrap());
        points.map(|point| (series(&point["attributes"]), point["value"].as_f64().unwrap())).collect()
    }

    /// The only series of `metric` in the newest export of `node`; `None` if there is none.
    #[must_use]
    pub fn number(&self, node: &str, metric: &str) -> Option<f64> {
        self.newest(node, metric).remove("")
    }

    /// Every metric that `node` ever exported.
    #[must_use]
    pub fn told(&self, node: &str) -> Vec<Told> {
        let exports = self.exports.lock().unwrap();
        let metrics = exports.get(node).into_iter().flatten();
        let metrics = metrics.flat_map(|export| export["metrics"].as_array().unwrap());
        let mut told: Vec<Told> = metrics
            .map(|found| {
                let text = |key: &str| found[key].as_str().unwrap().to_owned();
                let points = found["points"].as_array().unwrap();
                let keys = points.first().and_then(|point| point["attributes"].as_object());
                let keys = keys.into_iter().flat_map(|keys| keys.keys().cloned()).collect();
                Told { name: text("name"), unit: text("unit"), kind: text("kind"), keys }
            })
            .collect();
        told.sort();
        told.dedup();
        told
    }

    /// Everything that `node` ever exported, as text.
    #[must_use]
    pub fn everything(&self, node: &str) -> String {
        let exports = self.exports.lock().unwrap();
        exports.get(node).into_iter().flatten().map(Value::to_string).collect()
    }
}

/// The table of metrics in `docs/metrics.md`.
#[must_use]
pub fn documented() -> Vec<Told> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    // A table of spans has fewer columns.
    let is_metric = |line: &&str| line.matches('|').count() == 7;
    let rows = page.lines().filter(|line| line.starts_with("| `testudo.") || line.starts_with("| `process."));
    let rows = rows.filter(is_metric);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim());
        let mut cell = || cells.next().unwrap().to_owned();
        let bare = |text: String| text.trim_matches('`').to_owned();
        let (name, unit, kind) = (bare(cell()), bare(cell()), cell());
        let mut keys: Vec<String> =
            cell().split(", ").filter(|key| !key.is_empty()).map(|key| bare(key.to_owned())).collect();
        keys.sort();
        Told { name, unit, kind, keys }
    })
    .collect()
}

fn series(attributes: &Value) -> String {
    let pairs = attributes.as_object().unwrap().iter();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("?"))).collect();
    pairs.join(",")
}

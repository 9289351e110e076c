//! Metrics for Prometheus: its text format 0.0.4, asked for over HTTP on a loopback address.
//!
//! What is told is what a collector is told ([`crate::metrics`]), under the names that OpenTelemetry's specification gives it there
//! (`testudo.network.io` in `By` is `testudo_network_io_bytes_total`), and who tells it: `target_info`.
//!
//! Invariants:
//! 1. Nobody but this machine is served ([`Door::open`] takes loopback addresses alone), and no page in a browser that calls this
//!    machine by another name.
//! 2. Who asks is heard for [`PATIENCE`], one at a time, and [`MOST`] bytes: nothing of a node waits for him.
//! 3. What is told has attributes from closed sets, and no secret is a number.

mod door;

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;

pub use door::Door;

use crate::metrics::Instrument;

/// How long somebody may take to ask, and to read the answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request at most.
pub const MOST: usize = 4 << 10;
/// What the text is, to those who ask.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Level,
    Gauge,
}

/// A number as it is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Whole(u64),
    Real(f64),
}

type Read = Box<dyn Fn() -> Vec<(Vec<KeyValue>, Number)> + Send + Sync>;

struct Kept {
    of: Instrument,
    kind: Kind,
    read: Read,
}

/// The metrics of a process; clones share them.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    instance: String,
    kept: Mutex<Vec<Kept>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Registry").field(&self.0.instance).finish()
    }
}

impl Registry {
    /// None yet, of the process `instance` (`worker/1`).
    #[must_use]
    pub fn new(instance: &str) -> Registry {
        Registry(Arc::new(Inner { instance: instance.to_owned(), kept: Mutex::default() }))
    }

    pub(crate) fn keep(
        &self,
        of: &Instrument,
        kind: Kind,
        read: impl Fn() -> Vec<(Vec<KeyValue>, Number)> + Send + Sync + 'static,
    ) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(Kept { of: *of, kind, read: Box::new(read) });
    }

    /// All of them as they are now, as Prometheus reads them.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from("# HELP target_info Who tells this.\n# TYPE target_info gauge\n");
        let instance = escaped(&self.0.instance);
        let version = env!("CARGO_PKG_VERSION");
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "target_info{{service_instance_id=\"{instance}\",service_name=\"testudo\",service_version=\"{version}\"}} 1"
        );
        for Kept { of, kind, read } in self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let name = name(of, *kind);
            let word = if *kind == Kind::Counter { "counter" } else { "gauge" };
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {word}", of.what.replace('\\', "\\\\"));
            for (attributes, number) in read() {
                let labels = attributes.iter().map(|pair| {
                    format!(
                        "{}=\"{}\"",
                        underscored(pair.key.as_str()),
                        escaped(pair.value.as_str().as_ref())
                    )
                });
                let labels = labels.collect::<Vec<_>>().join(",");
                let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
                let _ = match number {
                    Number::Whole(number) => writeln!(text, "{name}{labels} {number}"),
                    Number::Real(number) => writeln!(text, "{name}{labels} {}", real(number)),
                };
            }
        }
        text
    }
}

/// A metric's name at Prometheus: units in words, and what a counter is called
/// (<https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>).
fn name(of: &Instrument, kind: Kind) -> String {
    let mut name = underscored(of.name);
    let unit = match of.unit {
        "By" => "bytes",
        "s" => "seconds",
        "1" if kind == Kind::Gauge => "ratio",
        _ => "",
    };
    for word in [unit, if kind == Kind::Counter { "total" } else { "" }] {
        if !word.is_empty() {
            name = name + "_" + word;
        }
    }
    name
}

fn underscored(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn real(number: f64) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Attribute, Meter};

    const IO: Instrument = Instrument { name: "testudo.network.io", unit: "By", what: "Bytes, \\ and all." };
    const LOSS: Instrument = Instrument { name: "testudo.loss", unit: "1", what: "A loss." };
    const TIME: Instrument = Instrument { name: "testudo.step.duration", unit: "s", what: "A time." };
    const OPEN: Instrument = Instrument { name: "testudo.connections", unit: "{connection}", what: "Open." };
    const WAY: Attribute<bool> =
        Attribute::new(
            "network.io.direction",
            &[false, true],
            |up| if up { "transmit" } else { "re\"ceive" },
        );

    #[test]
    fn names_and_numbers_are_as_prometheus_reads_them() {
        let registry = Registry::new("worker/1");
        let meter = Meter::of(None, Some(registry.clone()));
        meter.counter_by(&IO, WAY, || [(true, u64::MAX), (false, 7)]);
        meter.gauge(&LOSS, || Some(f64::INFINITY));
        meter.gauge(&TIME, || None);
        meter.level(&OPEN, || Some(3));
        let text = registry.text();
        for line in [
            "# HELP testudo_network_io_bytes_total Bytes, \\\\ and all.",
            "# TYPE testudo_network_io_bytes_total counter",
            "testudo_network_io_bytes_total{network_io_direction=\"transmit\"} 18446744073709551615",
            "testudo_network_io_bytes_total{network_io_direction=\"re\\\"ceive\"} 7",
            "# TYPE testudo_loss_ratio gauge",
            "testudo_loss_ratio +Inf",
            "# TYPE testudo_step_duration_seconds gauge",
            "testudo_connections 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        assert!(text.contains("target_info{service_instance_id=\"worker/1\""), "{text}");
        assert!(
            !text.contains("\ntestudo_step_duration_seconds "),
            "what is not measured is not there:\n{text}"
        );
    }
}

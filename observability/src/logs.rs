//! The log for a collector: what the log file says, line by line, as OpenTelemetry's log records.
//!
//! 1. What is exported is what [`LOG_FILTER_VARIABLE`](crate::LOG_FILTER_VARIABLE) lets into the log file, of this workspace's crates
//!    alone: what the exporter's own client logs would feed itself.
//! 2. It has the log file's rates ([`crate::limit`]), and the same escapes: no value holds a control character.
//! 3. A record is bounded: fields are those that the program has at that place, and a value has at most [`MOST`] bytes.

use std::fmt;

use opentelemetry::Key;
use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::limit::Limited;
use crate::one_line::escaped;

/// Bytes of a value at most: a line that is longer is cut.
pub const MOST: usize = 4 << 10;
/// What the SDK calls the source of the records.
const SCOPE: &str = "testudo";
/// Crates whose events are exported, by prefix.
const OWN: &str = "testudo";

/// The layer that exports events.
pub(crate) struct Exported {
    logger: SdkLogger,
    rates: Limited,
}

impl Exported {
    pub(crate) fn new(provider: &SdkLoggerProvider) -> Exported {
        Exported { logger: provider.logger(SCOPE), rates: Limited::new(Box::new(std::io::sink())) }
    }
}

impl<S: Subscriber> Layer<S> for Exported {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if !metadata.target().starts_with(OWN) || !self.rates.allows(metadata) {
            return;
        }
        let mut record = self.logger.create_log_record();
        record.set_severity_number(severity(metadata.level()));
        record.set_severity_text(metadata.level().as_str());
        record.set_target(metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            record.add_attribute("code.file.path", file);
            record.add_attribute("code.line.number", i64::from(line));
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        record.set_body(AnyValue::from(fields.message));
        for (name, value) in fields.rest {
            record.add_attribute(Key::from_static_str(name), value);
        }
        self.logger.emit(record);
    }
}

fn severity(level: &Level) -> Severity {
    match *level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warn,
        Level::INFO => Severity::Info,
        Level::DEBUG => Severity::Debug,
        Level::TRACE => Severity::Trace,
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, AnyValue)>,
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        // There are no larger ones in the protocol.
        self.rest.push((field.name(), i64::try_from(value).unwrap_or(i64::MAX).into()));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.rest.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }
}

impl Fields {
    fn text(&mut self, field: &Field, text: &str) {
        let line = escaped(cut(text)).into_owned();
        match field.name() {
            "message" => self.message = line,
            name => self.rest.push((name, line.into())),
        }
    }
}

/// The first [`MOST`] bytes, or up to three fewer where a character would be cut.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MOST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::logs::{LogBatch, LogExporter};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::Redacted;

    #[derive(Clone, Debug, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl LogExporter for Seen {
        async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch.iter().map(|(record, _)| format!("{record:?}")));
            Ok(())
        }
    }

    fn told(events: impl FnOnce()) -> Vec<String> {
        let seen = Seen::default();
        let provider = SdkLoggerProvider::builder().with_simple_exporter(seen.clone()).build();
        let subscriber = tracing_subscriber::registry().with(Exported::new(&provider));
        tracing::subscriber::with_default(subscriber, events);
        seen.0.lock().unwrap().clone()
    }

    #[test]
    fn an_event_is_a_record_with_its_fields() {
        let found = told(|| {
            let key = Redacted::new("hunter2");
            tracing::warn!(step = 7_u64, loss = 0.5, ok = true, ?key, peer = "server/0", "slow {}", "pull");
        });
        assert_eq!(found.len(), 1);
        let words = [
            "slow pull",
            "step",
            "Int(7)",
            "Double(0.5)",
            "Boolean(true)",
            "server/0",
            "Warn",
            "code.file.path",
        ];
        for word in words {
            assert!(found[0].contains(word), "{word} is missing: {}", found[0]);
        }
        assert!(!found[0].contains("hunter2"), "{}", found[0]);
    }

    /// Invariants 1 to 3.
    #[test]
    fn records_are_ours_alone_and_escaped_and_short_and_few() {
        let found = told(|| {
            tracing::error!(target: "hyper::client", "not ours");
            tracing::info!("one\nWARN forged \u{1b}[2J");
            tracing::info!("{}", "ü".repeat(MOST));
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("one\\\\nWARN"), "{}", found[0]);
        assert!(found[1].len() < MOST + 1000 && found[1].contains('ü'));
        let flood = told(|| (0..100_000).for_each(|nth| tracing::warn!(nth, "what a peer provokes")));
        assert!(flood.len() < 10_000, "{}", flood.len());
    }
}

//! Logs, traces, metrics and the propagation of trace context for every Testudo process, and the audit log's chain.
//!
//! One call, [`init`], sets up `tracing`: a log file (or any writer), a terse copy on standard error,
//! and OpenTelemetry. The rest of the workspace emits `tracing` events and spans and knows nothing of
//! OpenTelemetry; what crosses the network is the 25 bytes of [`trace_context`].
//!
//! - [`setup`]: [`Options`], [`init`], [`build`], [`Guard`].
//! - [`export`]: which collector spans, metrics and the log go to, from the standard `OTEL_*` variables and the cluster file.
//! - [`steps`]: a step of training as one trace across processes.
//! - [`logs`]: the log for a collector.
//! - [`scrape`]: metrics for Prometheus, on loopback.
//! - [`metrics`]: [`Meter`], to which numbers are handed, under closed sets of attributes.
//! - [`trace_context`]: the W3C trace context as binary and as text; [`current_traceparent`] and
//!   [`set_remote_parent`].
//! - [`audit`]: the hash-chained, signed log of what a third party may want to check.
//! - [`limit`]: how many lines each place in the program may log.
//! - [`redact`]: [`Redacted`], a wrapper whose value no log line can show.

pub mod audit;
pub mod export;
pub mod limit;
pub mod logs;
pub mod metrics;
mod one_line;
pub mod redact;
pub mod scrape;
pub mod setup;
pub mod steps;
pub mod trace_context;

pub use export::{Environment, Files, Opened, Pem, Settings, Source, exports};
pub use metrics::{Attribute, Instrument, Meter};
pub use redact::Redacted;
pub use scrape::Door;
pub use setup::{Guard, InitError, LOG_FILTER_VARIABLE, LogTarget, Options, build, init, init_with};
pub use steps::{Place, Span, StepTrace};
pub use trace_context::{TraceContextError, TraceParent, current_traceparent, set_remote_parent};

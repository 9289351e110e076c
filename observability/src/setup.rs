//! Sets up logs, traces and metrics for one process, behind one function.
//!
//! Every node writes a log file of its own: RFC 3339 timestamps in UTC, level, the spans around the
//! event, target, message and fields. `TESTUDO_LOG` filters it, in the directive syntax of
//! `tracing-subscriber` (`info`, `testudo_actors=debug,warn`); the default is [`DEFAULT_FILTER`].
//!
//! Invariants:
//! 1. Dropping the [`Guard`] flushes spans and metrics and returns within [`FLUSH_DEADLINE`], whatever the
//!    collector does; the log says it ([`UNTAKEN`]) if the collector has not taken them by then.
//! 2. The log file is created with mode 0600 and is appended to, never truncated.
//! 3. A bad `TESTUDO_LOG`, an unwritable log or an unusable collector setting is an error at start-up,
//!    not silence.
//! 4. An event is one line of the log, and of standard error, whatever strangers' words are in it.
//! 5. What the exporter's own HTTP client logs or traces is never exported (it would feed itself).
//! 6. No call site writes more than its rate to the log file, and what is left out is counted there ([`crate::limit`]).

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::export::{self, Clients, Environment, Tally};
use crate::limit::Limited;
use crate::logs::Exported;
use crate::metrics::{Attribute, Instrument, Meter};
use crate::one_line::OneLine;
use crate::scrape::Registry;
use crate::steps::Steps;

/// The environment variable that filters the log file.
pub const LOG_FILTER_VARIABLE: &str = "TESTUDO_LOG";
/// What is logged when [`LOG_FILTER_VARIABLE`] is unset.
pub const DEFAULT_FILTER: &str = "info";
/// How long dropping a [`Guard`] waits for the collector: long enough for one slow request, short enough
/// that a dead collector does not hold up the end of a run.
pub const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
/// What the log says last when a collector has not taken within [`FLUSH_DEADLINE`] what it was told at the end.
pub const UNTAKEN: &str = "a collector has not taken in time what it was told at the end, which may be lost";
/// Targets whose spans are exported: every crate of this workspace, by prefix.
const OWN_TARGETS: &str = "testudo";
/// The target of spans that only say in the log where a line belongs: no collector hears of them, whatever they are in.
pub const LOG_ONLY: &str = "testudo_actors::log";
/// What [`crate::limit`] left out.
const LINES_LEFT_OUT: Instrument = Instrument {
    name: "testudo.log.left_out",
    unit: "{line}",
    what: "Lines that were left out of the log because their place in the program had written its rate.",
};

/// What a collector was not told.
const LOST: Instrument = Instrument {
    name: "testudo.telemetry.dropped",
    unit: "{item}",
    what: "Spans and lines of the log that no collector has: too many waited for it, or it did not take them.",
};

/// Of which signal, and why.
const SIGNAL: Attribute<Lost> = Attribute::new("signal", &[Lost::Traces, Lost::Logs], |lost| match lost {
    Lost::Traces => "traces",
    Lost::Logs => "logs",
});
const WHY: Attribute<bool> =
    Attribute::new(
        "error.type",
        &[false, true],
        |failed| if failed { "export_failed" } else { "queue_full" },
    );

/// What is kept for a collector in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Traces,
    Logs,
}

/// Where the full log goes.
#[derive(Default)]
pub enum LogTarget {
    /// Nowhere.
    #[default]
    Nowhere,
    /// To this file, appended; its folder must exist.
    File(PathBuf),
    /// To this writer; one call of `write` or more per event, under a lock.
    Writer(Box<dyn Write + Send>),
}

/// What [`init`] is told about this process.
pub struct Options {
    /// Who this is, `role/index` ("worker/1"); it names the process to the collector.
    pub role_name: String,
    /// The full log.
    pub log: LogTarget,
    /// What is also shown on standard error, without timestamps; `LevelFilter::OFF` for nothing.
    pub stderr: LevelFilter,
}

impl Options {
    /// Options for the node `role_name` with no log file and warnings on standard error.
    pub fn new(role_name: impl Into<String>) -> Self {
        Self { role_name: role_name.into(), log: LogTarget::Nowhere, stderr: LevelFilter::WARN }
    }

    /// The same, logging to the file at `path`.
    pub fn with_log_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = LogTarget::File(path.into());
        self
    }

    /// The same, logging to `writer`.
    pub fn with_log_writer(mut self, writer: impl Write + Send + 'static) -> Self {
        self.log = LogTarget::Writer(Box::new(writer));
        self
    }

    /// The same, showing events of `level` and worse on standard error.
    pub const fn with_stderr(mut self, level: LevelFilter) -> Self {
        self.stderr = level;
        self
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The log file cannot be opened.
    #[error("cannot open the log file {path}: {source}; check that its folder exists and can be written")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// `TESTUDO_LOG` does not parse.
    #[error(
        "{LOG_FILTER_VARIABLE}={found:?} is not a log filter: {reason}; write for instance {LOG_FILTER_VARIABLE}=info or {LOG_FILTER_VARIABLE}=info,testudo_transport=debug"
    )]
    Filter {
        /// The variable's value.
        found: String,
        /// What the parser said.
        reason: String,
    },
    /// The OTLP endpoint's URL cannot be used.
    #[error(
        "OpenTelemetry endpoint {url:?}: only https:// and http:// URLs are served, for instance https://collector.example:4318"
    )]
    EndpointScheme {
        /// The URL.
        url: String,
    },
    /// A file for `https://` collectors that cannot be used.
    #[error("{path}: {reason}; {named_by} in the cluster file, must name a PEM file that can be read")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The variable and the key that may have named it.
        named_by: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An `https://` collector, and nobody is trusted.
    #[error(
        "no CA is trusted on this system (none of {looked_at} is there): name the one that the collector's certificate leads to in \
         OTEL_EXPORTER_OTLP_CERTIFICATE, or telemetry.certificate in the cluster file"
    )]
    NoRoots {
        /// Where the system's could be.
        looked_at: String,
    },
    /// TLS cannot be spoken at all.
    #[error("TLS cannot be spoken to an OpenTelemetry collector: {reason}")]
    Tls {
        /// What the library said.
        reason: String,
    },
    /// An OTLP protocol that is not spoken.
    #[error(
        "OTEL_EXPORTER_OTLP_PROTOCOL={found:?} is not served: use http/protobuf (a collector's port 4318), grpc (its port 4317), or unset it"
    )]
    Protocol {
        /// The variable's value.
        found: String,
    },
    /// An exporter that is not there.
    #[error(
        "{variable}={found:?} is not served: use otlp or none (for metrics prometheus, too), or unset it"
    )]
    Exporter {
        /// `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` or `OTEL_LOGS_EXPORTER`.
        variable: &'static str,
        /// The variable's value.
        found: String,
    },
    /// An interval between exports that is none.
    #[error(
        "OTEL_METRIC_EXPORT_INTERVAL={found:?} is no interval: write milliseconds, at least {}, or unset it",
        export::SHORTEST_INTERVAL.as_millis()
    )]
    Interval {
        /// The variable's value.
        found: String,
    },
    /// A choice of steps that is none.
    #[error(
        "OTEL_TRACES_SAMPLER with {found:?} is not served: use always_on, always_off, or traceidratio with OTEL_TRACES_SAMPLER_ARG from 0 to 1 (0.01 for one step in a hundred)"
    )]
    Sampler {
        /// The sampler, or its argument.
        found: String,
    },
    /// Metrics would be shown to others.
    #[error(
        "OTEL_EXPORTER_PROMETHEUS_HOST={found:?} is no loopback address: metrics are served to this machine alone; use 127.0.0.1 or ::1, or unset it"
    )]
    PrometheusHost {
        /// The variable's value.
        found: String,
    },
    /// No port.
    #[error(
        "OTEL_EXPORTER_PROMETHEUS_PORT={found:?} is no port: write a number up to 65535 (0 for any), or unset it"
    )]
    PrometheusPort {
        /// The variable's value.
        found: String,
    },
    /// The exporter cannot be built.
    #[error("cannot export to {url}: {reason}; check the OTEL_EXPORTER_OTLP_* variables")]
    Collector {
        /// Where spans or metrics were to go.
        url: String,
        /// What the OpenTelemetry SDK said.
        reason: String,
    },
    /// Logging is already set up in this process.
    #[error("logging is already set up in this process: call init once, from main")]
    AlreadySet,
}

/// Keeps logs, traces and metrics going; dropping it flushes what is left, in bounded time.
#[must_use = "dropping the guard ends the export of spans and metrics"]
#[derive(Debug)]
pub struct Guard {
    tracer: Option<SdkTracerProvider>,
    meter: Option<SdkMeterProvider>,
    logger: Option<SdkLoggerProvider>,
    log: Option<Limited>,
    registry: Option<Registry>,
    steps: Option<Steps>,
    /// Whether anything is exported.
    exports: bool,
}

impl Guard {
    /// Where this process's numbers are told; what is told is exported where the environment names a collector.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter::of(self.meter.as_ref(), self.registry.clone())
    }

    /// What is told, for whoever scrapes it; `None` where nothing says that metrics are to be scraped.
    #[must_use]
    pub fn registry(&self) -> Option<Registry> {
        self.registry.clone()
    }

    fn new(log: Option<Limited>) -> Guard {
        Guard { tracer: None, meter: None, logger: None, log, registry: None, steps: None, exports: false }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.end();
        }
        let (tracer, meter, logger) = (self.tracer.take(), self.meter.take(), self.logger.take());
        let deadline = Instant::now() + FLUSH_DEADLINE;
        // Beside each other: a collector that is slow to take the one does not cost the other.
        let flushes = [
            tracer.and_then(|spans| flush(move || spans.shutdown_with_timeout(FLUSH_DEADLINE))),
            meter.and_then(|metrics| flush(move || metrics.shutdown_with_timeout(FLUSH_DEADLINE))),
            logger.and_then(|lines| flush(move || lines.shutdown_with_timeout(FLUSH_DEADLINE))),
        ];
        let mut is_late = false;
        for flushed in flushes.into_iter().flatten() {
            let ended = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            is_late |= match ended {
                Ok(all_taken) => !all_taken && Instant::now() >= deadline,
                Err(why) => why == RecvTimeoutError::Timeout,
            };
        }
        if let Some(log) = self.log.as_ref().filter(|_| is_late && self.exports) {
            log.say("testudo_observability::setup", UNTAKEN);
        }
    }
}

/// Runs a flush beside this thread and tells its end, and whether it was a good one: the SDK's own shutdown joins its thread, so the
/// wait for it happens on a thread that may be abandoned.
fn flush(shut_down: impl FnOnce() -> OTelSdkResult + Send + 'static) -> Option<mpsc::Receiver<bool>> {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::Builder::new().name("testudo-flush".into()).spawn(move || {
        let _ = done.send(shut_down().is_ok());
    });
    thread.ok().map(|_| wait)
}

/// Sets up logs, traces and metrics for the whole process, from [`Options`] and the process's environment. Keep
/// the guard until the process ends.
///
/// # Errors
/// See [`InitError`].
pub fn init(options: Options) -> Result<Guard, InitError> {
    init_with(options, &Environment::from_process())
}

/// The same from an environment that was read before, and a cluster file was added to.
///
/// # Errors
/// See [`InitError`].
pub fn init_with(options: Options, environment: &Environment) -> Result<Guard, InitError> {
    let (dispatch, mut guard) = build(options, environment)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| InitError::AlreadySet)?;
    if let Some(steps) = guard.steps.take() {
        steps.install();
    }
    Ok(guard)
}

/// Builds what [`init`] installs, without installing it: for tests, and for programs that carry their
/// own subscriber.
///
/// # Errors
/// See [`InitError`]; [`InitError::AlreadySet`] cannot occur.
pub fn build(options: Options, environment: &Environment) -> Result<(Dispatch, Guard), InitError> {
    let writer: Option<Box<dyn Write + Send>> = match options.log {
        LogTarget::Nowhere => None,
        LogTarget::Writer(writer) => Some(writer),
        LogTarget::File(path) => Some(Box::new(open(path)?)),
    };
    let limited = writer.map(|writer| Limited::new(Box::new(OneLine(writer))));
    let directives = filter(environment)?;
    let log = limited.clone().map(|limited| {
        tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_timer(SystemTime)
            .with_target(true)
            .with_writer(limited)
            .with_filter(directives)
    });
    let stderr = (options.stderr != LevelFilter::OFF).then(|| {
        tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(|| OneLine(std::io::stderr()))
            .with_filter(options.stderr)
    });
    let (mut guard, mut lost, mut clients) = (Guard::new(limited), Vec::new(), Clients::default());
    guard.registry = environment.scraped_at()?.map(|_| Registry::new(&options.role_name));
    let spans = if environment.is_disabled() {
        None
    } else {
        let traces = export::tracer(&options.role_name, environment, &mut clients)?;
        let level = if traces.spans.is_some() { LevelFilter::DEBUG } else { LevelFilter::INFO };
        if let Some((spans, tally)) = traces.spans {
            guard.steps = Some(Steps::new(spans, environment.sample_every()?));
            lost.push((Lost::Traces, tally));
        }
        let targets = Targets::new().with_target(OWN_TARGETS, level).with_target(LOG_ONLY, LevelFilter::OFF);
        let tracer = traces.provider.tracer("testudo");
        guard.tracer = Some(traces.provider);
        Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(targets))
    };
    let mut exported = None;
    if let Some((provider, tally)) = export::logger(&options.role_name, environment, &mut clients)? {
        exported = Some(Exported::new(&provider).with_filter(filter(environment)?));
        guard.logger = Some(provider);
        lost.push((Lost::Logs, tally));
    }
    guard.meter = export::meter(&options.role_name, environment, &mut clients)?;
    if let Some(log) = guard.log.clone() {
        guard.meter().counter(&LINES_LEFT_OUT, move || log.left_out());
    }
    guard.exports = guard.meter.is_some() || !lost.is_empty();
    // Without a queue nothing can be dropped.
    if !lost.is_empty() {
        guard.meter().counter_by(&LOST, (SIGNAL, WHY), move || {
            let both = |(of, tally): &(Lost, Arc<Tally>)| {
                [((*of, false), tally.full()), ((*of, true), tally.failed())]
            };
            lost.iter().flat_map(both).collect::<Vec<_>>()
        });
    }
    let subscriber = tracing_subscriber::registry().with(spans).with(exported).with(log).with(stderr);
    let dispatch = Dispatch::new(subscriber);
    tracing::dispatcher::with_default(&dispatch, || {
        for line in environment.plaintext() {
            tracing::warn!("{line}");
        }
    });
    Ok((dispatch, guard))
}

/// What is let into the log.
fn filter(environment: &Environment) -> Result<EnvFilter, InitError> {
    let filter = environment.log_filter.as_deref().unwrap_or(DEFAULT_FILTER);
    let parsed = EnvFilter::builder().parse(filter);
    parsed.map_err(|error| InitError::Filter { found: filter.to_string(), reason: error.to_string() })
}

fn open(path: PathBuf) -> Result<std::fs::File, InitError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&path).map_err(|source| InitError::Open { path, source })
}

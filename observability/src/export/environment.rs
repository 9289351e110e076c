//! What the environment and the cluster file say of collectors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_sdk::Resource;

use super::credentials::Opened;
use super::source::Files;
use super::{DEFAULT_INTERVAL, SHORTEST_INTERVAL, TIMEOUT};
use crate::setup::InitError;

/// One step in so many is traced, if nothing else is said.
pub const DEFAULT_SAMPLE_EVERY: u64 = 100;
/// Where metrics can be scraped, if nothing else is said (OpenTelemetry specification).
const PROMETHEUS_PORT: u16 = 9464;
/// Spans, or lines of the log, that may wait for a collector, if nothing else is said (OpenTelemetry specification).
const QUEUE: usize = 2048;
/// The most that may be asked for: at a kilobyte or so each, they are memory that training does not have.
pub(super) const MOST_QUEUE: usize = 1 << 16;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Numbers.
    Metrics,
    /// Lines of the log.
    Logs,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 3] = [Signal::Traces, Signal::Metrics, Signal::Logs];

    /// Path that the OTLP/HTTP specification adds to a base endpoint.
    const fn path(self) -> &'static str {
        match self {
            Signal::Traces => "v1/traces",
            Signal::Metrics => "v1/metrics",
            Signal::Logs => "v1/logs",
        }
    }

    /// The variable that names its exporter.
    const fn exporter_variable(self) -> &'static str {
        match self {
            Signal::Traces => "OTEL_TRACES_EXPORTER",
            Signal::Metrics => "OTEL_METRICS_EXPORTER",
            Signal::Logs => "OTEL_LOGS_EXPORTER",
        }
    }

    /// What it is called in the variables that are about it alone.
    const fn word(self) -> &'static str {
        match self {
            Signal::Traces => "TRACES",
            Signal::Metrics => "METRICS",
            Signal::Logs => "LOGS",
        }
    }
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`
    Grpc,
    /// `http/protobuf`
    Http,
}

impl Protocol {
    fn parse(text: &str) -> Result<Protocol, InitError> {
        match text.trim() {
            "grpc" => Ok(Protocol::Grpc),
            "http/protobuf" => Ok(Protocol::Http),
            other => Err(InitError::Protocol { found: other.to_string() }),
        }
    }
}

/// What the environment says of one signal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Export {
    /// `OTEL_EXPORTER_OTLP_<SIGNAL>_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_<SIGNAL>_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Option<String>,
    /// `OTEL_<SIGNAL>_EXPORTER`.
    pub exporter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_<SIGNAL>_TIMEOUT`, else `OTEL_EXPORTER_OTLP_TIMEOUT`, in milliseconds.
    pub timeout: Option<String>,
    /// `OTEL_EXPORTER_OTLP_<SIGNAL>_CERTIFICATE`, `..._CLIENT_CERTIFICATE` and `..._CLIENT_KEY`, else those without the signal.
    pub files: Files,
}

/// What a cluster file says of collectors; the variables of [`Environment`] come first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The collector's base URL.
    pub endpoint: Option<String>,
    /// `grpc` or `http/protobuf`.
    pub protocol: Option<String>,
    /// The files that an `https://` collector is spoken to with.
    pub files: Files,
    /// One step in so many is traced; 0 for none.
    pub sample_every: Option<u64>,
    /// Milliseconds between two exports of metrics.
    pub interval_ms: Option<u64>,
    /// The port of the loopback address on which metrics can be scraped; 0 for one that the system chooses.
    pub prometheus: Option<u16>,
}

/// The environment variables that [`crate::build`] obeys, read once, so that tests need not change the
/// process's environment. `None` and the empty string both mean unset (OpenTelemetry specification).
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `TESTUDO_LOG`: filter directives for the log file.
    pub log_filter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Where spans go.
    pub traces: Export,
    /// Where metrics go.
    pub metrics: Export,
    /// Where the log goes, beside its file.
    pub logs: Export,
    /// `OTEL_METRIC_EXPORT_INTERVAL`, in milliseconds.
    pub interval: Option<String>,
    /// `OTEL_SDK_DISABLED`.
    pub sdk_disabled: Option<String>,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_TRACES_SAMPLER`.
    pub sampler: Option<String>,
    /// `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler_argument: Option<String>,
    /// `OTEL_BSP_MAX_QUEUE_SIZE`.
    pub span_queue: Option<String>,
    /// `OTEL_BLRP_MAX_QUEUE_SIZE`.
    pub log_queue: Option<String>,
    /// `OTEL_EXPORTER_PROMETHEUS_HOST`.
    pub prometheus_host: Option<String>,
    /// `OTEL_EXPORTER_PROMETHEUS_PORT`.
    pub prometheus_port: Option<String>,
    /// What holds where no variable says otherwise.
    pub settings: Settings,
    /// What of the files is read already: [`Environment::open`].
    pub opened: Opened,
}

impl Environment {
    /// The variables of this process.
    pub fn from_process() -> Self {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let export = |signal: Signal| {
            let own = |what: &str| read(&format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.word()));
            let file = |what: &str| {
                own(what).or_else(|| read(&format!("OTEL_EXPORTER_OTLP_{what}"))).map(PathBuf::from)
            };
            Export {
                endpoint: own("ENDPOINT"),
                protocol: own("PROTOCOL").or_else(|| read("OTEL_EXPORTER_OTLP_PROTOCOL")),
                exporter: read(signal.exporter_variable()),
                timeout: own("TIMEOUT").or_else(|| read("OTEL_EXPORTER_OTLP_TIMEOUT")),
                files: Files {
                    certificate: file("CERTIFICATE"),
                    client_certificate: file("CLIENT_CERTIFICATE"),
                    client_key: file("CLIENT_KEY"),
                },
            }
        };
        Self {
            log_filter: read(crate::LOG_FILTER_VARIABLE),
            endpoint: read("OTEL_EXPORTER_OTLP_ENDPOINT"),
            traces: export(Signal::Traces),
            metrics: export(Signal::Metrics),
            logs: export(Signal::Logs),
            interval: read("OTEL_METRIC_EXPORT_INTERVAL"),
            sdk_disabled: read("OTEL_SDK_DISABLED"),
            service_name: read("OTEL_SERVICE_NAME"),
            sampler: read("OTEL_TRACES_SAMPLER"),
            sampler_argument: read("OTEL_TRACES_SAMPLER_ARG"),
            span_queue: read("OTEL_BSP_MAX_QUEUE_SIZE"),
            log_queue: read("OTEL_BLRP_MAX_QUEUE_SIZE"),
            prometheus_host: read("OTEL_EXPORTER_PROMETHEUS_HOST"),
            prometheus_port: read("OTEL_EXPORTER_PROMETHEUS_PORT"),
            settings: Settings::default(),
            opened: Opened::default(),
        }
    }

    /// The same, with what a cluster file says where no variable does.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// Whether OpenTelemetry is off altogether.
    pub fn is_disabled(&self) -> bool {
        self.sdk_disabled.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    pub(super) const fn export(&self, signal: Signal) -> &Export {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
            Signal::Logs => &self.logs,
        }
    }

    /// How long a signal's collector may take to answer; what is no number of milliseconds says nothing.
    pub(super) fn timeout(&self, signal: Signal) -> Duration {
        let said = self.export(signal).timeout.as_deref().and_then(|text| text.trim().parse().ok());
        said.map_or(TIMEOUT, Duration::from_millis)
    }

    /// How a signal's collector is spoken to.
    ///
    /// # Errors
    /// A protocol that this build does not speak.
    pub fn protocol(&self, signal: Signal) -> Result<Protocol, InitError> {
        let said = self.export(signal).protocol.as_ref().or(self.settings.protocol.as_ref());
        said.map_or(Ok(Protocol::Http), |text| Protocol::parse(text))
    }

    /// The full URL that a signal is posted to, or the collector's over gRPC; `None` where nothing is exported.
    ///
    /// # Errors
    /// An exporter, protocol or URL scheme that this build cannot serve.
    pub fn url(&self, signal: Signal) -> Result<Option<String>, InitError> {
        let export = self.export(signal);
        if self.is_disabled() {
            return Ok(None);
        }
        let base = self.endpoint.as_ref().or(self.settings.endpoint.as_ref());
        // Where nothing names a collector of ours, what else the environment says is for others.
        let (address, is_base) = match (&export.endpoint, base) {
            (Some(full), _) => (full.trim(), false),
            (None, Some(base)) => (base.trim(), true),
            (None, None) => return Ok(None),
        };
        if !self.exporters(signal)?.otlp {
            return Ok(None);
        }
        let url = match self.protocol(signal)? {
            Protocol::Http if is_base => format!("{}/{}", address.trim_end_matches('/'), signal.path()),
            Protocol::Http | Protocol::Grpc => address.to_string(),
        };
        match url.starts_with("http://") || url.starts_with("https://") {
            true => Ok(Some(url)),
            false => Err(InitError::EndpointScheme { url }),
        }
    }

    /// Which exporters a signal's variable names; without it, OTLP.
    fn exporters(&self, signal: Signal) -> Result<Exporters, InitError> {
        let Some(text) = self.export(signal).exporter.as_deref() else {
            return Ok(Exporters { otlp: true, prometheus: None });
        };
        let mut found = Exporters { otlp: false, prometheus: Some(false) };
        for word in text.split(',').map(str::trim) {
            match word {
                "none" | "" => {}
                "otlp" => found.otlp = true,
                "prometheus" if signal == Signal::Metrics => found.prometheus = Some(true),
                other => {
                    let variable = signal.exporter_variable();
                    return Err(InitError::Exporter { variable, found: other.to_string() });
                }
            }
        }
        Ok(found)
    }

    /// Where metrics can be scraped: a loopback address; `None` where they cannot.
    ///
    /// # Errors
    /// An address that others reach, and what is no port.
    pub fn scraped_at(&self) -> Result<Option<SocketAddr>, InitError> {
        // An exporter of others' is refused only where a collector is named.
        let wanted = self.exporters(Signal::Metrics).map(|found| found.prometheus).unwrap_or(Some(false));
        if self.is_disabled() || !wanted.unwrap_or(self.settings.prometheus.is_some()) {
            return Ok(None);
        }
        let host = match self.prometheus_host.as_deref().map(str::trim) {
            None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => {
                let address = text.parse().ok().filter(IpAddr::is_loopback);
                address.ok_or_else(|| InitError::PrometheusHost { found: text.to_string() })?
            }
        };
        let port = match self.prometheus_port.as_deref().map(str::trim) {
            None => self.settings.prometheus.unwrap_or(PROMETHEUS_PORT),
            Some(text) => text.parse().map_err(|_| InitError::PrometheusPort { found: text.to_string() })?,
        };
        Ok(Some(SocketAddr::new(host, port)))
    }

    /// How long lies between two exports of metrics.
    ///
    /// # Errors
    /// What is no number of milliseconds, or too few.
    pub fn interval(&self) -> Result<Duration, InitError> {
        let said = self.settings.interval_ms.map(Duration::from_millis);
        let Some(text) = self.interval.as_deref().map(str::trim) else {
            return Ok(said.unwrap_or(DEFAULT_INTERVAL));
        };
        let interval = text.parse().map(Duration::from_millis).ok();
        interval
            .filter(|interval| *interval >= SHORTEST_INTERVAL)
            .ok_or_else(|| InitError::Interval { found: text.to_string() })
    }

    /// One step in so many is traced; 0 for none. A ratio is turned into the whole number of steps that is nearest.
    ///
    /// # Errors
    /// A sampler that is not served, or a ratio that is none.
    pub fn sample_every(&self) -> Result<u64, InitError> {
        let bad = |found: &str| Err(InitError::Sampler { found: found.to_string() });
        match self.sampler.as_deref().map(str::trim) {
            None => Ok(self.settings.sample_every.unwrap_or(DEFAULT_SAMPLE_EVERY)),
            Some("always_on" | "parentbased_always_on") => Ok(1),
            Some("always_off" | "parentbased_always_off") => Ok(0),
            Some("traceidratio" | "parentbased_traceidratio") => {
                let text = self.sampler_argument.as_deref().map_or("1", str::trim);
                match text.parse::<f64>() {
                    Ok(0.0) => Ok(0),
                    Ok(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok((1.0 / ratio).round() as u64),
                    _ => bad(text),
                }
            }
            Some(other) => bad(other),
        }
    }

    /// How many spans may wait for their collector.
    pub(super) fn spans_waiting(&self) -> usize {
        queue(self.span_queue.as_deref())
    }

    /// How many lines of the log may wait for their collector.
    pub(super) fn lines_waiting(&self) -> usize {
        queue(self.log_queue.as_deref())
    }

    /// Whether a collector is named, over TCP.
    #[must_use]
    pub fn exports(&self) -> bool {
        Signal::ALL.into_iter().any(|signal| matches!(self.url(signal), Ok(Some(_))))
    }

    pub(super) fn resource(&self, role_name: &str) -> Resource {
        let mut resource = Resource::builder();
        if self.service_name.is_none() {
            resource = resource.with_service_name("testudo");
        }
        resource
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", role_name.to_string()))
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build()
    }
}

/// Where a signal goes; `prometheus` is `None` where no variable says.
struct Exporters {
    otlp: bool,
    prometheus: Option<bool>,
}

fn queue(text: Option<&str>) -> usize {
    let asked = text.and_then(|text| text.trim().parse::<usize>().ok()).filter(|most| *most > 0);
    asked.map_or(QUEUE, |most| most.min(MOST_QUEUE))
}

#[cfg(test)]
mod tests;

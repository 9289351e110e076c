//! Which OpenTelemetry collector spans and metrics go to, from the standard environment variables.
//!
//! | variable | meaning here |
//! |---|---|
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | base URL; `/v1/traces` and `/v1/metrics` are added |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` | full URL of one signal; wins over the base URL |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL` | only `http/protobuf` |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` | `none` exports nothing of that signal; otherwise only `otlp` |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | milliseconds between two exports of metrics, from 100; 60000 if unset |
//! | `OTEL_SDK_DISABLED` | `true` turns OpenTelemetry off: no export and no trace context |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`, `OTEL_TRACES_SAMPLER`, headers, timeouts, temporality | as the OpenTelemetry SDK reads them |
//!
//! Invariants:
//! 1. No endpoint, no exporter: nothing is sent anywhere that the operator did not name.
//! 2. A failing collector costs the training nothing: spans go through a bounded queue that drops, metrics are numbers that are
//!    kept anyway, and the first failure of each is logged once, with what to check.

mod reported;

use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

use crate::metrics;
use crate::setup::InitError;
use reported::Reported;

/// The one OTLP encoding built in.
const PROTOCOL: &str = "http/protobuf";
/// How long a collector may take to answer, if nothing else is said (OpenTelemetry specification).
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two exports of metrics, if nothing else is said (OpenTelemetry specification).
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest that may be asked for: exporting is not to be what a node does.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Numbers.
    Metrics,
}

impl Signal {
    /// Path that the OTLP/HTTP specification adds to a base endpoint.
    const fn path(self) -> &'static str {
        match self {
            Signal::Traces => "v1/traces",
            Signal::Metrics => "v1/metrics",
        }
    }

    /// The variable that names its exporter.
    const fn exporter_variable(self) -> &'static str {
        match self {
            Signal::Traces => "OTEL_TRACES_EXPORTER",
            Signal::Metrics => "OTEL_METRICS_EXPORTER",
        }
    }
}

/// What the environment says of one signal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Export {
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` or `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Option<String>,
    /// `OTEL_TRACES_EXPORTER` or `OTEL_METRICS_EXPORTER`.
    pub exporter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_TIMEOUT` or `OTEL_EXPORTER_OTLP_METRICS_TIMEOUT`, else `OTEL_EXPORTER_OTLP_TIMEOUT`, in
    /// milliseconds.
    pub timeout: Option<String>,
}

/// The environment variables that [`crate::build`] obeys, read once, so that tests need not change the
/// process's environment. `None` and the empty string both mean unset (OpenTelemetry specification).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `TESTUDO_LOG`: filter directives for the log file.
    pub log_filter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Where spans go.
    pub traces: Export,
    /// Where metrics go.
    pub metrics: Export,
    /// `OTEL_METRIC_EXPORT_INTERVAL`, in milliseconds.
    pub interval: Option<String>,
    /// `OTEL_SDK_DISABLED`.
    pub sdk_disabled: Option<String>,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
}

impl Environment {
    /// The variables of this process.
    pub fn from_process() -> Self {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let export = |endpoint, protocol, timeout, signal: Signal| Export {
            endpoint: read(endpoint),
            protocol: read(protocol).or_else(|| read("OTEL_EXPORTER_OTLP_PROTOCOL")),
            exporter: read(signal.exporter_variable()),
            timeout: read(timeout).or_else(|| read("OTEL_EXPORTER_OTLP_TIMEOUT")),
        };
        Self {
            log_filter: read(crate::LOG_FILTER_VARIABLE),
            endpoint: read("OTEL_EXPORTER_OTLP_ENDPOINT"),
            traces: export(
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
                Signal::Traces,
            ),
            metrics: export(
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
                "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
                Signal::Metrics,
            ),
            interval: read("OTEL_METRIC_EXPORT_INTERVAL"),
            sdk_disabled: read("OTEL_SDK_DISABLED"),
            service_name: read("OTEL_SERVICE_NAME"),
        }
    }

    /// Whether OpenTelemetry is off altogether.
    pub fn is_disabled(&self) -> bool {
        self.sdk_disabled.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    const fn export(&self, signal: Signal) -> &Export {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
        }
    }

    /// How long a signal's collector may take to answer; what is no number of milliseconds says nothing.
    fn timeout(&self, signal: Signal) -> Duration {
        let said = self.export(signal).timeout.as_deref().and_then(|text| text.trim().parse().ok());
        said.map_or(TIMEOUT, Duration::from_millis)
    }

    /// The full URL that a signal is posted to, or `None` where nothing is exported.
    ///
    /// # Errors
    /// An exporter, protocol or URL scheme that this build cannot serve.
    pub fn url(&self, signal: Signal) -> Result<Option<String>, InitError> {
        let export = self.export(signal);
        if self.is_disabled() {
            return Ok(None);
        }
        // Where nothing names a collector of ours, what else the environment says is for others.
        let url = match (&export.endpoint, &self.endpoint) {
            (Some(full), _) => full.trim().to_string(),
            (None, Some(base)) => format!("{}/{}", base.trim().trim_end_matches('/'), signal.path()),
            (None, None) => return Ok(None),
        };
        match export.exporter.as_deref().map(str::trim) {
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => {
                let variable = signal.exporter_variable();
                return Err(InitError::Exporter { variable, found: other.to_string() });
            }
        }
        if let Some(protocol) = export.protocol.as_deref().map(str::trim)
            && protocol != PROTOCOL
        {
            return Err(InitError::Protocol { found: protocol.to_string() });
        }
        if url.starts_with("http://") { Ok(Some(url)) } else { Err(InitError::EndpointScheme { url }) }
    }

    /// How long lies between two exports of metrics.
    ///
    /// # Errors
    /// What is no number of milliseconds, or too few.
    pub fn interval(&self) -> Result<Duration, InitError> {
        let Some(text) = self.interval.as_deref().map(str::trim) else { return Ok(DEFAULT_INTERVAL) };
        let interval = text.parse().map(Duration::from_millis).ok();
        interval
            .filter(|interval| *interval >= SHORTEST_INTERVAL)
            .ok_or_else(|| InitError::Interval { found: text.to_string() })
    }

    fn resource(&self, role_name: &str) -> Resource {
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

/// Whether this process's environment names a collector, over TCP.
#[must_use]
pub fn exports() -> bool {
    let environment = Environment::from_process();
    [Signal::Traces, Signal::Metrics].into_iter().any(|signal| matches!(environment.url(signal), Ok(Some(_))))
}

/// What posts to the collector, and to nobody to whom it sends us on: headers that carry a key would go there too.
fn client(timeout: Duration) -> Result<reqwest::blocking::Client, String> {
    let build = || {
        let alone = reqwest::redirect::Policy::none();
        reqwest::blocking::Client::builder().redirect(alone).timeout(timeout).build()
    };
    // It has a runtime of its own, which cannot be made inside another.
    match std::thread::scope(|scope| scope.spawn(build).join()) {
        Ok(built) => built.map_err(|error| error.to_string()),
        Err(_) => Err("its client could not be made".to_owned()),
    }
}

/// The exporter that `finish` makes of `builder`, once that is told how to post to `url`.
fn exporter<B: WithExportConfig + WithHttpConfig, E>(
    builder: B,
    url: &str,
    timeout: Duration,
    finish: impl FnOnce(B) -> Result<E, ExporterBuildError>,
) -> Result<E, InitError> {
    let built = client(timeout).and_then(|client| {
        let builder = builder.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_endpoint(url);
        finish(builder.with_http_client(client)).map_err(|error| error.to_string())
    });
    built.map_err(|reason| InitError::Collector { url: url.to_owned(), reason })
}

/// A tracer provider for the node `role_name`; it exports if and only if `environment` names an endpoint.
/// Without one it still hands out trace ids, so that logs on different nodes can be matched, but marks
/// them as not sampled.
pub(crate) fn tracer(role_name: &str, environment: &Environment) -> Result<SdkTracerProvider, InitError> {
    let builder = SdkTracerProvider::builder().with_resource(environment.resource(role_name));
    let Some(url) = environment.url(Signal::Traces)? else {
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(builder.with_sampler(sampler).build());
    };
    let timeout = environment.timeout(Signal::Traces);
    let exporter = exporter(SpanExporter::builder().with_http(), &url, timeout, |builder| builder.build())?;
    Ok(builder.with_batch_exporter(Reported::new(exporter, url, "spans")).build())
}

/// A meter provider for the node `role_name`, if `environment` names an endpoint for metrics.
pub(crate) fn meter(
    role_name: &str,
    environment: &Environment,
) -> Result<Option<SdkMeterProvider>, InitError> {
    let Some(url) = environment.url(Signal::Metrics)? else { return Ok(None) };
    let interval = environment.interval()?;
    let timeout = environment.timeout(Signal::Metrics);
    let exporter = exporter(MetricExporter::builder().with_http(), &url, timeout, |builder| builder.build())?;
    let reader =
        PeriodicReader::builder(Reported::new(exporter, url, "metrics")).with_interval(interval).build();
    Ok(Some(metrics::provider(environment.resource(role_name), reader)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_endpoint(url: &str) -> Environment {
        Environment { endpoint: Some(url.to_string()), ..Environment::default() }
    }

    /// Invariant 1.
    #[test]
    fn nothing_is_exported_unless_asked() {
        for signal in [Signal::Traces, Signal::Metrics] {
            let asked = |environment: Environment| environment.url(signal).unwrap().is_some();
            assert!(!asked(Environment::default()));
            assert!(!asked(Environment {
                sdk_disabled: Some("TRUE".into()),
                ..with_endpoint("http://c:4318")
            }));
            assert!(asked(Environment {
                sdk_disabled: Some("false".into()),
                ..with_endpoint("http://c:4318")
            }));
        }
        let others = Export { exporter: Some("prometheus".into()), ..Export::default() };
        let alone = Environment { metrics: others, interval: Some("1".into()), ..Environment::default() };
        assert!(meter("worker/0", &alone).unwrap().is_none(), "what is not ours refuses no start");
        let none = Export { exporter: Some("none".into()), ..Export::default() };
        let traces = Environment { metrics: none, ..with_endpoint("http://c:4318") };
        assert_eq!(traces.url(Signal::Metrics).unwrap(), None);
        assert_eq!(traces.url(Signal::Traces).unwrap().as_deref(), Some("http://c:4318/v1/traces"));
    }

    /// Invariant 1: a collector cannot have what is exported, and the keys that go with it, sent to somebody else.
    #[test]
    fn nobody_is_followed_elsewhere() {
        use std::io::{Read as _, Write as _};
        let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/metrics", collector.local_addr().unwrap());
        let answer = std::thread::spawn(move || {
            let (mut stream, _) = collector.accept().unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"numbers") {
                let mut some = [0; 1024];
                let count = stream.read(&mut some).unwrap();
                seen.extend(&some[..count]);
            }
            let away = "HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(away.as_bytes()).unwrap();
        });
        let answered = client(TIMEOUT).unwrap().post(&url).body("numbers").send().unwrap();
        assert_eq!(answered.status().as_u16(), 307, "and that is where it ends");
        answer.join().unwrap();
    }

    #[test]
    fn urls_follow_the_otlp_specification() {
        let url = |environment: Environment| environment.url(Signal::Traces).unwrap().unwrap();
        assert_eq!(url(with_endpoint("http://c:4318")), "http://c:4318/v1/traces");
        assert_eq!(url(with_endpoint("http://c:4318/")), "http://c:4318/v1/traces");
        assert_eq!(url(with_endpoint("http://c:4318/otel")), "http://c:4318/otel/v1/traces");
        let own = Export { endpoint: Some("http://t:9/custom".into()), ..Export::default() };
        let both = Environment { traces: own.clone(), ..with_endpoint("http://c:4318") };
        assert_eq!(both.url(Signal::Metrics).unwrap().as_deref(), Some("http://c:4318/v1/metrics"));
        assert_eq!(url(both), "http://t:9/custom");
        let alone = Environment { metrics: own, ..Environment::default() };
        assert_eq!(alone.url(Signal::Metrics).unwrap().as_deref(), Some("http://t:9/custom"));
        assert_eq!(alone.url(Signal::Traces).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let refused = |export: Export| {
            let environment = Environment { metrics: export, ..with_endpoint("http://c:4317") };
            environment.url(Signal::Metrics).unwrap_err().to_string()
        };
        let grpc = refused(Export { protocol: Some("grpc".into()), ..Export::default() });
        assert!(grpc.contains("http/protobuf"), "{grpc}");
        let other = refused(Export { exporter: Some("prometheus".into()), ..Export::default() });
        assert!(other.contains("OTEL_METRICS_EXPORTER") && other.contains("prometheus"), "{other}");
        for url in ["https://c:4318", "c:4318", "ftp://c"] {
            let error = with_endpoint(url).url(Signal::Traces).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("http://"), "{error}");
        }
    }

    #[test]
    fn a_timeout_is_a_signals_own() {
        let said = |text: &str| Export { timeout: Some(text.into()), ..Export::default() };
        let both = Environment { traces: said(" 250 "), metrics: said("soon"), ..Environment::default() };
        assert_eq!(both.timeout(Signal::Traces), Duration::from_millis(250));
        assert_eq!(both.timeout(Signal::Metrics), TIMEOUT);
        assert_eq!(Environment::default().timeout(Signal::Traces), TIMEOUT);
    }

    #[test]
    fn an_interval_is_milliseconds_and_not_too_few() {
        let every =
            |text: &str| Environment { interval: Some(text.into()), ..Environment::default() }.interval();
        assert_eq!(Environment::default().interval().unwrap(), DEFAULT_INTERVAL);
        assert_eq!(every(" 100 ").unwrap(), SHORTEST_INTERVAL);
        for wrong in ["0", "99", "-1", "1s", "1.5", "18446744073709551616"] {
            let error = every(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("OTEL_METRIC_EXPORT_INTERVAL"), "{error}");
        }
    }
}

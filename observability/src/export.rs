//! Which OpenTelemetry collector spans, metrics and the log go to, from the standard environment variables and the cluster file.
//!
//! | variable | meaning here |
//! |---|---|
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | base URL; over HTTP `/v1/traces`, `/v1/metrics` and `/v1/logs` are added |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `..._METRICS_ENDPOINT`, `..._LOGS_ENDPOINT` | full URL of one signal; wins over the base URL |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` and so on | `http/protobuf` or `grpc` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE`, `..._CLIENT_CERTIFICATE`, `..._CLIENT_KEY`, and those of one signal | PEM files for `https://` collectors |
//! | `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER`, `OTEL_LOGS_EXPORTER` | `none` exports nothing of that signal; otherwise `otlp`, and for metrics `prometheus` |
//! | `OTEL_METRIC_EXPORT_INTERVAL` | milliseconds between two exports of metrics, from 100; 60000 if unset |
//! | `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | which steps are traced: all, none, or with `traceidratio` one in so many |
//! | `OTEL_EXPORTER_PROMETHEUS_HOST`, `OTEL_EXPORTER_PROMETHEUS_PORT` | where metrics are scraped: a loopback address |
//! | `OTEL_SDK_DISABLED` | `true` turns OpenTelemetry off: no export and no trace context |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`, `OTEL_BLRP_*`, headers, timeouts, temporality | as the OpenTelemetry SDK reads them |
//!
//! Invariants:
//! 1. No endpoint, no exporter: nothing is sent anywhere that the operator did not name as a collector. No redirect is followed, and no
//!    proxy of the environment is used.
//! 2. A failing collector costs the training nothing: spans and lines of the log go through bounded queues that drop and count,
//!    metrics are numbers that are kept anyway, and the first failure of each is logged once, with what to check.
//! 3. An `https://` collector hears nothing before it has proved who it is (`credentials.rs`); that an `http://` one on another
//!    machine is told everything in plain text is logged at the start.

mod client;
mod credentials;
mod endpoints;
mod environment;
mod reported;
mod source;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::logs::{BatchConfigBuilder as LogBatches, BatchLogProcessor, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpanBatches, BatchSpanProcessor, Sampler, SdkTracerProvider,
};

use crate::metrics;
use crate::setup::InitError;
pub(crate) use client::Clients;
pub use credentials::{Opened, Pem};
pub use environment::{DEFAULT_SAMPLE_EVERY, Environment, Export, Protocol, Settings, Signal};
use reported::Reported;
pub use source::{Files, Source};
use tally::Lines;
pub(crate) use tally::{SharedSpans, Spans, Tally};

/// How long a collector may take to answer, if nothing else is said (OpenTelemetry specification).
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two exports of metrics, if nothing else is said (OpenTelemetry specification).
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
/// The shortest that may be asked for: exporting is not to be what a node does.
pub const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Whether this process's environment names a collector, over TCP.
#[must_use]
pub fn exports() -> bool {
    Environment::from_process().exports()
}

/// Where spans of a node go, and what is told of them.
pub(crate) struct Traces {
    pub(crate) provider: SdkTracerProvider,
    /// Where there is a collector: for spans that are made without the SDK.
    pub(crate) spans: Option<(Arc<Spans>, Arc<Tally>)>,
}

/// A tracer provider for the node `role_name`; it exports if and only if `environment` names an endpoint.
/// Without one it still hands out trace ids, so that what nodes send can be matched, but marks them as not sampled.
pub(crate) fn tracer(
    role_name: &str,
    environment: &Environment,
    clients: &mut Clients,
) -> Result<Traces, InitError> {
    let resource = environment.resource(role_name);
    let builder = SdkTracerProvider::builder().with_resource(resource.clone());
    let Some(url) = environment.url(Signal::Traces)? else {
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(Traces { provider: builder.with_sampler(sampler).build(), spans: None });
    };
    // The variables choose steps: what there are few of, a run above all, is always there.
    let root = if environment.sample_every()? == 0 { Sampler::AlwaysOff } else { Sampler::AlwaysOn };
    let exporter = clients.exporter(
        environment,
        (Signal::Traces, &url),
        (SpanExporter::builder().with_http(), |builder| builder.build()),
        (SpanExporter::builder().with_tonic(), |builder| builder.build()),
    )?;
    let tally = Tally::new(environment.spans_waiting());
    let reported = Reported::new(exporter, url, "spans", Arc::clone(&tally));
    let batches = SpanBatches::default().with_max_queue_size(environment.spans_waiting()).build();
    let batched = BatchSpanProcessor::builder(reported).with_batch_config(batches).build();
    let spans = Spans::new(batched, &resource, Arc::clone(&tally));
    let provider = builder
        .with_sampler(Sampler::ParentBased(Box::new(root)))
        .with_span_processor(SharedSpans(Arc::clone(&spans)))
        .build();
    Ok(Traces { provider, spans: Some((spans, tally)) })
}

/// A meter provider for the node `role_name`, if `environment` names an endpoint for metrics.
pub(crate) fn meter(
    role_name: &str,
    environment: &Environment,
    clients: &mut Clients,
) -> Result<Option<SdkMeterProvider>, InitError> {
    let Some(url) = environment.url(Signal::Metrics)? else { return Ok(None) };
    let interval = environment.interval()?;
    let exporter = clients.exporter(
        environment,
        (Signal::Metrics, &url),
        (MetricExporter::builder().with_http(), |builder| builder.build()),
        (MetricExporter::builder().with_tonic(), |builder| builder.build()),
    )?;
    // Numbers are asked for anew each time: none of them waits.
    let reported = Reported::new(exporter, url, "metrics", Tally::new(1));
    let reader = PeriodicReader::builder(reported).with_interval(interval).build();
    Ok(Some(metrics::provider(environment.resource(role_name), reader)))
}

/// A logger provider for the node `role_name`, if `environment` names an endpoint for the log.
pub(crate) fn logger(
    role_name: &str,
    environment: &Environment,
    clients: &mut Clients,
) -> Result<Option<(SdkLoggerProvider, Arc<Tally>)>, InitError> {
    let Some(url) = environment.url(Signal::Logs)? else { return Ok(None) };
    let exporter = clients.exporter(
        environment,
        (Signal::Logs, &url),
        (LogExporter::builder().with_http(), |builder| builder.build()),
        (LogExporter::builder().with_tonic(), |builder| builder.build()),
    )?;
    let tally = Tally::new(environment.lines_waiting());
    let reported = Reported::new(exporter, url, "lines of the log", Arc::clone(&tally));
    let batches = LogBatches::default().with_max_queue_size(environment.lines_waiting()).build();
    let batched = BatchLogProcessor::builder(reported).with_batch_config(batches).build();
    let provider = SdkLoggerProvider::builder()
        .with_resource(environment.resource(role_name))
        .with_log_processor(Lines::new(batched, Arc::clone(&tally)))
        .build();
    Ok(Some((provider, tally)))
}

#[cfg(test)]
mod tests {
    use opentelemetry_http::HttpClient as _;

    use super::client::Http;
    use super::*;

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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let request = opentelemetry_http::Request::post(&url).body("numbers".into()).unwrap();
        let client = Http::new(None, TIMEOUT, Default::default());
        let answered = runtime.block_on(client.send_bytes(request)).unwrap();
        assert_eq!(answered.status().as_u16(), 307, "and that is where it ends");
        answer.join().unwrap();
    }

    /// The same where the environment names a proxy, as the test above finds it in a process of its own.
    #[test]
    fn nobody_is_asked_to_pass_it_on() {
        let proxy = "http://127.0.0.1:9";
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", "export::tests::nobody_is_followed_elsewhere"]);
        for variable in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
            test.env(variable, proxy);
        }
        let ran = test.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    }

    /// Invariant 2: what is told a collector that takes the connection and never answers is dropped and counted, and whoever tells it does not
    /// wait: if each waited for an answer, these would take weeks.
    #[test]
    fn a_deaf_collector_holds_up_nobody() {
        use opentelemetry::logs::{Logger as _, LoggerProvider as _};
        use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
        const TOLD: u64 = 10_000;
        const ROOM: u64 = 16;
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let patient = Export { timeout: Some("600000".into()), ..Export::default() };
        let environment = Environment {
            endpoint: Some(format!("http://{}", deaf.local_addr().unwrap())),
            traces: patient.clone(),
            logs: patient,
            span_queue: Some(ROOM.to_string()),
            log_queue: Some(ROOM.to_string()),
            ..Environment::default()
        };
        let mut clients = Clients::default();
        let traces = tracer("worker/0", &environment, &mut clients).unwrap();
        let (lines, lines_tally) = logger("worker/0", &environment, &mut clients).unwrap().unwrap();
        let (_, spans_tally) = traces.spans.unwrap();
        let (over, ended) = std::sync::mpsc::channel();
        let providers = (traces.provider.clone(), lines.clone());
        std::thread::spawn(move || {
            let (spans, lines) = (providers.0.tracer("a test"), providers.1.logger("a test"));
            for _ in 0..TOLD {
                spans.start("told").end();
                lines.emit(lines.create_log_record());
            }
            over.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("whoever tells a deaf collector waits for it");
        for tally in [&spans_tally, &lines_tally] {
            // As many as have room, and one batch on its way.
            assert!((TOLD - 2 * ROOM..TOLD).contains(&tally.full()), "{} dropped", tally.full());
        }
        // Its end is not waited for.
        drop(deaf);
    }
}

//! Which OpenTelemetry collector spans go to, from the standard environment variables.
//!
//! | variable | meaning here |
//! |---|---|
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | base URL; `/v1/traces` is added |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | full URL for traces; wins over the base URL |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL`, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL` | only `http/protobuf` |
//! | `OTEL_TRACES_EXPORTER` | `none` exports nothing; otherwise only `otlp` |
//! | `OTEL_SDK_DISABLED` | `true` turns OpenTelemetry off: no export and no trace context |
//! | `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_*`, `OTEL_TRACES_SAMPLER`, headers, timeouts | as the OpenTelemetry SDK reads them |
//!
//! Invariants:
//! 1. No endpoint, no exporter: nothing is sent anywhere that the operator did not name.
//! 2. A failing collector costs the training nothing: spans go through a bounded queue that drops, and
//!    the first failure is logged once, with what to check.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};

use crate::setup::InitError;

/// Path that the OTLP/HTTP specification adds to a base endpoint for traces.
const TRACES_PATH: &str = "v1/traces";
/// The one OTLP encoding built in.
const PROTOCOL: &str = "http/protobuf";

/// The environment variables that [`crate::build`] obeys, read once, so that tests need not change the
/// process's environment. `None` and the empty string both mean unset (OpenTelemetry specification).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `TESTUDO_LOG`: filter directives for the log file.
    pub log_filter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`.
    pub traces_endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Option<String>,
    /// `OTEL_TRACES_EXPORTER`.
    pub exporter: Option<String>,
    /// `OTEL_SDK_DISABLED`.
    pub sdk_disabled: Option<String>,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
}

impl Environment {
    /// The variables of this process.
    pub fn from_process() -> Self {
        let read = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        Self {
            log_filter: read(crate::LOG_FILTER_VARIABLE),
            endpoint: read("OTEL_EXPORTER_OTLP_ENDPOINT"),
            traces_endpoint: read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            protocol: read("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
                .or_else(|| read("OTEL_EXPORTER_OTLP_PROTOCOL")),
            exporter: read("OTEL_TRACES_EXPORTER"),
            sdk_disabled: read("OTEL_SDK_DISABLED"),
            service_name: read("OTEL_SERVICE_NAME"),
        }
    }

    /// Whether OpenTelemetry is off altogether.
    pub fn is_disabled(&self) -> bool {
        self.sdk_disabled.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
    }

    /// The full URL that traces are posted to, or `None` where nothing is exported.
    ///
    /// # Errors
    /// An exporter, protocol or URL scheme that this build cannot serve.
    pub fn traces_url(&self) -> Result<Option<String>, InitError> {
        if self.is_disabled() {
            return Ok(None);
        }
        match self.exporter.as_deref().map(str::trim) {
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => return Err(InitError::Exporter { found: other.to_string() }),
        }
        let url = match (&self.traces_endpoint, &self.endpoint) {
            (Some(full), _) => full.trim().to_string(),
            (None, Some(base)) => format!("{}/{TRACES_PATH}", base.trim().trim_end_matches('/')),
            (None, None) => return Ok(None),
        };
        if let Some(protocol) = self.protocol.as_deref().map(str::trim)
            && protocol != PROTOCOL
        {
            return Err(InitError::Protocol { found: protocol.to_string() });
        }
        if url.starts_with("http://") { Ok(Some(url)) } else { Err(InitError::EndpointScheme { url }) }
    }
}

/// Whether this process's environment names a collector that spans go to, over TCP.
#[must_use]
pub fn exports() -> bool {
    matches!(Environment::from_process().traces_url(), Ok(Some(_)))
}

/// A tracer provider for the node `role_name`; it exports if and only if `environment` names an endpoint.
/// Without one it still hands out trace ids, so that logs on different nodes can be matched, but marks
/// them as not sampled.
pub(crate) fn provider(role_name: &str, environment: &Environment) -> Result<SdkTracerProvider, InitError> {
    let mut resource = Resource::builder();
    if environment.service_name.is_none() {
        resource = resource.with_service_name("testudo");
    }
    let resource = resource
        .with_attribute(opentelemetry::KeyValue::new("service.instance.id", role_name.to_string()))
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(url) = environment.traces_url()? else {
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        return Ok(builder.with_sampler(sampler).build());
    };
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
        .with_endpoint(&url)
        .build()
        .map_err(|error| InitError::Collector { url: url.clone(), reason: error.to_string() })?;
    Ok(builder.with_batch_exporter(Reported { inner: exporter, url, failures: AtomicU64::new(0) }).build())
}

/// An exporter that says in the log, once, that its collector does not take spans (invariant 2).
#[derive(Debug)]
struct Reported<E> {
    inner: E,
    url: String,
    failures: AtomicU64,
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        if let Err(error) = &result
            && self.failures.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(
                url = %self.url,
                spans,
                %error,
                "the OpenTelemetry collector takes no spans: check that it runs and that the OTEL_EXPORTER_OTLP_* variables name it; further failures are not logged"
            );
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
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
        assert_eq!(Environment::default().traces_url().unwrap(), None);
        let off = Environment { sdk_disabled: Some("TRUE".into()), ..with_endpoint("http://c:4318") };
        assert_eq!(off.traces_url().unwrap(), None);
        let none = Environment { exporter: Some("none".into()), ..with_endpoint("http://c:4318") };
        assert_eq!(none.traces_url().unwrap(), None);
        let on = Environment { sdk_disabled: Some("false".into()), ..with_endpoint("http://c:4318") };
        assert!(on.traces_url().unwrap().is_some());
    }

    #[test]
    fn urls_follow_the_otlp_specification() {
        let url = |environment: Environment| environment.traces_url().unwrap().unwrap();
        assert_eq!(url(with_endpoint("http://c:4318")), "http://c:4318/v1/traces");
        assert_eq!(url(with_endpoint("http://c:4318/")), "http://c:4318/v1/traces");
        assert_eq!(url(with_endpoint("http://c:4318/otel")), "http://c:4318/otel/v1/traces");
        let both = Environment {
            traces_endpoint: Some("http://t:9/custom".into()),
            ..with_endpoint("http://c:4318")
        };
        assert_eq!(url(both), "http://t:9/custom");
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let grpc = Environment { protocol: Some("grpc".into()), ..with_endpoint("http://c:4317") };
        assert!(grpc.traces_url().unwrap_err().to_string().contains("http/protobuf"));
        let zipkin = Environment { exporter: Some("zipkin".into()), ..with_endpoint("http://c:4318") };
        assert!(zipkin.traces_url().unwrap_err().to_string().contains("zipkin"));
        for url in ["https://c:4318", "c:4318", "ftp://c"] {
            let error = with_endpoint(url).traces_url().unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("http://"), "{error}");
        }
    }

    #[derive(Debug)]
    struct Refusing;

    impl SpanExporter for Refusing {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Err(opentelemetry_sdk::error::OTelSdkError::InternalFailure("connection refused".into()))
        }
    }

    #[derive(Clone, Default)]
    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Invariant 2: said once, with the address and the reason, and passed on as an error each time.
    #[test]
    fn a_refusing_collector_is_logged_once() {
        let log = Shared::default();
        let (dispatch, _guard) = crate::build(
            crate::Options::new("worker/1").with_log_writer(log.clone()),
            &Environment::default(),
        )
        .unwrap();
        let exporter =
            Reported { inner: Refusing, url: "http://c:4318/v1/traces".into(), failures: AtomicU64::new(0) };
        tracing::dispatcher::with_default(&dispatch, || {
            for _ in 0..3 {
                let mut export = std::pin::pin!(exporter.export(Vec::new()));
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                let std::task::Poll::Ready(result) = export.as_mut().poll(&mut context) else {
                    panic!("the fake exporter answers at once")
                };
                assert!(result.is_err());
            }
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("http://c:4318/v1/traces") && text.contains("connection refused"), "{text}");
    }
}

//! What a collector that takes nothing is worth: one line of the log, and a count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::client::Posted;
use super::tally::Tally;

/// An exporter that says in the log, once, that its collector does not take what it sends (invariant 2 of [`super`]).
#[derive(Debug)]
pub(super) struct Reported<E> {
    posted: Posted<E>,
    url: String,
    what: &'static str,
    failures: AtomicU64,
    tally: Arc<Tally>,
}

impl<E> Reported<E> {
    pub(super) fn new(posted: Posted<E>, url: String, what: &'static str, tally: Arc<Tally>) -> Self {
        Self { posted, url, what, failures: AtomicU64::new(0), tally }
    }

    fn told(&self, result: OTelSdkResult) -> OTelSdkResult {
        if let Err(error) = &result {
            self.tell(error);
        }
        result
    }

    fn tell(&self, error: &OTelSdkError) {
        let why = self.posted.why();
        if self.failures.fetch_add(1, Ordering::Relaxed) == 0 {
            let error = why.map_or_else(|| error.to_string(), |why| format!("{error}: {why}"));
            tracing::warn!(
                url = %self.url,
                error,
                "the OpenTelemetry collector takes no {}: {}; further failures are not logged",
                self.what,
                advice(&error)
            );
        }
    }

    /// What of `count` things comes of `result`.
    fn counted(&self, count: usize, result: OTelSdkResult) -> OTelSdkResult {
        if result.is_err() {
            self.tally.fail(count);
        }
        self.told(result)
    }
}

/// What to do about it. The SDK hands on words alone: those of rustls are looked for.
fn advice(error: &str) -> &'static str {
    if error.contains("invalid peer certificate") {
        "its certificate is refused, and it is told nothing: OTEL_EXPORTER_OTLP_CERTIFICATE (telemetry.certificate) must name the \
         CA that the certificate leads to, and the URL a host that the certificate is for"
    } else if error.contains("received fatal alert") {
        "it refuses the connection: if it asks for a certificate, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _KEY \
         (telemetry.client_certificate and client_key) must name one that it trusts"
    } else if error.contains("received corrupt message") {
        "it does not speak TLS there: name a port that does"
    } else {
        "check that it runs and that the OTEL_EXPORTER_OTLP_* variables name it"
    }
}

impl<E: SpanExporter> SpanExporter for Reported<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.tally.leave(count);
        let result = self.posted.inside(self.posted.inner.export(batch)).await;
        self.counted(count, result)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.posted.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.posted.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.posted.inner.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Reported<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        self.tally.leave(count);
        let result = self.posted.inside(self.posted.inner.export(batch)).await;
        self.counted(count, result)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.posted.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.posted.inner.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Reported<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.posted.inside(self.posted.inner.export(metrics)).await;
        self.told(result)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.posted.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.posted.inner.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.posted.inner.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Refusing;

    impl SpanExporter for Refusing {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            Err(OTelSdkError::InternalFailure("connection refused".into()))
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

    /// What is looked for is what rustls says.
    #[test]
    fn advice_is_about_what_went_wrong() {
        use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
        for (error, expected) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "OTEL_EXPORTER_OTLP_CERTIFICATE"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "telemetry.certificate"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "client_certificate"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
            (Error::HandshakeNotComplete, "check that it runs"),
        ] {
            let said = format!("client error (Connect): {error}");
            assert!(advice(&said).contains(expected), "{said}: {}", advice(&said));
        }
    }

    /// Invariant 2 of [`super::super`]: said once, with the address and the reason, and passed on as an error each time.
    #[test]
    fn a_refusing_collector_is_logged_once() {
        let log = Shared::default();
        let (dispatch, _guard) = crate::build(
            crate::Options::new("worker/1").with_log_writer(log.clone()),
            &crate::Environment::default(),
        )
        .unwrap();
        let posted = Posted::alone(Refusing);
        let exporter = Reported::new(posted, "http://c:4318/v1/traces".into(), "spans", Tally::new(1));
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

//! How the exporters speak to their collector: OTLP over HTTP or over gRPC, with TLS where the URL is `https://`.
//!
//! Invariants:
//! 1. Every export ends, within [`TIMES`] its signal's time, whatever the collector does: takes the connection and says nothing, or begins an
//!    answer that has no end. The next is tried anew.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::Sleep;

use super::credentials::Credentials;
use super::environment::{Environment, Protocol, Signal};
use crate::setup::InitError;

/// Threads for all connections: a batch every few seconds keeps none busy.
const THREADS: usize = 1;

/// An export may take so many times as long as a request: the exporter's own tries of it begin within one, and the last of them may take
/// another. The gRPC client's own limit is upon an answer's beginning alone, not upon connecting, nor upon the rest of an answer.
const TIMES: u32 = 2;

/// What connections to collectors run on, in a process that has some.
pub(crate) struct Reactor(Option<Runtime>);

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reactor")
    }
}

impl Reactor {
    fn start() -> std::io::Result<Reactor> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("telemetry")
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Reactor(Some(runtime)))
    }

    fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

/// Whoever drops the last exporter waits for nothing.
impl Drop for Reactor {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes exporters; they share a reactor.
#[derive(Debug, Default)]
pub(crate) struct Clients(Option<Arc<Reactor>>);

impl Clients {
    /// An exporter of `signal` to `url`: what `http` or `grpc` makes of a builder, once that is told where and how.
    pub(super) fn exporter<H, G, E>(
        &mut self,
        environment: &Environment,
        (signal, url): (Signal, &str),
        (http, finish_http): (H, impl FnOnce(H) -> Result<E, ExporterBuildError>),
        (grpc, finish_grpc): (G, impl FnOnce(G) -> Result<E, ExporterBuildError>),
    ) -> Result<Posted<E>, InitError>
    where
        H: WithExportConfig + WithHttpConfig,
        G: WithExportConfig + WithTonicConfig,
    {
        let (timeout, protocol) = (environment.timeout(signal), environment.protocol(signal)?);
        let secured = environment.secured(signal, url)?;
        let credentials = secured.as_ref().map(|secured| &secured.credentials);
        let failed = |reason: String| InitError::Collector { url: url.to_owned(), reason };
        let reactor = self.reactor().map_err(failed)?;
        let why = Why::default();
        let inside = reactor.handle().map(Handle::enter);
        let built = match protocol {
            Protocol::Http => {
                let client = Http::new(credentials, timeout, why.clone());
                let builder = http.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_endpoint(url);
                finish_http(builder.with_http_client(client))
            }
            Protocol::Grpc => {
                let builder = grpc.with_endpoint(url).with_timeout(timeout);
                finish_grpc(match credentials {
                    Some(credentials) => builder.with_tls_config(credentials.grpc.clone().timeout(timeout)),
                    None => builder,
                })
            }
        };
        drop(inside);
        let inner = built.map_err(|error| failed(error.to_string()))?;
        Ok(Posted { inner, reactor: Some(reactor), limit: timeout.saturating_mul(TIMES), why })
    }

    fn reactor(&mut self) -> Result<Arc<Reactor>, String> {
        if let Some(reactor) = &self.0 {
            return Ok(Arc::clone(reactor));
        }
        let reactor = Arc::new(Reactor::start().map_err(|error| error.to_string())?);
        self.0 = Some(Arc::clone(&reactor));
        Ok(reactor)
    }
}

/// An exporter, and what its connection runs on.
#[derive(Debug)]
pub(super) struct Posted<E> {
    pub(super) inner: E,
    reactor: Option<Arc<Reactor>>,
    limit: Duration,
    why: Why,
}

impl<E> Posted<E> {
    #[cfg(test)]
    pub(super) fn alone(inner: E) -> Posted<E> {
        Posted { inner, reactor: None, limit: Duration::ZERO, why: Why::default() }
    }

    /// Why the last request failed, where the exporter itself does not say it.
    pub(super) fn why(&self) -> Option<String> {
        self.why.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// An export, polled inside the reactor: timers and sockets that it makes are the reactor's, whichever thread waits. It ends when its
    /// time is over (invariant 1).
    pub(super) fn inside<F: Future<Output = OTelSdkResult>>(&self, export: F) -> Inside<F> {
        let handle = self.reactor.as_ref().and_then(|reactor| reactor.handle().cloned());
        Inside { handle, limit: self.limit, over: None, export: Box::pin(export) }
    }
}

/// See [`Posted::inside`].
pub(super) struct Inside<F> {
    handle: Option<Handle>,
    limit: Duration,
    over: Option<Pin<Box<Sleep>>>,
    export: Pin<Box<F>>,
}

impl<F: Future<Output = OTelSdkResult>> Future for Inside<F> {
    type Output = OTelSdkResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<OTelSdkResult> {
        let Inside { handle, limit, over, export } = &mut *self;
        let inside = handle.as_ref().map(Handle::enter);
        if let Poll::Ready(ended) = export.as_mut().poll(context) {
            return Poll::Ready(ended);
        }
        if inside.is_none() {
            return Poll::Pending;
        }
        let over = over.get_or_insert_with(|| Box::pin(tokio::time::sleep(*limit)));
        over.as_mut().poll(context).map(|()| Err(OTelSdkError::Timeout(*limit)))
    }
}

/// Why a request over HTTP failed: the exporter's own error is "network error", whatever happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Why(Arc<Mutex<Option<String>>>);

/// What posts to the collector itself: neither to whom that sends us on, nor by way of a proxy that the environment names for others. What is
/// exported, and headers that carry a key, would go there too.
#[derive(Debug)]
pub(super) struct Http {
    client: Box<dyn HttpClient>,
    why: Why,
}

impl Http {
    /// With `credentials` it speaks TLS and nothing else, without it no TLS.
    pub(super) fn new(credentials: Option<&Credentials>, timeout: Duration, why: Why) -> Http {
        let client: Box<dyn HttpClient> = match credentials {
            Some(credentials) => {
                let builder = HttpsConnectorBuilder::new().with_tls_config(credentials.http.clone());
                let connector = builder.https_only().enable_http1().build();
                Box::new(HyperClient::new(connector, timeout, None))
            }
            None => Box::new(HyperClient::with_default_connector(timeout, None)),
        };
        Http { client, why }
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.send_bytes(request).await;
        // What an answer says is told by whoever reads it, and an earlier try has no part in that.
        let why = sent.as_ref().err().map(|error| chain(error.as_ref()));
        *self.why.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
        sent
    }
}

/// An error, and what it came of.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests;

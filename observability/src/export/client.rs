//! How the exporters speak to their collector: OTLP over HTTP or over gRPC, plaintext, to a collector beside the node.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use opentelemetry_otlp::{ExporterBuildError, WithExportConfig, WithHttpConfig};
use tokio::runtime::{Builder, Handle, Runtime};

use super::environment::{Environment, Protocol, Signal};
use crate::setup::InitError;

/// Threads for gRPC's connections: a batch every few seconds keeps none busy.
const THREADS: usize = 1;

/// What gRPC's connections run on, in a process that has some.
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

/// Makes exporters; those that speak gRPC share a reactor.
#[derive(Debug, Default)]
pub(crate) struct Clients(Option<Arc<Reactor>>);

impl Clients {
    /// An exporter of `signal` to `url`: what `http` or `grpc` makes of a builder, once that is told where and how.
    pub(super) fn exporter<H: WithExportConfig + WithHttpConfig, G: WithExportConfig, E>(
        &mut self,
        environment: &Environment,
        (signal, url): (Signal, &str),
        (http, finish_http): (H, impl FnOnce(H) -> Result<E, ExporterBuildError>),
        (grpc, finish_grpc): (G, impl FnOnce(G) -> Result<E, ExporterBuildError>),
    ) -> Result<Posted<E>, InitError> {
        let timeout = environment.timeout(signal);
        let built = match environment.protocol(signal)? {
            Protocol::Http => client(timeout).and_then(|client| {
                let builder = http.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_endpoint(url);
                let made =
                    finish_http(builder.with_http_client(client)).map_err(|error| error.to_string())?;
                Ok(Posted { inner: made, reactor: None })
            }),
            Protocol::Grpc => self.reactor().and_then(|reactor| {
                let inside = reactor.handle().map(Handle::enter);
                let made = finish_grpc(grpc.with_endpoint(url).with_timeout(timeout));
                drop(inside);
                let made = made.map_err(|error| error.to_string())?;
                Ok(Posted { inner: made, reactor: Some(reactor) })
            }),
        };
        built.map_err(|reason| InitError::Collector { url: url.to_owned(), reason })
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
}

impl<E> Posted<E> {
    #[cfg(test)]
    pub(super) fn alone(inner: E) -> Posted<E> {
        Posted { inner, reactor: None }
    }

    /// `future`, polled inside the reactor: timers and sockets that it makes are the reactor's, whichever thread waits.
    pub(super) fn inside<F: Future>(&self, future: F) -> Inside<F> {
        let handle = self.reactor.as_ref().and_then(|reactor| reactor.handle().cloned());
        Inside { handle, future: Box::pin(future) }
    }
}

/// See [`Posted::inside`].
pub(super) struct Inside<F> {
    handle: Option<Handle>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Inside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Inside { handle, future } = &mut *self;
        let _inside = handle.as_ref().map(Handle::enter);
        future.as_mut().poll(context)
    }
}

/// What posts to the collector itself: neither to whom that sends us on, nor by way of a proxy that the environment names for others. What is
/// exported, and headers that carry a key, would go there too.
pub(super) fn client(timeout: Duration) -> Result<reqwest::blocking::Client, String> {
    let build = || {
        let alone = reqwest::redirect::Policy::none();
        reqwest::blocking::Client::builder().redirect(alone).no_proxy().timeout(timeout).build()
    };
    // It has a runtime of its own, which cannot be made inside another.
    match std::thread::scope(|scope| scope.spawn(build).join()) {
        Ok(built) => built.map_err(|error| error.to_string()),
        Err(_) => Err("its client could not be made".to_owned()),
    }
}

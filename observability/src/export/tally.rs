//! What waits for a collector, and what was given up: a bounded queue that drops and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::InstrumentationScope;
use opentelemetry::logs::Severity;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{BatchLogProcessor, LogProcessor, SdkLogRecord};
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanProcessor};

/// Counts of one signal.
#[derive(Debug)]
pub(crate) struct Tally {
    waiting: AtomicUsize,
    most: usize,
    full: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// At most `most` wait.
    pub(crate) fn new(most: usize) -> Arc<Tally> {
        let (full, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Tally { waiting: AtomicUsize::new(0), most, full, failed })
    }

    /// Whether one more may wait; if not, it is counted.
    pub(super) fn enter(&self) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.most {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.full.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// So many wait no longer: they are being sent.
    pub(super) fn leave(&self, count: usize) {
        let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            Some(waiting.saturating_sub(count))
        });
    }

    /// So many were sent, and not taken.
    pub(super) fn fail(&self, count: usize) {
        self.failed.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many were dropped because too many waited.
    pub(crate) fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// How many the collector did not take.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Spans on their way; clones of one [`Arc`] share it.
#[derive(Debug)]
pub(crate) struct Spans {
    inner: BatchSpanProcessor,
    tally: Arc<Tally>,
}

impl Spans {
    pub(crate) fn new(mut inner: BatchSpanProcessor, resource: &Resource, tally: Arc<Tally>) -> Arc<Spans> {
        inner.set_resource(resource);
        Arc::new(Spans { inner, tally })
    }

    /// Takes a span that has ended. Never blocks.
    pub(crate) fn take(&self, span: SpanData) {
        if self.tally.enter() {
            self.inner.on_end(span);
        }
    }
}

/// [`Spans`] as the SDK's provider has them.
#[derive(Debug)]
pub(crate) struct SharedSpans(pub(crate) Arc<Spans>);

impl SpanProcessor for SharedSpans {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.0.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.take(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.inner.shutdown_with_timeout(timeout)
    }
}

/// Lines of the log on their way.
#[derive(Debug)]
pub(crate) struct Lines {
    inner: BatchLogProcessor,
    tally: Arc<Tally>,
}

impl Lines {
    pub(crate) fn new(inner: BatchLogProcessor, tally: Arc<Tally>) -> Lines {
        Lines { inner, tally }
    }
}

impl LogProcessor for Lines {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.tally.enter() {
            self.inner.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn event_enabled(&self, level: Severity, target: &str, name: Option<&str>) -> bool {
        self.inner.event_enabled(level, target, name)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2 of [`super::super`]: so many wait and no more, and what is not there is counted.
    #[test]
    fn what_finds_no_room_is_counted() {
        let tally = Tally::new(3);
        let entered = (0..5).filter(|_| tally.enter()).count();
        assert_eq!((entered, tally.full(), tally.failed()), (3, 2, 0));
        tally.leave(2);
        tally.fail(2);
        assert_eq!((0..5).filter(|_| tally.enter()).count(), 2);
        assert_eq!((tally.full(), tally.failed()), (5, 2));
        tally.leave(100);
        assert_eq!((0..5).filter(|_| tally.enter()).count(), 3, "counts never wrap");
    }
}

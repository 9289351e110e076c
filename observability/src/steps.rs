//! A step of training as one trace across processes.
//!
//! All who take part know the trace of the run, a number for each step, and how many steps are traced; so which step is, under
//! which trace and which root, is a function that everybody computes, and nobody asks. What is caused by a message hangs under the
//! span whose context the message carries, if that is of this trace.
//!
//! Spans are made here without the SDK's tracer: a step that is not traced costs a division, and one that is costs a few hundred
//! nanoseconds a span and no lock that anybody waits for.
//!
//! Invariants:
//! 1. Every process of a run finds the same trace and root for a step ([`StepTrace::of`]), and no two steps or runs share one.
//! 2. A step that is not traced allocates nothing, and neither does any where there is no collector.
//! 3. A peer's bytes choose a parent within a trace that is traced anyway ([`StepTrace::sent_by`]), and nothing else: neither
//!    whether a step is traced, nor the trace.
//! 4. A span is exported when it is dropped, if it was not ended before, so a parent is there whatever became of its work.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanLinks};

use crate::export::Spans;
use crate::trace_context::{BINARY_LENGTH, FLAG_RANDOM, FLAG_SAMPLED, TraceParent};

/// What the trace of a step is derived under (BLAKE3's key derivation).
const CONTEXT: &str = "testudo 2026-11-29 the trace of a step";

/// The process's own, once [`crate::init`] has found a collector.
static STEPS: OnceLock<Steps> = OnceLock::new();

/// Where spans of steps go, and which steps have any.
pub struct Steps {
    spans: Arc<Spans>,
    every: u64,
    ids: RandomIdGenerator,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("every", &self.every).finish_non_exhaustive()
    }
}

impl Steps {
    /// One step in `every` is traced; 0 for none.
    pub(crate) fn new(spans: Arc<Spans>, every: u64) -> Steps {
        Steps { spans, every, ids: RandomIdGenerator::default() }
    }

    /// Makes these the process's; only the first are.
    pub(crate) fn install(self) {
        let _ = STEPS.set(self);
    }

    /// Whether `step`, from 0, is traced. From the middle of the first so many on, so that what is done at round numbers, a checkpoint
    /// above all, is not in every trace.
    fn has(&self, step: u64) -> bool {
        self.every > 0 && step % self.every == self.every / 2
    }

    /// The trace of `step` in the run whose context is `run`, if it is traced.
    fn trace(&'static self, run: &[u8; BINARY_LENGTH], step: u64) -> Option<StepTrace> {
        if !self.has(step) {
            return None;
        }
        let run = TraceParent::from_bytes(*run).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&run.trace_id()).update(&step.to_le_bytes());
        let mut derived = [0; 24];
        hasher.finalize_xof().fill(&mut derived);
        let (trace, root) = derived.split_at(16);
        let (trace, root) = (trace.try_into().ok()?, root.try_into().ok()?);
        // Neither may be all zeros, which they are with a chance of 2^-64.
        TraceParent::from_parts(trace, root, 0).ok()?;
        let (trace, root) = (TraceId::from_bytes(trace), SpanId::from_bytes(root));
        Some(StepTrace { steps: self, run, step, trace, root })
    }
}

/// Whether any step is traced in this process.
#[must_use]
pub fn are_traced() -> bool {
    STEPS.get().is_some_and(|steps| steps.every > 0)
}

/// The trace of a step that is traced.
#[derive(Clone, Copy, Debug)]
pub struct StepTrace {
    steps: &'static Steps,
    run: TraceParent,
    step: u64,
    trace: TraceId,
    root: SpanId,
}

impl StepTrace {
    /// The trace of `step`, from 0, in the run whose context (of any span in it) is `run`; `None` for a step that is not traced.
    #[must_use]
    pub fn of(run: Option<&[u8; BINARY_LENGTH]>, step: u64) -> Option<StepTrace> {
        STEPS.get()?.trace(run?, step)
    }

    /// The root, which one process alone may begin; it links to the run.
    pub fn root(self, node: &'static str, began: SystemTime) -> Span {
        let place = Place { trace: self, parent: SpanId::INVALID, remote: false };
        let mut root = place.span(node, "step", self.root, began);
        if let Some(data) = &mut root.0 {
            let run = SpanContext::new(
                TraceId::from_bytes(self.run.trace_id()),
                SpanId::from_bytes(self.run.parent_id()),
                TraceFlags::new(FLAG_SAMPLED),
                true,
                TraceState::default(),
            );
            data.links.links.push(Link::with_context(run));
        }
        root.with("testudo.step", self.step)
    }

    /// Under the root.
    #[must_use]
    pub fn top(self) -> Place {
        Place { trace: self, parent: self.root, remote: true }
    }

    /// Under the span that a message names, if it is of this trace; else under the root (invariant 3).
    #[must_use]
    pub fn sent_by(self, message: Option<[u8; BINARY_LENGTH]>) -> Place {
        let named = message.and_then(|bytes| TraceParent::from_bytes(bytes).ok());
        let named = named.filter(|named| TraceId::from_bytes(named.trace_id()) == self.trace);
        let parent = named.map_or(self.root, |named| SpanId::from_bytes(named.parent_id()));
        Place { trace: self, parent, remote: true }
    }

    /// The step, from 0.
    #[must_use]
    pub const fn step(self) -> u64 {
        self.step
    }
}

/// Where a span hangs: under which other.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    trace: StepTrace,
    parent: SpanId,
    remote: bool,
}

impl Place {
    /// A span of `node` (`scheduler`, `server` or `worker`) that begins now.
    pub fn begin(self, node: &'static str, name: &'static str) -> Span {
        self.begin_at(node, name, SystemTime::now())
    }

    /// A span that began at `began`.
    pub fn begin_at(self, node: &'static str, name: &'static str, began: SystemTime) -> Span {
        self.span(node, name, self.trace.steps.ids.new_span_id(), began)
    }

    /// A span that is over: from `began` to `ended`.
    pub fn record(self, node: &'static str, name: &'static str, (began, ended): (Instant, Instant)) {
        self.begin_at(node, name, moment(began)).end_at(moment(ended));
    }

    fn span(self, node: &'static str, name: &'static str, id: SpanId, began: SystemTime) -> Span {
        let flags = TraceFlags::new(FLAG_SAMPLED | FLAG_RANDOM);
        let data = SpanData {
            span_context: SpanContext::new(self.trace.trace, id, flags, false, TraceState::default()),
            parent_span_id: self.parent,
            parent_span_is_remote: self.remote,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: began,
            end_time: began,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(node).build(),
        };
        Span(Some(Box::new(data)), self.trace)
    }
}

/// A span under way; exported when it is dropped.
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<SpanData>>, StepTrace);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.0.as_ref().map(|data| &data.name)).finish()
    }
}

impl Span {
    /// The same, as the caller's side of a request to another process.
    pub fn client(self) -> Span {
        self.of_kind(SpanKind::Client)
    }

    /// The same, as the called side of a request.
    pub fn server(self) -> Span {
        self.of_kind(SpanKind::Server)
    }

    fn of_kind(mut self, kind: SpanKind) -> Span {
        if let Some(data) = &mut self.0 {
            data.span_kind = kind;
        }
        self
    }

    /// The same, with an attribute: a key of the program's, never a peer's.
    pub fn with(mut self, key: &'static str, value: impl Attributed) -> Span {
        if let Some(data) = &mut self.0 {
            data.attributes.push(KeyValue::new(key, value.value()));
        }
        self
    }

    /// Notes that what it stands for failed, by a word of the program's.
    pub fn fail(&mut self, why: &'static str) {
        if let Some(data) = &mut self.0 {
            data.status = Status::error(why);
            data.attributes.push(KeyValue::new("error.type", why));
        }
    }

    /// Under this span.
    #[must_use]
    pub fn place(&self) -> Place {
        let parent = self.0.as_ref().map_or(self.1.root, |data| data.span_context.span_id());
        Place { trace: self.1, parent, remote: false }
    }

    /// What a message carries that this span causes.
    #[must_use]
    pub fn context(&self) -> Option<[u8; BINARY_LENGTH]> {
        let context = &self.0.as_ref()?.span_context;
        let (trace, span) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        TraceParent::from_parts(trace, span, context.trace_flags().to_u8()).ok().map(TraceParent::to_bytes)
    }

    /// Ends it, at another time than now.
    pub fn end_at(mut self, ended: SystemTime) {
        self.end(ended);
    }

    fn end(&mut self, ended: SystemTime) {
        if let Some(mut data) = self.0.take() {
            data.end_time = ended.max(data.start_time);
            self.1.steps.spans.take(*data);
        }
    }
}

/// Invariant 4.
impl Drop for Span {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.end(SystemTime::now());
        }
    }
}

/// What a span's attribute may be.
pub trait Attributed {
    /// As OpenTelemetry has it.
    #[doc(hidden)]
    fn value(self) -> Value;
}

impl Attributed for u64 {
    fn value(self) -> Value {
        i64::try_from(self).unwrap_or(i64::MAX).into()
    }
}

impl Attributed for u32 {
    fn value(self) -> Value {
        i64::from(self).into()
    }
}

impl Attributed for usize {
    fn value(self) -> Value {
        i64::try_from(self).unwrap_or(i64::MAX).into()
    }
}

impl Attributed for &'static str {
    fn value(self) -> Value {
        self.into()
    }
}

impl Attributed for String {
    fn value(self) -> Value {
        self.into()
    }
}

/// When `at` was, on the clock that people read.
#[must_use]
pub fn moment(at: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(at.elapsed()).unwrap_or(now)
}

#[cfg(test)]
mod tests;

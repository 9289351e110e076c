use std::sync::Mutex;
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanExporter, SpanProcessor as _};

use super::*;
use crate::export::Tally;

#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Seen {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

const RUN: [u8; BINARY_LENGTH] = {
    let mut run = [7; BINARY_LENGTH];
    run[24] = 1;
    run
};

/// Steps of a process of its own, and what it exports.
fn process(every: u64) -> (&'static Steps, impl Fn() -> Vec<SpanData>) {
    let seen = Seen::default();
    let processor = BatchSpanProcessor::builder(seen.clone()).build();
    let spans = Spans::new(processor, &Resource::builder_empty().build(), Tally::new(100));
    let shared = crate::export::SharedSpans(Arc::clone(&spans));
    let steps: &'static Steps = Box::leak(Box::new(Steps::new(spans, every)));
    (steps, move || {
        shared.shutdown_with_timeout(Duration::from_secs(60)).unwrap();
        seen.0.lock().unwrap().clone()
    })
}

/// Invariants 1, 3 and 4: three processes that only know the run make one tree, and a stranger's context is none of it.
#[test]
fn three_processes_make_one_trace() {
    let ((scheduler, first), (worker, second), (server, third)) = (process(10), process(10), process(10));
    let root = scheduler.trace(&RUN, 15).unwrap().root("scheduler", SystemTime::now());
    let part = worker.trace(&RUN, 15).unwrap().top().begin("worker", "contribute");
    let push = part.place().begin("worker", "push").client().with("testudo.bytes", 8_u64);
    let at = server.trace(&RUN, 15).unwrap();
    let (served, strange) = (at.sent_by(push.context()), at.sent_by(Some([9; BINARY_LENGTH])));
    drop(served.begin("server", "verify").server());
    strange.record("server", "update", (Instant::now(), Instant::now()));
    drop((push, part, root));
    let spans: Vec<SpanData> = [first(), second(), third()].concat();
    assert_eq!(spans.len(), 5);
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let root = named("step");
    assert!(spans.iter().all(|span| span.span_context.trace_id() == root.span_context.trace_id()));
    assert_eq!(root.parent_span_id, SpanId::INVALID);
    assert_eq!(root.links.links[0].span_context.trace_id().to_bytes(), [7; 16]);
    for (child, parent) in
        [("contribute", "step"), ("push", "contribute"), ("verify", "push"), ("update", "step")]
    {
        assert_eq!(named(child).parent_span_id, named(parent).span_context.span_id(), "{child}");
    }
    assert_eq!(named("push").attributes, [KeyValue::new("testudo.bytes", 8_i64)]);
    assert!(spans.iter().all(|span| span.end_time >= span.start_time));
}

/// Invariant 1.
#[test]
fn steps_and_runs_have_traces_of_their_own() {
    let (steps, _) = process(1);
    let mut other = RUN;
    other[0] ^= 1;
    let mut found: Vec<_> = (0..100).map(|step| steps.trace(&RUN, step).unwrap()).collect();
    found.extend((0..100).map(|step| steps.trace(&other, step).unwrap()));
    let ids: std::collections::BTreeSet<_> = found.iter().map(|trace| trace.trace.to_bytes()).collect();
    let roots: std::collections::BTreeSet<_> = found.iter().map(|trace| trace.root.to_bytes()).collect();
    assert_eq!((ids.len(), roots.len()), (200, 200));
    // Where in the run's trace a node has heard of it makes no difference.
    let mut elsewhere = RUN;
    elsewhere[16..].fill(5);
    assert_eq!(steps.trace(&elsewhere, 3).unwrap().root, found[3].root);
}

#[test]
fn one_step_in_so_many_is_traced() {
    for (every, expected) in [(1, 1000), (7, 143), (100, 10), (0, 0), (u64::MAX, 0)] {
        let (steps, _) = process(every);
        assert_eq!((0..1000).filter(|step| steps.has(*step)).count(), expected, "{every}");
    }
    assert!(StepTrace::of(Some(&RUN), 0).is_none(), "this process has no collector");
}

/// Invariant 2.
#[test]
fn a_step_that_is_not_traced_allocates_nothing() {
    let (steps, _) = process(10);
    let counted = allocation_counter::measure(|| {
        assert!((0..1000).filter(|step| step % 10 != 5).all(|step| steps.trace(&RUN, step).is_none()));
        assert!((0..1000).all(|step| StepTrace::of(Some(&RUN), step).is_none()));
    });
    assert_eq!(counted.count_total, 0);
}

/// A failure is in the span, by the program's own word; the time of its end can be another than now.
#[test]
fn a_span_says_how_and_when_it_ended() {
    let (steps, spans) = process(1);
    let mut span = steps.trace(&RUN, 0).unwrap().top().begin("worker", "push");
    span.fail("refused");
    let early = SystemTime::UNIX_EPOCH;
    span.end_at(early);
    let found = spans();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].status, Status::error("refused"));
    assert_eq!(found[0].end_time, found[0].start_time, "no span ends before it begins");
}

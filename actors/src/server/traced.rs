//! What a server shows of a step that is traced: each push as it is received and checked, added up, and made an update; each pull.
//!
//! A span hangs under the one whose context the message carries, the worker's side of the same request. Which steps are traced is
//! this server's own to find, from the run's context that the scheduler's first word carries.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use testudo_observability::steps::moment;
use testudo_observability::{Place, Span, StepTrace};
use testudo_transport::{Message, Payload};

use crate::message::{Pull, Push};

/// What spans say that they are of.
const NODE: &str = "testudo.server";

/// The run's trace context, once the scheduler has told it; shared with the tasks of connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Run(Arc<OnceLock<[u8; 25]>>);

impl Run {
    /// Whether this is news.
    pub(super) fn tell(&self, run: [u8; 25]) -> bool {
        self.0.set(run).is_ok()
    }

    fn trace(&self, step: u64) -> Option<StepTrace> {
        StepTrace::of(self.0.get(), step)
    }

    /// Under the whole step, if it is traced.
    pub(super) fn top(&self, step: u64) -> Option<Place> {
        self.trace(step).map(StepTrace::top)
    }

    /// A push that has come, whole and authentic, if its step is traced.
    pub(super) fn pushed(&self, message: &Message, push: &Push) -> Option<Box<Span>> {
        let trace = self.trace(push.step)?;
        let now = Instant::now();
        let began = message.began.unwrap_or(now);
        let span = trace.sent_by(message.envelope.traceparent);
        let span = served(span.begin_at(NODE, "testudo.Server/Push", moment(began)), "Push");
        span.place().record(NODE, "verify", (began, now));
        let bytes = message.payload.len();
        Some(Box::new(span.with("testudo.slice", push.slice.to_string()).with("testudo.bytes", bytes)))
    }

    /// A pull that has come, if the step that makes its version is traced.
    pub(super) fn pulled(&self, message: &Message, pull: &Pull) -> Option<Box<Span>> {
        let trace = self.trace(pull.version.checked_sub(1)?)?;
        let began = message.began.map_or_else(SystemTime::now, moment);
        let span = trace.sent_by(message.envelope.traceparent).begin_at(NODE, "testudo.Server/Pull", began);
        Some(Box::new(served(span, "Pull").with("testudo.slice", pull.slice.to_string())))
    }
}

fn served(span: Span, method: &'static str) -> Span {
    span.server()
        .with("rpc.system", "testudo")
        .with("rpc.service", "testudo.Server")
        .with("rpc.method", method)
}

/// What a push brings to the arithmetic: its values, and the span under which what becomes of them is shown.
#[derive(Debug)]
pub struct Pushed {
    pub(super) values: Payload,
    pub(super) place: Option<Place>,
}

/// Work of the compute thread on a step that is traced: two stages, of which the arithmetic notes the end of the first.
#[derive(Debug)]
pub(super) struct Timed(Place, Instant);

impl Timed {
    pub(super) fn begin(place: Option<Place>) -> Option<Timed> {
        let place = place?;
        // What an earlier call has left.
        let _ = testudo_kernels::stage::take();
        Some(Timed(place, Instant::now()))
    }

    /// It is done; where there was a second stage, that is an update.
    pub(super) fn end(self) {
        let Timed(place, began) = self;
        let (over, now) = (testudo_kernels::stage::take(), Instant::now());
        place.record(NODE, "aggregate", (began, over.unwrap_or(now)));
        if let Some(over) = over {
            place.record(NODE, "update", (over, now));
        }
    }
}

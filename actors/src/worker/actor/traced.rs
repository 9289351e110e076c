//! What a worker shows of a step that is traced: its part of the step as a whole, and each request to a server.

use testudo_observability::{Place, Span, StepTrace};

use crate::placement::SliceId;

/// What spans say that they are of.
pub(in crate::worker) const NODE: &str = "testudo.worker";

/// The run's trace context, and this worker's part of the newest step, if that is traced.
#[derive(Debug, Default)]
pub(super) struct Traced {
    run: Option<[u8; 25]>,
    part: Option<Part>,
}

#[derive(Debug)]
struct Part {
    step: u64,
    place: Place,
    /// Ends with the report.
    whole: Option<Span>,
}

impl Traced {
    /// The scheduler's first word has told the run's context; whether this is news.
    pub(super) fn tell(&mut self, run: [u8; 25]) -> bool {
        let news = self.run.is_none();
        self.run.get_or_insert(run);
        news
    }

    /// What a message carries that belongs to no traced step.
    pub(super) fn run(&self) -> Option<[u8; 25]> {
        self.run
    }

    /// `step` begins; where what it computes is shown. It may begin again, for nodes of a worker that is lost.
    pub(super) fn begin(&mut self, step: u64, nodes: usize) -> Option<Place> {
        if self.part.as_ref().is_none_or(|part| part.step != step) {
            self.part = StepTrace::of(self.run.as_ref(), step).map(|trace| {
                let whole = trace.top().begin(NODE, "contribute").with("testudo.nodes", nodes);
                Part { step, place: whole.place(), whole: Some(whole) }
            });
        }
        self.place(step)
    }

    fn place(&self, step: u64) -> Option<Place> {
        self.part.as_ref().filter(|part| part.step == step).map(|part| part.place)
    }

    /// What this worker contributes to `step` is with the servers.
    pub(super) fn report(&mut self, step: u64) {
        if let Some(part) = self.part.as_mut().filter(|part| part.step == step) {
            part.whole = None;
        }
    }

    /// A push in `step` to `server`, if that step is traced.
    pub(super) fn push(&self, step: u64, (server, slice): (u32, SliceId), bytes: usize) -> Option<Box<Span>> {
        let span = self.place(step)?.begin(NODE, "testudo.Server/Push");
        Some(Box::new(asked(span, "Push", server, slice).with("testudo.bytes", bytes)))
    }

    /// A pull of the version that `step` makes, likewise.
    pub(super) fn pull(&self, version: u64, (server, slice): (u32, SliceId)) -> Option<Box<Span>> {
        let span = self.place(version.checked_sub(1)?)?.begin(NODE, "testudo.Server/Pull");
        Some(Box::new(asked(span, "Pull", server, slice)))
    }
}

fn asked(span: Span, method: &'static str, server: u32, slice: SliceId) -> Span {
    let span = span.client().with("rpc.system", "testudo").with("rpc.service", "testudo.Server");
    span.with("rpc.method", method).with("testudo.server", server).with("testudo.slice", slice.to_string())
}

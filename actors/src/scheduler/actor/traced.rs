//! What the scheduler shows of a step that is traced: its root, from the lease that lets it begin until it is complete.

use std::collections::BTreeMap;
use std::time::SystemTime;

use testudo_observability::steps::are_traced;
use testudo_observability::{Span, StepTrace, current_traceparent};

use crate::scheduler::{StepSummary, ToMember};

/// What spans say that they are of.
const NODE: &str = "testudo.scheduler";

/// The steps that may begin, and are not complete.
#[derive(Debug, Default)]
pub(super) struct Traced {
    run: Option<[u8; 25]>,
    /// Steps below this one were seen to be leased.
    until: u64,
    /// Bounded by how far leases run ahead.
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    root: Span,
    /// Until the step before is complete.
    lease: Option<Span>,
}

impl Traced {
    /// None yet of a job that begins at step `first`.
    pub(super) fn new(first: u64) -> Traced {
        Traced { until: first, ..Traced::default() }
    }

    /// What is said to a member may let steps begin. To be called in the run's span.
    pub(super) fn order(&mut self, message: &ToMember) {
        let until = match message {
            ToMember::Membership(membership) => membership.until,
            ToMember::Extended(extended) => extended.until,
            _ => return,
        };
        if until <= self.until || !are_traced() {
            return;
        }
        self.run = self.run.or_else(current_traceparent);
        let now = SystemTime::now();
        for step in self.until..until {
            let Some(trace) = StepTrace::of(self.run.as_ref(), step) else { continue };
            let root = trace.root(NODE, now);
            let lease = Some(root.place().begin_at(NODE, "lease", now));
            self.open.insert(step, Open { root, lease });
        }
        self.until = until;
    }

    /// A step is complete.
    pub(super) fn complete(&mut self, summary: &StepSummary) {
        if let Some(Open { root, lease }) = self.open.remove(&summary.step) {
            drop(lease);
            drop(root.with("testudo.epoch", summary.epoch).with("testudo.examples", summary.examples));
        }
        if let Some(next) = self.open.get_mut(&(summary.step + 1)) {
            next.lease = None;
        }
    }
}

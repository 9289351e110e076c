//! What operators that follow the run are told of it.

use std::time::Duration;

use testudo_transport::{Outgoing, Role};

use super::SchedulerActor;
use crate::message::{Body, StatusReport};

/// Reports to an operator come at most this often.
pub(super) const SHORTEST_REPORT: Duration = Duration::from_millis(20);

/// How a peer follows the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follows {
    pub(super) request: u64,
    pub(super) nodes: bool,
    pub(super) timer: actix::SpawnHandle,
}

impl SchedulerActor {
    pub(super) fn report_to_followers(&self) {
        self.links.keys().for_each(|link| self.report_to(*link));
    }

    pub(super) fn report_to(&self, link: u64) {
        if let Some(link) = self.links.get(&link)
            && let Some(Follows { request, nodes, .. }) = link.follows
        {
            let report = StatusReport {
                operators: self.operators() as u32,
                load: self.network.load(),
                nodes: if nodes { self.core.nodes(self.clock.now()) } else { Vec::new() },
                timeline: if nodes { self.core.timeline() } else { None },
                ..self.core.report()
            };
            link.outbox.post(Outgoing::new(StatusReport::KIND, request, report.encode()));
        }
    }

    pub(super) fn operators(&self) -> usize {
        self.links.values().filter(|link| link.peer.role() == Role::Operator).count()
    }
}

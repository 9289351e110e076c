//! How much a worker may say of its work: see [`crate::allowance`].

use testudo_transport::{Rate, Role};

use super::SchedulerActor;
use crate::message::{
    Body, Contributions, Countersigned, EvaluationResult, Exported, Given, NodeDone, ResidualPart, Testimony,
};

/// What a worker may say beside its steps: results of evaluations, answers to what is asked again after a change of members.
pub(super) const SPARE: Rate = Rate { per_second: 64, burst: 1024 };

impl SchedulerActor {
    /// The most that a worker may have to say of one step: nodes done, at most one for each shard and again for what it took over,
    /// what is witnessed of them, signatures.
    pub(super) fn words_a_step(&self) -> u64 {
        2 * u64::from(self.core.job().logical_shards) + 16
    }

    /// Whether a peer may say more: what time brings has its rate at the transport, and servers are trusted with what they know.
    pub(super) fn allows(&mut self, link: u64, kind: u8) -> bool {
        let worked = matches!(
            kind,
            NodeDone::KIND
                | Contributions::KIND
                | EvaluationResult::KIND
                | Exported::KIND
                | ResidualPart::KIND
                | Testimony::KIND
                | Given::KIND
                | Countersigned::KIND
        );
        let now = self.clock.now().0;
        let Some(link) = self.links.get_mut(&link) else { return true };
        !worked || link.peer.role() != Role::Worker || link.allowance.take(now)
    }
}

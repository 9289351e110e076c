//! Checkpoints: what servers report, what is committed, and the last one of a run.

use super::{Effect, LEASED_AHEAD, SchedulerCore, ToMember};
use crate::checkpoint::{Committed, Mark};
use crate::message::{CheckpointOrder, CheckpointPart, Member, MemberRole};
use crate::time::Time;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    pub(super) fn part(&mut self, now: Time, server: u32, part: CheckpointPart) {
        if self.hear(now, Member { role: MemberRole::Server, index: server }).is_none() {
            return;
        }
        // A slice is never further than the steps that may have been begun.
        let ahead = self.progress.completed().saturating_add(LEASED_AHEAD);
        if self.checkpoints.part(server, part, ahead) {
            self.last_progress = now;
        }
    }

    pub(super) fn committed(&mut self, now: Time, step: u64, result: Result<Committed, String>) {
        self.last_progress = now;
        if let Some(notice) = self.checkpoints.committed(step, &result) {
            self.effects.push_back(Effect::Notice(notice));
        } else if let Ok(committed) = result {
            self.effects.push_back(Effect::Checkpoint(committed));
        }
        self.finish();
    }

    fn mark(&self) -> (u64, Mark) {
        let step = self.progress.completed();
        let best = self.evaluations.best_before(step);
        let (samples, last_loss) = (self.progress.samples_in_all(), self.progress.last_loss);
        (step, Mark { samples, last_loss, best })
    }

    /// Another step is complete.
    pub(super) fn passed(&mut self) {
        let (step, mark) = self.mark();
        if let Some(notice) = self.checkpoints.passed(step, mark) {
            self.effects.push_back(Effect::Notice(notice));
        }
    }

    /// The last step is complete: every slice is at its version, and servers are told to write it.
    pub(super) fn order_last(&mut self) {
        let (version, mark) = self.mark();
        if self.checkpoints.end(version, mark) {
            let order = ToMember::Checkpoint(CheckpointOrder { version });
            self.send_all(MemberRole::Server, &order);
        }
    }

    /// Commits what is whole, and tells what is given up.
    pub(super) fn settle(&mut self) {
        while let Some(settled) = self.checkpoints.settle() {
            self.effects.push_back(match settled {
                Ok(commit) => Effect::Commit(commit),
                Err(notice) => Effect::Notice(notice),
            });
            self.finish();
        }
    }
}

//! Checkpoints: what servers report, what is committed, and the last one of a run.

use super::{Effect, LEASED_AHEAD, SchedulerCore, ToMember};
use crate::checkpoint::{Committed, Mark};
use crate::lease::{Lease, reassign};
use crate::message::{
    CheckpointOrder, CheckpointPart, Member, MemberRole, PartOutcome, ResidualOrder, ResidualPart,
};
use crate::time::Time;
use crate::tree::Node;

/// Ended leases that are kept: more than workers that come and go can end while one checkpoint is written. What is written for others
/// counts as not held, which gives that checkpoint up.
const MOST_ENDED: usize = 8192;

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

    pub(super) fn residual_part(&mut self, now: Time, worker: u32, part: ResidualPart) {
        if self.hear(now, Member { role: MemberRole::Worker, index: worker }).is_none() {
            return;
        }
        let covers = |l: &Lease, shard: u32| l.worker == worker && l.node.covers(&Node::leaf(shard));
        // What it writes late may be of shards that have moved on since.
        let before = part.version.checked_sub(1);
        let contributed = |l: &Lease| before.is_some_and(|step| l.holds_in(step));
        let held = |shard: &u32| {
            self.leases.iter().any(|l| covers(l, *shard))
                || self.ended.iter().any(|l| covers(l, *shard) && contributed(l))
        };
        let shards = &part.shards;
        let is_its_own = shards.len() <= self.job.logical_shards as usize
            && shards.is_sorted_by(|a, b| a < b)
            && shards.iter().all(held);
        let part = match is_its_own {
            true => part,
            false => {
                let why = "it wrote residuals of logical shards that it does not hold".to_owned();
                ResidualPart { shards: Vec::new(), outcome: PartOutcome::Failed(why), ..part }
            }
        };
        let ahead = self.progress.completed().saturating_add(LEASED_AHEAD);
        if self.checkpoints.residuals(worker, part, ahead) {
            self.last_progress = now;
        }
    }

    /// Leases have ended: they are kept for as long as a checkpoint waits for residuals of steps that they held for.
    pub(super) fn keep_ended(&mut self, ended: Vec<Lease>) {
        let oldest = self.checkpoints.oldest_with_residuals();
        let wanted =
            |lease: &Lease| oldest.is_some_and(|oldest| lease.to_step.is_some_and(|to| to >= oldest));
        self.ended.extend(ended);
        self.ended.retain(wanted);
        let surplus = self.ended.len().saturating_sub(MOST_ENDED);
        self.ended.drain(..surplus);
    }

    /// A worker is lost after the last step. What it had not written of its residuals is lost with it: who is left writes that there
    /// are none, which is what training would go on with.
    pub(super) fn lose_last_residuals(&mut self, worker: u32, survivors: &[u32]) {
        self.checkpoints.lose(worker, self.until);
        if !self.checkpoints.last_lacks_residuals() {
            return;
        }
        self.count_lost(self.shards_of(worker), &format!("with worker/{worker}"));
        let completed = self.progress.completed();
        self.leases = reassign(&self.leases, worker, survivors, self.epoch + 1, (|_| completed, None));
        self.order_residuals(completed);
    }

    /// Tells every worker that has not to write the residuals of the shards that it keeps.
    pub(super) fn order_residuals(&mut self, version: u64) {
        if !self.checkpoints.last_lacks_residuals() {
            return;
        }
        let keepers: Vec<Option<u32>> =
            (0..self.job.logical_shards).map(|shard| self.keeper(shard, version)).collect();
        for index in self.live(MemberRole::Worker) {
            let shards: Vec<u32> = (0..)
                .zip(&keepers)
                .filter(|(_, keeper)| **keeper == Some(index))
                .map(|(shard, _)| shard)
                .collect();
            if !shards.is_empty() && self.checkpoints.last_lacks(index, &shards) {
                let order = ToMember::Residuals(ResidualOrder { version, shards });
                self.send(Member { role: MemberRole::Worker, index }, order);
            }
        }
    }

    /// Who keeps the residuals of a logical shard at `version`: who contributed it to the step before, whoever has it from there on;
    /// if that worker is lost, who has it now.
    fn keeper(&self, shard: u32, version: u64) -> Option<u32> {
        let before = version.saturating_sub(1).max(self.job.first_step());
        let lives = |index| self.members.contains_key(&Member { role: MemberRole::Worker, index });
        let covers = |node: Node| node.covers(&Node::leaf(shard));
        let (mut contributed, mut holds) = (None, None);
        for lease in self.leases.iter().filter(|l| covers(l.node) && lives(l.worker)) {
            if lease.holds_in(before) {
                contributed = Some(lease.worker);
            } else if lease.to_step.is_none() {
                holds = Some(lease.worker);
            }
        }
        contributed.or(holds)
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
            self.order_residuals(version);
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

//! How members and runs end: the last step, a member's loss, a failure (invariants 3 and 5 of the core).

use super::hashing::differ;
use super::returning::{MOST_FAILURES, WINDOW};
use super::{Effect, MAX_QUOTED, MAX_REASON, SchedulerCore, ToMember};
use crate::audit::printable;
use crate::message::*;
use crate::scheduler::tasks::Tasks;
use crate::time::Time;
use crate::witness::Heard;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// The last step is complete: evaluate and export.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Finishing;
        self.stalled = None;
        self.paused = false;
        let version = self.progress.completed();
        self.evaluations.give_up();
        self.ending = Some(Tasks::ending(version, &self.job));
        self.order_last();
        self.order_hash();
        self.hand_out();
    }

    pub(super) fn finish(&mut self) {
        if self.outcome.is_some() || self.phase != Phase::Finishing {
            return;
        }
        if !self.checkpoints.is_settled() {
            return;
        }
        let Some(ending) = &self.ending else { return };
        let (Some(found), Some(exported)) = (ending.evaluation_result(), ending.export()) else { return };
        let Some(kept) = self.parameters.last(self.progress.completed()) else { return };
        if let Some(text) = kept.and_then(|kept| differ(kept, exported.params_blake3)) {
            return self.fail(text);
        }
        let outcome = Outcome::Finished(Finished {
            steps: self.progress.completed(),
            stopped_early: self.stop_at.is_some_and(|at| at < self.plan.steps()),
            final_loss: self.progress.last_loss.unwrap_or(f64::NAN),
            test_loss: found.loss,
            test_accuracy: found.accuracy,
            params_blake3: exported.params_blake3,
            samples: self.progress.samples,
            training_seconds: self.progress.training_seconds(),
            bytes_sent: self.progress.bytes_sent,
            bytes_received: self.progress.bytes_received,
            workers_lost: self.workers_lost,
            residuals_lost: self.residuals_lost,
            push_error: self.progress.push_error(),
            pull_error: exported.pulled.relative(),
            checkpoint: self.checkpoints.newest(),
        });
        self.outcome = Some(outcome);
        self.evaluations.last(found);
        self.effects.push_back(Effect::Evaluated(found));
        self.dismiss(MemberRole::Worker, "the run is complete");
        self.leave_if_empty();
    }

    pub(super) fn dismiss(&mut self, role: MemberRole, reason: &str) {
        let may_go_on = matches!(self.outcome, Some(Outcome::ServerLost(_)));
        self.send_all(role, &ToMember::Shutdown(Shutdown { reason: reason.into(), may_go_on }));
    }

    /// Servers after workers, then the scheduler itself (invariant 5).
    pub(super) fn leave_if_empty(&mut self) {
        let Some(outcome) = &self.outcome else { return };
        if !self.live(MemberRole::Worker).is_empty() || self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        let (outcome, reason) = match outcome {
            Outcome::Finished(_) => (outcome.clone(), "the run is complete".to_owned()),
            Outcome::Failed(why) | Outcome::ServerLost(why) => (outcome.clone(), why.clone()),
        };
        self.dismiss(MemberRole::Server, &reason);
        self.effects.push_back(Effect::Over(outcome));
    }

    pub(super) fn lose(&mut self, now: Time, member: Member, reason: &str) {
        let Some(lost) = self.members.remove(&member) else { return };
        let reason = printable(reason, MAX_QUOTED);
        self.effects.push_back(Effect::Disconnect {
            connection: lost.connection,
            member,
            incarnation: lost.incarnation,
            reason: reason.clone(),
        });
        if self.outcome.is_some() {
            return self.leave_if_empty();
        }
        if member.role == MemberRole::Server {
            let why = format!("{member} was lost ({reason}); its parameters are gone with it");
            return self.over(Outcome::ServerLost, &why);
        }
        self.returning.forget(member.index);
        self.ended.retain(|lease| lease.worker != member.index);
        if self.scaling.left(member.index) && !self.owes(member.index) {
            self.effects.push_back(Effect::Notice(format!(
                "{member} has left: {} workers are wanted",
                self.wanted()
            )));
            self.moved = true;
            return self.give_back(member.index);
        }
        self.workers_lost += 1;
        let left = self.remaining();
        self.effects.push_back(Effect::Notice(format!("{member} was lost ({reason})")));
        match self.phase {
            Phase::Forming if self.epoch == 0 => {
                // Those who are there share its arithmetic; those who come need not.
                if self.members.is_empty() {
                    self.fingerprint = None;
                }
            }
            _ if left.is_empty() && self.job.elastic.return_ms > 0 => self.forsaken(now, member),
            _ if left.is_empty() => {
                self.fail(format!("{member} was lost ({reason}), and no worker is left"));
            }
            Phase::Forming | Phase::Training => {
                self.lose_residuals(member.index);
                self.checkpoints.lose(member.index, self.until);
                let heirs = self.heirs();
                self.bequeath(member.index, &heirs);
                if let Some(warning) = self.moved_votes() {
                    self.effects.push_back(Effect::Notice(warning));
                }
                self.testified.moved(self.until);
                self.last_progress = now;
                self.moved = true;
                self.give_back(member.index);
            }
            Phase::Finishing => {
                self.give_back(member.index);
                self.lose_last_residuals(member.index, &left);
            }
            Phase::Over => {}
        }
    }

    /// What error feedback kept of the shards that `worker` held is lost with it, and with that what its heirs would have to be
    /// told of to contribute the same.
    pub(super) fn lose_residuals(&mut self, worker: u32) {
        self.lose_residuals_of(self.shards_of(worker), &format!("with worker/{worker}"));
    }

    /// The same of so many shards.
    pub(super) fn lose_residuals_of(&mut self, shards: u32, how: &str) {
        // Before training begins there are none yet, or those of a checkpoint, which whoever begins reads.
        let begun = self.epoch > 0 && self.phase != Phase::Forming;
        if !self.job.codecs.push.feeds_back() || !begun || shards == 0 {
            return;
        }
        self.count_lost(shards, how);
        if self.witness.is_some() {
            self.heed(Heard::Lost("contributions follow from residuals that are lost".into()));
        }
    }

    /// The logical shards that `worker` holds.
    pub(super) fn shards_of(&self, worker: u32) -> u32 {
        let held = self.leases.iter().filter(|l| l.worker == worker && l.to_step.is_none());
        held.map(|l| l.node.leaves).sum()
    }

    /// Says that the residuals of so many logical shards are lost.
    pub(super) fn count_lost(&mut self, shards: u32, how: &str) {
        self.residuals_lost = self.residuals_lost.saturating_add(shards);
        self.effects.push_back(Effect::Notice(format!(
            "the residuals of {shards} logical shards (transport.push_codec is {}) are lost {how}: training goes on \
             without them, and no longer gives the bits of a run that lost none",
            self.job.codecs.push
        )));
    }

    /// A node says that it cannot go on. A worker's word ends no run that others can go on with: it is lost, as if it had died
    /// (invariant 3). What holds for all of them, all will say. Before training begins nobody can go on without it.
    pub(super) fn failed(&mut self, now: Time, member: Member, reason: &str) {
        if !self.members.contains_key(&member) {
            return;
        }
        match self.others_go_on(member) {
            true if self.returning.fails_too_often(now, member) => {
                let (often, minutes) = (MOST_FAILURES + 1, WINDOW.as_secs() / 60);
                let reason = printable(reason, MAX_QUOTED);
                let what =
                    format!("said {often} times within {minutes} minutes that it cannot go on: {reason}");
                self.misbehaves(now, member, &what);
            }
            true => self.lose(now, member, reason),
            false => self.fail(format!("{member}: {reason}")),
        }
    }

    /// A worker cannot reach a server. While others go on, it is the worker that is lost. If none is left that could, the server is
    /// lost to the run, whatever the scheduler hears of it: nothing is wrong with the job, which may go on from a checkpoint. A worker
    /// that lies has the job begin again from its checkpoint: how often has a budget.
    pub(super) fn unreachable(&mut self, now: Time, worker: u32, server: u32, why: &str) {
        let member = Member { role: MemberRole::Worker, index: worker };
        if !self.members.contains_key(&member) {
            return;
        }
        if self.epoch == 0 || self.others_go_on(member) {
            return self.failed(now, member, &format!("server/{server} cannot be reached: {why}"));
        }
        let what =
            format!("server/{server} cannot be reached by {member}, and no other worker is left: {why}");
        self.over(Outcome::ServerLost, &what);
    }

    /// A member that the scheduler hung up on is lost. If it is a server, the run does not go on by itself: see invariant 3 of the core.
    pub(super) fn expel(&mut self, now: Time, member: Member, reason: &str) {
        if member.role == MemberRole::Server {
            self.fail(format!(
                "{member} was cut off ({}): what went on under the same identities would let it in again",
                printable(reason, MAX_QUOTED)
            ));
        }
        self.lose(now, member, reason);
    }

    /// A member says what cannot be. A worker is lost for it, so that none can end a run that others can go on with; what is no
    /// worker's fault, such as a loss that has become infinite, all will say.
    pub(super) fn misbehaves(&mut self, now: Time, member: Member, what: &str) {
        match self.others_go_on(member) {
            true => {
                self.returning.bar(member);
                self.effects.push_back(Effect::Fault { member, what: what.to_owned() });
                self.lose(now, member, &format!("it {what}"));
            }
            false => self.fail(format!("{member} {what}")),
        }
    }

    fn others_go_on(&self, without: Member) -> bool {
        let others = || self.remaining().iter().any(|worker| *worker != without.index);
        without.role == MemberRole::Worker && self.epoch > 0 && others()
    }

    pub(super) fn fail(&mut self, reason: String) {
        self.over(Outcome::Failed, &reason);
    }

    fn over(&mut self, outcome: fn(String) -> Outcome, reason: &str) {
        if self.outcome.is_some() {
            return;
        }
        let reason = printable(reason, MAX_REASON);
        self.outcome = Some(outcome(reason.clone()));
        self.dismiss(MemberRole::Worker, &reason);
        self.leave_if_empty();
    }
}

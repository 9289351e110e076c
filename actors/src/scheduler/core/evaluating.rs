//! Evaluations: between steps, and of the last version.

use testudo_kernels::ModelSpec;

use super::reports::DIVERGED;
use super::{Effect, SchedulerCore, ToMember};
use crate::message::{EvaluationResult, Exported, Member, MemberRole, Phase};
use crate::scheduler::evaluations::Verdict;
use crate::scheduler::tasks::{Order, Tasks};
use crate::time::Time;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// The version that is complete is evaluated, if it is to be, before any step goes on from it.
    pub(super) fn evaluate(&mut self) {
        if self.phase == Phase::Training && self.evaluations.begin(self.progress.completed(), &self.job) {
            self.hand_out();
        }
    }

    /// What workers have to do with a version: the last one, or one between steps.
    pub(super) fn tasks(&mut self) -> Option<&mut Tasks> {
        match &mut self.ending {
            Some(ending) => Some(ending),
            None => self.evaluations.tasks(),
        }
    }

    pub(super) fn hand_out(&mut self) {
        let live = self.live(MemberRole::Worker);
        while let Some((index, order)) = self.tasks().and_then(|tasks| tasks.hand_out(&live)) {
            let message = match order {
                Order::Evaluate(e) => ToMember::Evaluate(e),
                Order::Export(e) => ToMember::Export(e),
            };
            self.send(Member { role: MemberRole::Worker, index }, message);
        }
    }

    /// What a worker that is lost had to do is anybody's again.
    pub(super) fn give_back(&mut self, worker: u32) {
        if let Some(tasks) = self.tasks() {
            tasks.give_back(worker);
        }
        self.hand_out();
    }

    pub(super) fn evaluated(&mut self, now: Time, worker: u32, result: &EvaluationResult) {
        let member = Member { role: MemberRole::Worker, index: worker };
        self.hear(now, member);
        // What a program's own model calls a loss may be below zero; of those that are built in none is.
        let custom = matches!(self.job.model, ModelSpec::Custom { .. });
        if !result.loss_sum.is_finite() {
            self.misbehaves(now, member, &format!("reports a test loss that is not finite: {DIVERGED}"));
        } else if result.loss_sum < 0.0 && !custom {
            self.misbehaves(now, member, "reports a test loss below zero");
        } else if self.tasks().is_some_and(|tasks| tasks.evaluated(worker, result)) {
            self.last_progress = now;
        }
        self.hand_out();
        self.go_on(now);
        self.finish();
    }

    pub(super) fn exported(&mut self, now: Time, worker: u32, exported: Exported) {
        self.hear(now, Member { role: MemberRole::Worker, index: worker });
        if self.tasks().is_some_and(|tasks| tasks.exported(worker, exported)) {
            self.last_progress = now;
        }
        self.hand_out();
        self.finish();
    }

    /// An evaluation between steps is complete: training goes on, or stops.
    fn go_on(&mut self, now: Time) {
        if self.phase != Phase::Training {
            return;
        }
        let Some((found, verdict)) = self.evaluations.complete() else { return };
        // The time that it took is no step's.
        self.progress.rest(now);
        self.effects.push_back(Effect::Evaluated(found));
        match verdict {
            Verdict::GoOn => self.extend(),
            Verdict::Stop(why) => {
                self.effects.push_back(Effect::Notice(why));
                self.stop_at = Some(found.step);
                self.end();
            }
        }
    }
}

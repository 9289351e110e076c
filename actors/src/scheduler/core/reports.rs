//! What workers report of their steps.

use std::sync::Arc;

use super::{Effect, SchedulerCore};
use crate::lease::may_contribute;
use crate::message::{Member, MemberRole, NodeDone, NodeLoss, Phase};
use crate::time::Time;
use crate::tree::Node;

/// What it means when all workers say so.
pub(super) const DIVERGED: &str = "training has diverged; a lower optimizer.learning_rate may help";

impl<C: Clone + PartialEq> SchedulerCore<C> {
    pub(super) fn node_done(&mut self, now: Time, worker: u32, done: NodeDone) {
        let member = Member { role: MemberRole::Worker, index: worker };
        if self.hear(now, member).is_none() || self.phase != Phase::Training {
            return;
        }
        // A report counts for nodes that the worker holds; others moved on while it was under way.
        // Each shard counts once a step; a report of more nodes than there are leases is not looked through.
        let held = |node: Node| self.holds(worker, node, done.step);
        let owed = |node: Node| self.progress.owes_all(node, done.step);
        let mut nodes: Vec<NodeLoss> = Vec::new();
        for loss in done.nodes.iter().take(self.leases.len()) {
            let node = loss.node;
            let counted = nodes.iter().any(|seen| seen.node.covers(&node) || node.covers(&seen.node));
            if held(node) && owed(node) && !counted {
                nodes.push(*loss);
            }
        }
        let examples = self.plan.step(done.step).examples;
        if nodes.iter().any(|l| {
            l.examples > examples || l.correct > l.examples.saturating_mul(self.job.model.targets() as u64)
        }) {
            let what = format!("reports more examples than step {} has", done.step);
            return self.misbehaves(now, member, &what);
        }
        if !done.pushed.is_possible() {
            return self.misbehaves(now, member, "reports that it lost what no codec loses");
        }
        if nodes.is_empty() || done.step >= self.until || nodes.iter().any(|l| !l.loss_sum.is_finite()) {
            return self.refuse_report(now, member, &done, nodes.is_empty());
        }
        if let Some(step) = nodes.iter().find_map(|loss| self.untold(worker, done.step, loss)) {
            let what = format!("reports step {step}, and has not told what it contributed to it");
            return self.misbehaves(now, member, &what);
        }
        let done = NodeDone { nodes, ..done };
        self.timelines.worked(now, worker, &done);
        if self.is_early(worker, &done) {
            return self.returning.keep(worker, done);
        }
        self.progress.report(&done);
        self.count_early();
        self.complete(now);
    }

    /// Goes on from the steps that have become complete.
    pub(super) fn complete(&mut self, now: Time) {
        let (plan, job) = (self.plan, Arc::clone(&self.job));
        let describe = |step: u64| {
            (plan.step(step).epoch, job.learning_rate * job.schedule.factor(step, plan.planned_steps()))
        };
        while self.gradients.weighed(self.progress.completed())
            && let Some(summary) = self.progress.next_complete(now, describe)
        {
            self.last_progress = now;
            if self.stalled.take().is_some() {
                self.effects.push_back(Effect::Notice("training goes on".into()));
            }
            self.timelines.completed(summary.step, summary.seconds);
            self.effects.push_back(Effect::Step(summary));
            self.passed();
            self.check_witness();
        }
        if self.progress.completed() >= self.steps() {
            return self.end();
        }
        self.evaluate();
        self.extend();
    }

    /// Whether a contribution of `node` to `step` is `worker`'s.
    pub(super) fn holds(&self, worker: u32, node: Node, step: u64) -> bool {
        may_contribute(self.tree, &self.leases, (worker, self.epoch), (node, step))
    }

    fn refuse_report(&mut self, now: Time, member: Member, done: &NodeDone, moved: bool) {
        if moved {
            return;
        }
        let step = done.step;
        let what = if done.nodes.iter().any(|l| !l.loss_sum.is_finite()) {
            format!("reports a loss that is not finite in step {step}: {DIVERGED}")
        } else {
            format!("reports step {step}, which it was not leased")
        };
        self.misbehaves(now, member, &what);
    }
}

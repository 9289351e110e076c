//! Whom a run waits for: a stall has a name (invariant 4 of the core).

use std::collections::BTreeSet;

use super::SchedulerCore;
use crate::message::{Member, MemberRole, Phase, Waiting};
use crate::scheduler::tasks::Tasks;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// Whom the run waits for: node, slice and step.
    pub(super) fn waits_for(&self) -> String {
        match self.phase {
            Phase::Forming => {
                let all = (0..self.job.servers)
                    .map(|index| Member { role: MemberRole::Server, index })
                    .chain((0..self.job.workers).map(|index| Member { role: MemberRole::Worker, index }));
                let missing: Vec<String> =
                    all.filter(|m| !self.members.contains_key(m)).map(|m| m.to_string()).collect();
                match missing.is_empty() {
                    false => format!("waiting for {} to join", missing.join(", ")),
                    true => "waiting for servers to initialise their parameters".into(),
                }
            }
            Phase::Training if self.evaluations.under_way().is_some() => {
                let holders = self.evaluations.under_way().map(Tasks::holders).unwrap_or_default();
                let step = self.progress.completed();
                format!("waiting for the evaluation after step {step} by {}", workers(&holders))
            }
            Phase::Training => {
                let said = |role| {
                    self.members
                        .iter()
                        .filter(move |(m, _)| m.role == role)
                        .filter_map(|(m, j)| Some((m, j.said.as_ref()?.waiting.as_ref()?)))
                };
                let at_server = said(MemberRole::Server).min_by_key(|(_, w)| w.step);
                if let Some((server, waiting)) = at_server
                    && let Some(node) = waiting.missing.filter(|node| self.tree.contains(*node))
                    && let Some(lease) = self
                        .leases
                        .iter()
                        .find(|l| l.holds_in(waiting.step) && (l.node.covers(&node) || node.covers(&l.node)))
                {
                    return format!(
                        "waiting for worker/{} to push {} of {} in step {} to {server}",
                        lease.worker,
                        node,
                        self.describe(waiting),
                        waiting.step
                    );
                }
                if let Some(owing) = self.owing_products() {
                    return owing;
                }
                match said(MemberRole::Worker).min_by_key(|(_, w)| w.step) {
                    Some((worker, waiting)) => {
                        format!("{worker} waits for {} after step {}", self.describe(waiting), waiting.step)
                    }
                    None => {
                        let step = self.progress.completed();
                        let owing: Vec<String> = self
                            .leases
                            .iter()
                            .filter(|l| l.holds_in(step) && self.progress.owed(l.node) <= step)
                            .map(|l| format!("worker/{} ({})", l.worker, l.node))
                            .collect();
                        format!("waiting for {} in step {step}", owing.join(", "))
                    }
                }
            }
            Phase::Finishing | Phase::Over => match self.ending.as_ref().map(Tasks::holders) {
                Some(holders) if !holders.is_empty() => format!(
                    "waiting for the evaluation and the export of the final model by {}",
                    workers(&holders)
                ),
                _ if !self.checkpoints.is_settled() => {
                    self.checkpoints.waits_for().unwrap_or_else(|| "waiting for the last checkpoint".into())
                }
                _ if self.outcome.is_none() => {
                    let step = self.progress.completed();
                    format!("waiting for {} to hash its parameters at step {step}", self.owing(step))
                }
                _ => "waiting for workers and servers to leave".into(),
            },
        }
    }

    pub(super) fn describe(&self, waiting: &Waiting) -> String {
        match self.names.get(waiting.slice.parameter as usize) {
            Some(name) => format!("{name} (slice {})", waiting.slice.index),
            None => waiting.slice.to_string(),
        }
    }
}

fn workers(indices: &BTreeSet<u32>) -> String {
    indices.iter().map(|index| format!("worker/{index}")).collect::<Vec<_>>().join(", ")
}

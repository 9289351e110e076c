//! An operator wants more workers, or fewer, while the job is under way.
//!
//! 1. The job has room for as many as it was signed with ([`JobSpec::most_workers`](crate::JobSpec::most_workers)), and those that are
//!    wanted are numbered from 0. Whoever starts nodes reads in the reports how many are.
//! 2. Who is not wanted any more is leased nothing from the horizon on, ends what it has, and is dismissed in order: nothing of it is
//!    lost, and it does not count as a loss.
//! 3. A job whose workers vote keeps them: see [`Aggregation`](testudo_kernels::Aggregation).

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, SchedulerCore, ToMember};
use crate::message::{Member, MemberRole, Phase, Shutdown};

/// How many workers are wanted, and who leaves for that.
#[derive(Debug, Default)]
pub(super) struct Scaling {
    wanted: Option<u32>,
    leaving: BTreeSet<u32>,
    dismissed: BTreeSet<u32>,
    /// Of those who leave: how many steps were complete when they owed none any more.
    done: BTreeMap<u32, u64>,
}

impl Scaling {
    /// Who leaves has left, or is lost; whether it was dismissed.
    pub(super) fn left(&mut self, worker: u32) -> bool {
        self.leaving.remove(&worker);
        self.done.remove(&worker);
        self.dismissed.remove(&worker)
    }

    /// Nobody leaves: those who were to are needed.
    pub(super) fn keep_everybody(&mut self) {
        self.leaving.clear();
        self.done.clear();
    }
}

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// How many workers the operator wants.
    pub(super) fn wanted(&self) -> u32 {
        self.scaling.wanted.unwrap_or(self.job.workers)
    }

    /// How many may take part.
    pub(super) fn admitted(&self) -> u32 {
        self.scaling.wanted.unwrap_or_else(|| self.job.most_workers())
    }

    /// Workers that take part and are not dismissed.
    pub(super) fn remaining(&self) -> Vec<u32> {
        let live = self.live(MemberRole::Worker);
        live.into_iter().filter(|worker| !self.scaling.dismissed.contains(worker)).collect()
    }

    /// Whether `worker` has leases of steps that are not complete.
    pub(super) fn owes(&self, worker: u32) -> bool {
        let completed = self.progress.completed();
        let mut leases = self.leases.iter().filter(|lease| lease.worker == worker);
        leases.any(|lease| lease.to_step.is_none_or(|to| to > completed))
    }

    /// Workers to lease steps to.
    pub(super) fn staying(&self) -> Vec<u32> {
        self.remaining().into_iter().filter(|worker| !self.scaling.leaving.contains(worker)).collect()
    }

    pub(super) fn scale(&mut self, workers: u32) -> Result<String, String> {
        if self.outcome.is_some() || !matches!(self.phase, Phase::Forming | Phase::Training) {
            return Err("training is over; there is nothing to scale".into());
        }
        if self.epoch == 0 {
            return Err("the job still forms: scale it when it trains".into());
        }
        if self.job.aggregation.hostile().is_some() {
            return Err(format!(
                "under training.aggregation = {} every worker has a vote from the beginning, and none is added or dismissed",
                self.job.aggregation
            ));
        }
        let most = self.job.most_workers();
        if !(1..=most).contains(&workers) {
            return Err(format!("this job may have 1 to {most} workers (cluster.max_workers)"));
        }
        if !self.holders().iter().any(|worker| *worker < workers) {
            return Err(format!(
                "of the workers below {workers}, none takes part yet to take the others' work over"
            ));
        }
        self.scaling.wanted = Some(workers);
        self.scaling.keep_everybody();
        self.scaling.leaving = self.staying().into_iter().filter(|worker| *worker >= workers).collect();
        self.lease_anew();
        let text = format!("{workers} workers are wanted from now on; {} leave", self.scaling.leaving.len());
        self.effects.push_back(Effect::Notice(text.clone()));
        Ok(text)
    }

    /// Dismisses those who are to leave and owe nothing any more, neither steps nor residuals of those that they contributed.
    pub(super) fn dismiss_leaving(&mut self) {
        let completed = self.progress.completed();
        let free: Vec<u32> =
            self.scaling.leaving.iter().copied().filter(|worker| !self.owes(*worker)).collect();
        for index in free {
            let done = *self.scaling.done.entry(index).or_insert(completed);
            if self.checkpoints.awaits(index, done) {
                continue;
            }
            self.scaling.done.remove(&index);
            self.scaling.leaving.remove(&index);
            self.scaling.dismissed.insert(index);
            let reason = format!("{} workers are wanted", self.wanted());
            let told = Shutdown { reason, may_go_on: false };
            self.send(Member { role: MemberRole::Worker, index }, ToMember::Shutdown(told));
        }
    }
}

//! What workers tell of witnessed values: see [`crate::witness`].

use std::collections::BTreeSet;

use super::SchedulerCore;
use super::reports::DIVERGED;
use crate::lease::FIRST_EPOCH;
use crate::message::{Given, Member, MemberRole, NodeLoss, Phase, Testimony, Witnessed};
use crate::scheduler::{Effect, ToMember};
use crate::time::Time;
use crate::tree::Node;
use crate::witness::{Heard, Key, Witness};

/// Who has told what it contributed to the steps that are not complete: what it reports is held against that.
#[derive(Debug, Default)]
pub(super) struct Testified {
    pub(super) told: BTreeSet<(u64, u32, Node)>,
    /// Steps below this one may hold contributions of workers that are lost.
    moved: u64,
}

impl Testified {
    /// Leases move; steps up to `until` may have been begun.
    pub(super) fn moved(&mut self, until: u64) {
        self.moved = self.moved.max(until);
    }
}

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// Witnesses what `key` chooses; `witness` was made with it.
    #[must_use]
    pub fn with_witness(mut self, key: Key, witness: Witness) -> SchedulerCore<C> {
        self.witness = Some((key, witness));
        self
    }

    /// Before anything else of training, so that every worker knows it by its first step. Workers alone (invariant 1 of
    /// [`crate::witness`]).
    pub(super) fn tell_choice(&mut self) {
        if let Some((key, _)) = &self.witness {
            let message = ToMember::Witnessed(Witnessed { key: key.clone() });
            self.send_all(MemberRole::Worker, &message);
        }
    }

    pub(super) fn testified(&mut self, now: Time, worker: u32, testimony: &Testimony, values: Vec<f32>) {
        let Testimony { step, node } = *testimony;
        let held = self.holds(worker, node, step);
        // What is not leased, or was moved on, is nobody's contribution.
        if !self.may_tell(now, worker, values.len()) || !held || step >= self.until {
            return;
        }
        if values.iter().any(|value| !value.is_finite()) {
            let what = format!("tells a contribution to step {step} that is not finite: {DIVERGED}");
            return self.misbehaves(now, Member { role: MemberRole::Worker, index: worker }, &what);
        }
        if step >= self.progress.completed() {
            self.testified.told.insert((step, worker, node));
        }
        if let Some((_, witness)) = &mut self.witness {
            let heard = witness.contributed(step, node, values);
            self.heed(heard);
        }
    }

    pub(super) fn was_given(&mut self, now: Time, worker: u32, given: &Given, values: Vec<f32>) {
        if !self.may_tell(now, worker, values.len()) || given.version > self.until {
            return;
        }
        if let Some((_, witness)) = &mut self.witness {
            let heard = witness.given(worker, given.version, values);
            self.heed(heard);
        }
    }

    /// Whether `worker` is a member that tells as many values as are witnessed; other numbers of them end the run.
    fn may_tell(&mut self, now: Time, worker: u32, values: usize) -> bool {
        let member = Member { role: MemberRole::Worker, index: worker };
        let Some(expected) = self.witness.as_ref().map(|(_, witness)| witness.elements()) else {
            return false;
        };
        if self.hear(now, member).is_none() || !matches!(self.phase, Phase::Training | Phase::Finishing) {
            return false;
        }
        if values != expected {
            let what = format!("tells {values} values of the {expected} that are witnessed");
            self.misbehaves(now, member, &what);
        }
        values == expected
    }

    /// The first step that `worker` reports with `loss` without having told what it contributed. A worker's stream carries that
    /// before the report, so it keeps silent by intent; but for steps that a lost worker contributed to in its place.
    pub(super) fn untold(&self, worker: u32, step: u64, loss: &NodeLoss) -> Option<u64> {
        self.witness.as_ref()?;
        let is_moved = self.leases.iter().any(|l| loss.node.covers(&l.node) && l.since > FIRST_EPOCH);
        let first = self.progress.owed(loss.node).max(self.begins(worker, loss.node, step));
        (first..=step).find(|at| {
            let lost = is_moved && *at < self.testified.moved && (*at < step || loss.examples == 0);
            !lost && !self.testified.told.contains(&(*at, worker, loss.node))
        })
    }

    /// A step is complete. Whoever reported it told before what it contributed ([`untold`](SchedulerCore::untold)), so what is
    /// not told by now never will be.
    pub(super) fn check_witness(&mut self) {
        let completed = self.progress.completed();
        self.testified.told.retain(|(step, _, _)| *step >= completed);
        if self.witness.as_ref().is_some_and(|(_, witness)| witness.version() < completed) {
            self.heed(Heard::Lost(format!(
                "step {completed} is complete, and a worker that was lost has not told what it contributed"
            )));
        }
    }

    pub(super) fn heed(&mut self, heard: Heard) {
        match heard {
            Heard::Fine => {}
            Heard::Wrong(finding) => {
                self.witness = None;
                let reason = finding.to_string();
                self.effects.push_back(Effect::Finding(finding));
                self.fail(reason);
            }
            // Servers to which the same was contributed say so, and end the run.
            Heard::Diverged(reason) | Heard::Lost(reason) => {
                self.witness = None;
                self.effects
                    .push_back(Effect::Notice(format!("no update is witnessed any longer: {reason}")));
            }
        }
    }
}

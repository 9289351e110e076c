//! What operators may do to a run, and what they are told of it.
//!
//! 1. Every command is answered with what was done, or with why nothing was.
//! 2. A paused run begins no step beyond those that were leased before, counts as no stall, and can be stopped.
//! 3. Pausing changes no bit: which steps are begun when is all that differs.

use super::SchedulerCore;
use crate::audit::printable;
use crate::message::{LeaseExtended, Load, Member, MemberRole, NodeStatus, Phase, StatusReport, Timeline};
use crate::scheduler::core::io::{Command, Effect, ToMember};
use crate::time::Time;

/// Characters of what a node waits for, in a report.
const MAX_WAITING: usize = 80;

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// How the run is doing; what only the shell knows, and the nodes, are left to it.
    #[must_use]
    pub fn report(&self) -> StatusReport {
        let done = self.progress.completed();
        StatusReport {
            phase: self.phase,
            steps_done: done,
            steps: self.steps(),
            epoch: self.plan.step(done.saturating_sub(1)).epoch,
            epochs: self.job.epochs,
            loss: self.progress.last_loss,
            evaluated: self.evaluations.latest(),
            samples_per_second: if self.paused { 0.0 } else { self.progress.rate },
            stalled: self.stalled.clone(),
            paused: self.paused,
            stopping: self.stop_at.is_some(),
            membership_epoch: self.epoch,
            until: self.until,
            workers_lost: self.workers_lost,
            workers_wanted: self.wanted(),
            joins_refused: self.joins_refused,
            operators: 0,
            load: Load::default(),
            nodes: Vec::new(),
            timeline: None,
            outcome: self.outcome.clone(),
        }
    }

    /// When one of the last complete steps was worked on.
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        self.timelines.shown().cloned()
    }

    /// Steps completed.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.progress.completed()
    }

    /// The membership's epoch: how often members and leases were named.
    #[must_use]
    pub fn membership_epoch(&self) -> u64 {
        self.epoch
    }

    /// Every member, as it was last heard.
    #[must_use]
    pub fn nodes(&self, now: Time) -> Vec<NodeStatus> {
        self.members
            .iter()
            .map(|(member, joined)| {
                let is_worker = member.role == MemberRole::Worker;
                let held = self
                    .leases
                    .iter()
                    .filter(|l| is_worker && l.worker == member.index && l.to_step.is_none());
                let said = joined.said.as_ref();
                let waiting = said.and_then(|s| s.waiting.as_ref());
                NodeStatus {
                    member: *member,
                    incarnation: joined.incarnation,
                    heard_ms: now.since(joined.heard).as_millis() as u64,
                    step: said.map_or(0, |s| s.step),
                    shards: held.map(|l| l.node.leaves).sum(),
                    waiting: waiting.map(|w| {
                        printable(&format!("{} after step {}", self.describe(w), w.step), MAX_WAITING)
                    }),
                    load: said.map_or_else(Load::default, |s| s.load),
                }
            })
            .collect()
    }

    pub(super) fn command(&mut self, now: Time, connection: C, request: u64, command: Command) {
        let result = match command {
            Command::Pause => self.pause(),
            Command::Resume => self.resume(now),
            Command::Stop => self.stop(),
            Command::Scale { workers } => self.scale(workers),
            Command::Ended { member, exit } => Ok(self.ended(now, member, &exit)),
        };
        self.effects.push_back(Effect::Answer { connection, request, result });
    }

    fn pause(&mut self) -> Result<String, String> {
        if let Some(at) = self.stop_at {
            return Err(format!("the run is stopping after step {at}"));
        }
        let until = match self.phase {
            Phase::Finishing | Phase::Over => {
                return Err("training is over; there is nothing to pause".into());
            }
            Phase::Forming => 0,
            Phase::Training => self.until,
        };
        let text = match (self.paused, until) {
            (true, _) => return Ok("the run is paused already".into()),
            (false, until) if until >= self.steps() => {
                "paused, but every step that is left was leased already, and ends".to_owned()
            }
            (false, 0) => "paused: no step is begun until the run is resumed".to_owned(),
            (false, until) => {
                format!("paused: what is under way ends with step {until}, and no other is begun")
            }
        };
        self.paused = true;
        self.effects.push_back(Effect::Notice(text.clone()));
        Ok(text)
    }

    fn resume(&mut self, now: Time) -> Result<String, String> {
        if self.outcome.is_some() {
            return Err("the run is over".into());
        }
        if !self.paused {
            return Ok("the run was not paused".into());
        }
        self.paused = false;
        self.last_progress = now;
        if self.progress.completed() >= self.until {
            self.progress.rest(now);
        }
        let text = format!("resumed after step {}", self.progress.completed());
        self.effects.push_back(Effect::Notice(text.clone()));
        self.extend();
        Ok(text)
    }

    /// Lets workers begin what the horizon allows, if that has grown.
    pub(super) fn extend(&mut self) {
        // Before the first epoch, the horizon is set when the job forms.
        if self.epoch == 0 || self.horizon() <= self.until {
            return;
        }
        self.until = self.horizon();
        // Workers that have not been told of an epoch yet learn the horizon with it.
        if self.phase == Phase::Training {
            let extended = LeaseExtended { epoch: self.workers_told, until: self.until };
            self.send_all(MemberRole::Worker, &ToMember::Extended(extended));
        }
    }

    fn stop(&mut self) -> Result<String, String> {
        if self.outcome.is_some() {
            return Err("the run is over".into());
        }
        if let Some(at) = self.stop_at {
            return Ok(format!("the run is stopping after step {at} already"));
        }
        match self.phase {
            Phase::Forming => {
                self.fail("stopped before training began".into());
                Ok("stopped before training began".into())
            }
            Phase::Training => {
                self.paused = false;
                self.stop_at = Some(self.until);
                let text = format!("stopping after step {}", self.until);
                self.effects.push_back(Effect::Notice(text.clone()));
                // A paused run may have no step left to wait for.
                if self.progress.completed() >= self.steps() {
                    self.end();
                }
                Ok(text)
            }
            Phase::Finishing | Phase::Over => Ok("training is over; the model is being finished".into()),
        }
    }

    fn ended(&mut self, now: Time, member: Member, exit: &str) -> String {
        let text = format!("{member} counts as lost");
        if self.phase == Phase::Forming && self.epoch == 0 {
            self.fail(format!("{member} ended before training began ({exit})"));
        }
        self.lose(now, member, exit);
        text
    }
}

//! Workers that die are started again, and those that an operator wants are started: see [`crate::launch::budget`].

use std::time::Instant;

use testudo_actors::message::{Member, MemberRole, Phase};
use testudo_transport::Role;

use super::Running;
use crate::error::Failure;
use crate::launch::budget::{Again, WINDOW};

impl Running<'_> {
    /// When a dead worker is started again, if it is.
    pub(super) fn plan_restart(&mut self, member: Member) -> Result<(), Failure> {
        let unwanted = member.index >= self.wanted;
        if self.restarts == 0 || self.stopping || unwanted || self.phase == Phase::Over {
            return Ok(());
        }
        let now = Instant::now();
        let minutes = WINDOW.as_secs() / 60;
        match self.budgets.entry(member.index).or_default().take(self.restarts, now) {
            Some(Again { number, wait }) => {
                self.due.insert(member.index, now + wait);
                self.watcher.notice(&format!(
                    "{member} is started again in {:.2} s (restart {number} of {} within {minutes} minutes)",
                    wait.as_secs_f64(),
                    self.restarts
                ));
                Ok(())
            }
            None => {
                let what = format!(
                    "{member} died more than {} times within {minutes} minutes (cluster.worker_restarts) and is not started again",
                    self.restarts
                );
                // Who is not started cannot come back.
                if self.due.is_empty() && !self.nodes.any_runs(Role::Worker) {
                    let last = self.deaths.pop().map(|(_, failure)| failure.message).unwrap_or_default();
                    return Err(Failure::failed(format!("{what}, and no worker is left\n{last}")));
                }
                self.watcher.notice(&what);
                Ok(())
            }
        }
    }

    /// Starts the workers that an operator wants and that do not run; the scheduler dismisses those it wants no longer.
    pub(super) async fn scale(&mut self, wanted: u32) {
        if wanted == self.wanted {
            return;
        }
        self.wanted = wanted;
        self.welcome.clear();
        if self.is_over() {
            return;
        }
        for worker in 0..wanted {
            if self.nodes.runs(Role::Worker, worker) || self.due.contains_key(&worker) {
                continue;
            }
            self.watcher.notice(&format!("worker/{worker} is started: {wanted} workers are wanted"));
            self.start_again(worker).await;
        }
    }

    /// Starts a worker that left in order and is wanted all the same: once for each change of how many are wanted, and beyond that as one
    /// that dies, since it leaves for a reason of its own.
    pub(super) async fn start_who_left(&mut self, worker: u32) -> Result<(), Failure> {
        self.due.remove(&worker);
        if self.is_over() || self.stopping || worker >= self.wanted {
            return Ok(());
        }
        self.watcher.notice(&format!("worker/{worker} has left in order, and is wanted"));
        if self.welcome.insert(worker) {
            self.start_again(worker).await;
            return Ok(());
        }
        self.plan_restart(Member { role: MemberRole::Worker, index: worker })
    }

    pub(super) async fn start_again(&mut self, worker: u32) {
        self.due.remove(&worker);
        if self.stopping || worker >= self.wanted || self.phase == Phase::Over {
            return;
        }
        let started = match self.staff.hire(worker) {
            Ok(()) => self.nodes.start_again(Role::Worker, worker, self.scheduler).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = started {
            self.watcher.notice(&format!("worker/{worker} is not started again: {}", failure.message));
        }
    }
}

/// Until the worker's restart is due; for ever without one.
pub(super) async fn wait_for(due: Option<(u32, Instant)>) -> u32 {
    match due {
        Some((worker, at)) => {
            tokio::time::sleep_until(at.into()).await;
            worker
        }
        None => std::future::pending().await,
    }
}

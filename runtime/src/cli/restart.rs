//! A run whose server or scheduler has died goes on from its newest checkpoint, by itself.
//!
//! 1. What goes on is what `testudo run --resume` would go on with, found in the same way: the newest whole checkpoint, after the audit
//!    log and every signature have been checked. Without one the run ends, as it does beyond its budget (`cluster.restarts`).
//! 2. The failure is shown, and that the run goes on.

use std::time::{Duration, Instant};

use testudo_actors::JobSpec;

use super::resume;
use crate::checkpoint::keys::Identities;
use crate::error::{Failure, Status};
use crate::launch::budget::{Again, Budget, WINDOW};
use crate::run::Watcher;
use crate::rundir::RunDir;

/// What is left of a run's restarts.
pub(super) struct Restarts<'a> {
    run_dir: &'a RunDir,
    /// How many there may be within [`WINDOW`].
    most: u32,
    /// What opens the checkpoint, if not the run's own key.
    opening: Option<Identities>,
    budget: Budget,
}

impl<'a> Restarts<'a> {
    pub(super) fn new(run_dir: &'a RunDir, most: u32, opening: Option<Identities>) -> Restarts<'a> {
        Restarts { run_dir, most, opening, budget: Budget::default() }
    }

    /// The job that goes on after `failure`, and how long to wait first.
    ///
    /// # Errors
    /// The failure, if nothing goes on; with the reason, where that is not the operator's wish.
    pub(super) fn go_on(
        &mut self,
        failure: Failure,
        job: &JobSpec,
        watcher: &mut dyn Watcher,
    ) -> Result<(JobSpec, Duration), Failure> {
        if failure.status != Status::Died || self.most == 0 {
            return Err(failure);
        }
        let minutes = WINDOW.as_secs() / 60;
        let ends = |failure: Failure, why: String| Failure {
            message: format!("{}\nthe run does not go on by itself: {why}", failure.message),
            ..failure
        };
        let Some(Again { number, wait }) = self.budget.take(self.most, Instant::now()) else {
            let why = format!("it did {} times within {minutes} minutes (cluster.restarts)", self.most);
            return Err(ends(failure, why));
        };
        let mut next = JobSpec { resume: None, ..job.clone() };
        let found = resume::check_audit_log(self.run_dir, None, watcher)
            .and_then(|()| resume::from(self.run_dir, &next, None, self.opening.as_ref()));
        let checkpoint = match found {
            Ok(checkpoint) => checkpoint,
            Err(why) => return Err(ends(failure, why.message)),
        };
        next.resume = Some(checkpoint);
        watcher.notice(&failure.message);
        watcher.notice(&format!(
            "the run goes on from its newest checkpoint in {:.2} s (restart {number} of {} within {minutes} minutes)",
            wait.as_secs_f64(),
            self.most
        ));
        if let Err(why) = resume::make_ready(self.run_dir, &checkpoint, &next, watcher) {
            return Err(ends(failure, why.message));
        }
        Ok((next, wait))
    }
}

//! A run whose server or scheduler has died goes on from its newest checkpoint, by itself.
//!
//! 1. It goes on from the newest whole checkpoint whose parts are undamaged, after the audit log and every signature have been checked,
//!    and only from one that the log names, or whose signer it does. Without one the run ends, as it does beyond its budget
//!    (`cluster.restarts`).
//! 2. The failure is shown, and that the run goes on.
//! 3. Nodes that do not come up when it goes on count as another death. At the run's first start they end it.

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
    /// Whether it has gone on by itself.
    gone_on: bool,
}

impl<'a> Restarts<'a> {
    pub(super) fn new(run_dir: &'a RunDir, most: u32, opening: Option<Identities>) -> Restarts<'a> {
        Restarts { run_dir, most, opening, budget: Budget::default(), gone_on: false }
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
        if !is_survived(failure.status, self.gone_on) || self.most == 0 {
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
        let checked = resume::check_audit_log(self.run_dir, None, &[], watcher);
        let found = checked
            .and_then(|()| resume::newest_vouched_for(self.run_dir, &next, self.opening.as_ref(), watcher));
        let checkpoint = match found {
            Ok(checkpoint) => checkpoint,
            Err(why) => return Err(ends(failure, why.message)),
        };
        next.resume = Some(checkpoint);
        watcher.notice(&failure.message);
        watcher.notice(&format!(
            "the run goes on from its newest checkpoint in {:.2} s (restart {number} of {} within {minutes} minutes), with {} workers \
             as its cluster file says, whatever `testudo scale` has asked for",
            wait.as_secs_f64(),
            self.most,
            next.workers
        ));
        if let Err(why) = resume::make_ready(self.run_dir, &checkpoint, &next, watcher) {
            return Err(ends(failure, why.message));
        }
        self.gone_on = true;
        Ok((next, wait))
    }
}

/// Whether a run may go on after a failure; `gone_on` says that it has done so before.
fn is_survived(status: Status, gone_on: bool) -> bool {
    match status {
        Status::Died => true,
        Status::NotUp => gone_on,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;

    /// Invariant 3.
    #[test]
    fn a_start_that_fails_is_a_death_once_the_run_has_gone_on() {
        let not_up = Failure::failed("not up").not_up().status;
        assert_eq!([false, true].map(|gone_on| is_survived(not_up, gone_on)), [false, true]);
        assert_eq!([false, true].map(|gone_on| is_survived(Status::Died, gone_on)), [true, true]);
        let wrong = Failure::misconfigured("wrong").not_up().status;
        assert_eq!((wrong, is_survived(wrong, true)), (Status::Misconfigured, false));
    }
}

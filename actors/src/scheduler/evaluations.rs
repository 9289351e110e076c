//! Evaluation between steps: when, and whether training goes on after it. Pure.
//!
//! 1. Every `every_steps` steps, no step is begun until the version is evaluated: what is found belongs to that version, and
//!    has the same bits for any number of workers.
//! 2. Whether training stops follows from the evaluations alone. What they have come to joins the checkpoint, and a run that
//!    goes on from a version that was to be evaluated evaluates it again, so it stops where an unbroken one does.

use crate::job::{Best, EarlyStopping, JobSpec};
use crate::message::Evaluated;
use crate::scheduler::tasks::Tasks;

/// What an evaluation decided.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    GoOn,
    /// Training stops here, for this reason.
    Stop(String),
}

/// Follows evaluations between steps.
#[derive(Debug)]
pub(super) struct Evaluations {
    every_steps: u64,
    stopping: Option<EarlyStopping>,
    /// The version to be evaluated next; never reached if there are no evaluations.
    next: u64,
    under_way: Option<Tasks>,
    latest: Option<Evaluated>,
    best: Option<Best>,
    /// The version that was judged last, and what was best before that.
    before: Option<(u64, Option<Best>)>,
}

impl Evaluations {
    pub(super) fn new(job: &JobSpec) -> Evaluations {
        let every_steps = job.evaluation.every_steps;
        let first = job.first_step().max(1);
        Evaluations {
            every_steps,
            stopping: job.evaluation.early_stopping,
            next: first.checked_next_multiple_of(every_steps).unwrap_or(u64::MAX),
            under_way: None,
            latest: None,
            best: job.resume.as_ref().and_then(|resume| resume.best),
            before: None,
        }
    }

    /// No step from this one on may begin before it is evaluated (invariant 1).
    pub(super) fn horizon(&self) -> u64 {
        self.next
    }

    /// Begins if that version is to be evaluated; whether it does.
    pub(super) fn begin(&mut self, completed: u64, job: &JobSpec) -> bool {
        let due = completed == self.next && self.under_way.is_none();
        if due {
            self.under_way = Some(Tasks::evaluation(completed, job));
        }
        due
    }

    /// What is left to do of the evaluation under way.
    pub(super) fn tasks(&mut self) -> Option<&mut Tasks> {
        self.under_way.as_mut()
    }

    /// The same, to look at.
    pub(super) fn under_way(&self) -> Option<&Tasks> {
        self.under_way.as_ref()
    }

    /// Training is over: what is under way begins anew with the end.
    pub(super) fn give_up(&mut self) {
        self.under_way = None;
    }

    /// What was found last.
    pub(super) fn latest(&self) -> Option<Evaluated> {
        self.latest
    }

    /// The last version is evaluated with the end of the run.
    pub(super) fn last(&mut self, found: Evaluated) {
        self.latest = Some(found);
    }

    /// The best evaluation before that of `version`, for its checkpoint: whoever goes on from there evaluates it again.
    pub(super) fn best_before(&self, version: u64) -> Option<Best> {
        match self.before {
            Some((judged, before)) if judged == version => before,
            _ => self.best,
        }
    }

    /// What the evaluation under way has found, once it is complete, and what that decides.
    pub(super) fn complete(&mut self) -> Option<(Evaluated, Verdict)> {
        let found = self.under_way.as_ref()?.evaluation_result()?;
        self.under_way = None;
        self.next = self.next.saturating_add(self.every_steps);
        self.latest = Some(found);
        Some((found, self.judge(found)))
    }

    /// Prechelt, "Early stopping, but when?", 1998: stop after so many evaluations in a row without a better loss.
    fn judge(&mut self, found: Evaluated) -> Verdict {
        let Some(EarlyStopping { patience, min_improvement }) = self.stopping else { return Verdict::GoOn };
        self.before = Some((found.step, self.best));
        let best = match self.best {
            // What is no number is no better than anything.
            Some(best) if found.loss.is_nan() || found.loss >= best.loss - min_improvement => {
                Best { evaluations_since: best.evaluations_since.saturating_add(1), ..best }
            }
            None if !found.loss.is_finite() => return Verdict::GoOn,
            _ => Best { loss: found.loss, step: found.step, evaluations_since: 0 },
        };
        self.best = Some(best);
        if best.evaluations_since < patience {
            return Verdict::GoOn;
        }
        Verdict::Stop(format!(
            "stopping early, after step {}: no better test loss in {patience} evaluations than {:.4} after step {}",
            found.step, best.loss, best.step
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations(patience: u32, min_improvement: f64) -> Evaluations {
        Evaluations {
            every_steps: 10,
            stopping: Some(EarlyStopping { patience, min_improvement }),
            next: 10,
            under_way: None,
            latest: None,
            best: None,
            before: None,
        }
    }

    fn stopped_at(mut evaluations: Evaluations, losses: &[f64]) -> Option<usize> {
        let found =
            |(at, loss): (usize, &f64)| Evaluated { step: 10 * (at as u64 + 1), loss: *loss, accuracy: 0.5 };
        losses.iter().enumerate().map(found).position(|found| evaluations.judge(found) != Verdict::GoOn)
    }

    /// Invariant 2, on losses: patience counts evaluations in a row, each below the best by the least improvement or not.
    #[test]
    fn patience_ends_after_evaluations_in_a_row_without_a_better_loss() {
        let losses = [0.9, 0.8, 0.85, 0.79, 0.79, 0.80, 0.81, 0.5];
        assert_eq!(stopped_at(evaluations(1, 0.0), &losses), Some(2));
        assert_eq!(stopped_at(evaluations(2, 0.0), &losses), Some(5));
        assert_eq!(stopped_at(evaluations(3, 0.0), &losses), Some(6));
        assert_eq!(stopped_at(evaluations(4, 0.0), &losses), None, "the last one is better");
        assert_eq!(stopped_at(evaluations(3, 0.05), &losses), Some(4), "0.79 is hardly better than 0.8");
    }

    /// Invariant 2: a checkpoint of a version that was judged does not know of that, so that it can be judged once more.
    #[test]
    fn what_is_evaluated_again_counts_once() {
        let mut evaluations = evaluations(2, 0.0);
        let found = |step, loss| Evaluated { step, loss, accuracy: 0.5 };
        for (step, loss) in [(10, 0.5), (20, 0.6)] {
            let _ = evaluations.judge(found(step, loss));
        }
        let best = evaluations.best_before(20).unwrap();
        assert_eq!((best.step, best.evaluations_since), (10, 0));
        let mut resumed = Evaluations { best: Some(best), ..self::evaluations(2, 0.0) };
        assert_eq!(resumed.judge(found(20, 0.6)), Verdict::GoOn);
        assert_ne!(resumed.judge(found(30, 0.6)), Verdict::GoOn);
        assert_eq!(evaluations.best_before(21).unwrap().evaluations_since, 1);
    }

    /// A sum of losses may overflow: a checkpoint's manifest never states what JSON cannot hold.
    #[test]
    fn a_loss_that_is_no_number_is_never_the_best() {
        let mut evaluations = evaluations(3, 0.0);
        let found = |step, loss| Evaluated { step, loss, accuracy: 0.5 };
        assert_eq!(evaluations.judge(found(10, f64::INFINITY)), Verdict::GoOn);
        assert_eq!(evaluations.best_before(11), None);
        for (step, loss) in [(20, 0.5), (30, f64::NAN), (40, f64::INFINITY)] {
            assert_eq!(evaluations.judge(found(step, loss)), Verdict::GoOn);
            assert_eq!(evaluations.best_before(step + 1).unwrap().loss, 0.5);
        }
        assert_ne!(evaluations.judge(found(50, 0.7)), Verdict::GoOn);
    }

    #[test]
    fn without_patience_training_goes_on() {
        let mut evaluations = Evaluations { stopping: None, ..evaluations(1, 0.0) };
        for loss in [0.1, 0.2, 0.3] {
            assert_eq!(evaluations.judge(Evaluated { step: 10, loss, accuracy: 0.5 }), Verdict::GoOn);
        }
        assert_eq!(evaluations.best_before(10), None);
    }
}

//! What a run tells as it goes, for whoever looks.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::SystemTime;

use testudo_actors::message::Evaluated;
use testudo_actors::scheduler::{Observer, StepSummary, TensorSpread};

use crate::report::tensorboard::Events;

/// Reports that wait to be taken at most.
pub(super) const KEPT: usize = 1024;

/// What has happened in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A step is complete.
    Step(StepSummary),
    /// The test set is evaluated between steps.
    Evaluated(Evaluated),
    /// So many reports came here that nobody took in time.
    Missed(u64),
}

/// What waits to be taken.
#[derive(Debug, Default)]
struct Waiting {
    reports: VecDeque<Report>,
    missed: u64,
    over: bool,
}

/// The way from a scheduler to whoever looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<(Mutex<Waiting>, Condvar)>);

impl Board {
    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    pub(super) fn put(&self, report: Report) {
        self.change(|waiting| {
            if waiting.reports.len() >= KEPT {
                waiting.reports.pop_front();
                waiting.missed += 1;
            }
            waiting.reports.push_back(report);
        });
    }

    /// Nothing comes after this.
    pub(super) fn end(&self) {
        self.change(|waiting| waiting.over = true);
    }

    fn take(&self) -> Option<Report> {
        let mut waiting = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if waiting.missed > 0 {
                return Some(Report::Missed(std::mem::take(&mut waiting.missed)));
            }
            if let Some(report) = waiting.reports.pop_front() {
                return Some(report);
            }
            if waiting.over {
                return None;
            }
            waiting = self.0.1.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The reports of a run, as they come; ends with the run. Each report is given once, to whichever iterator asks first.
#[derive(Clone, Debug)]
pub struct Reports(pub(super) Board);

impl Iterator for Reports {
    type Item = Report;

    /// Waits for the next one.
    fn next(&mut self) -> Option<Report> {
        self.0.take()
    }
}

/// Puts what the scheduler observes on the board, and into an event file for TensorBoard if there is one.
pub(super) struct Reporting {
    pub(super) board: Board,
    pub(super) events: Option<Events>,
}

impl Observer for Reporting {
    fn step(&mut self, summary: &StepSummary) {
        if let Some(events) = &mut self.events {
            events.step(SystemTime::now(), &summary.into());
        }
        self.board.put(Report::Step(summary.clone()));
    }

    fn evaluated(&mut self, found: &Evaluated) {
        if let Some(events) = &mut self.events {
            events.evaluated(SystemTime::now(), found);
        }
        self.board.put(Report::Evaluated(*found));
    }

    fn histograms(&mut self, version: u64, tensors: &[TensorSpread]) {
        if let Some(events) = &mut self.events {
            events.spread(SystemTime::now(), version, tensors);
        }
    }
}

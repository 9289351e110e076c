//! `testudo top`: a run on a terminal, as its scheduler reports it.
//!
//! Invariants:
//! 1. What is shown is a function of [`Top`] and the terminal's size ([`lines`]); keys and reports change [`Top`] and nothing else.
//! 2. What peers say moves no cursor and hides nothing: texts are shown without control characters and without those that have no
//!    width or turn the direction of writing.
//! 3. What does not fit is said to be left out, in place of being cut off.
//! 4. However long it is looked at, what is kept is bounded.
//! 5. What changes the run takes two keys: the first asks, the same again does it, and any other takes the question back.

mod nodes;
mod screen;
mod series;

use testudo_actors::message::{Outcome, StatusReport};
use testudo_actors::operator::Answered;

use super::status::state;
pub use nodes::Sort;
pub use screen::lines;
pub use series::Series;

/// How fast the steps' rate forgets: a report counts for this share of it.
const RATE_SHARE: f64 = 0.2;

/// What a person presses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Leave.
    Quit,
    /// Pause the run, or let it go on: at the second time.
    Pause,
    /// Sort nodes by the next column.
    Sort,
    /// Show what keys and columns are, or the run again.
    Help,
    /// Look at nodes further up.
    Up,
    /// Look at nodes further down.
    Down,
}

/// What a key asks for beyond the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Leave.
    Quit,
    /// The scheduler is to pause the run.
    Pause,
    /// The scheduler is to let the run go on.
    Resume,
}

/// What is known of a run, and how it is looked at.
#[derive(Clone, Debug)]
pub struct Top {
    job: String,
    report: Option<StatusReport>,
    /// By report: the loss, and training examples a second.
    loss: Series,
    throughput: Series,
    /// Smoothed, once there were two reports.
    steps_per_second: Option<f64>,
    /// When the last report came, in seconds since this was begun, and how many steps were complete.
    last: Option<(f64, u64)>,
    /// What was refused when this was begun.
    refused_before: u64,
    sort: Sort,
    /// Nodes that are scrolled past.
    skipped: usize,
    is_help: bool,
    /// What a second press of the same key does.
    asked: Option<Wish>,
    /// What became of the last command, or what was asked.
    said: Option<Answered>,
    /// Why no more reports come.
    lost: Option<String>,
}

impl Top {
    /// Looks at the run of `job`, of which nothing is known yet.
    #[must_use]
    pub fn new(job: &str) -> Top {
        Top {
            job: job.to_owned(),
            report: None,
            loss: Series::default(),
            throughput: Series::default(),
            steps_per_second: None,
            last: None,
            refused_before: 0,
            sort: Sort::Node,
            skipped: 0,
            is_help: false,
            asked: None,
            said: None,
            lost: None,
        }
    }

    /// A report came, `now` seconds after this was begun.
    pub fn told(&mut self, now: f64, report: StatusReport) {
        let steps = report.steps_done;
        match self.last {
            None => self.refused_before = nodes::refused(&report),
            Some((then, before)) if now > then => {
                let rate = steps.saturating_sub(before) as f64 / (now - then);
                let smooth = |before: f64| before + RATE_SHARE * (rate - before);
                self.steps_per_second = Some(self.steps_per_second.map_or(rate, smooth));
            }
            Some(_) => {}
        }
        self.last = Some((now, steps));
        if report.outcome.is_none() {
            self.loss.push(report.loss.unwrap_or(f64::NAN));
            self.throughput.push(report.samples_per_second);
        }
        self.skipped = self.skipped.min(report.nodes.len());
        self.report = Some(report);
    }

    /// The scheduler has answered a command.
    pub fn answered(&mut self, answer: Answered) {
        self.said = Some(answer);
    }

    /// No more reports come.
    pub fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// The terminal is of `size`: what is scrolled beyond the last node there is scrolled back.
    pub fn fit(&mut self, size: (u16, u16)) {
        self.skipped = self.skipped.min(screen::most_skipped(self, size));
    }

    /// How the run ended, if it has.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.report.as_ref()?.outcome.as_ref()
    }

    /// Whether there is nothing more to wait for.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lost.is_some() || self.outcome().is_some()
    }

    /// A key was pressed.
    pub fn press(&mut self, key: Key) -> Option<Wish> {
        let asked = self.asked.take();
        match key {
            Key::Quit => return Some(Wish::Quit),
            Key::Help => self.is_help = !self.is_help,
            // What is behind the page of help is left alone.
            _ if self.is_help => {}
            Key::Sort => self.sort = self.sort.next(),
            Key::Up => self.skipped = self.skipped.saturating_sub(1),
            Key::Down => {
                let nodes = self.report.as_ref().map_or(0, |report| report.nodes.len());
                self.skipped = (self.skipped + 1).min(nodes);
            }
            Key::Pause if self.is_over() => {
                self.said = Some(Err("the run is over: there is nothing to pause".into()));
            }
            Key::Pause => {
                let is_paused = self.report.as_ref()?.paused;
                let (wish, said) = match is_paused {
                    true => (Wish::Resume, "asked the scheduler to go on"),
                    false => (Wish::Pause, "asked the scheduler to pause"),
                };
                if asked != Some(wish) {
                    self.asked = Some(wish);
                    return None;
                }
                self.said = Some(Ok(said.into()));
                return Some(wish);
            }
        }
        None
    }

    /// The phase in one word.
    fn state(&self) -> &'static str {
        match &self.report {
            _ if self.lost.is_some() && self.outcome().is_none() => "lost",
            Some(report) => state(report),
            None => "asking",
        }
    }

    /// Seconds until the last step, at the rate that was seen.
    fn seconds_left(&self) -> Option<f64> {
        let report = self.report.as_ref().filter(|report| !report.paused && !self.is_over())?;
        let rate = self.steps_per_second.filter(|rate| *rate > 0.0)?;
        Some(report.steps.saturating_sub(report.steps_done) as f64 / rate)
    }
}

#[cfg(test)]
mod tests;

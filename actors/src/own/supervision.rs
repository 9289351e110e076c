//! What becomes of an actor that fails: a decision without a clock of its own.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// What is done about a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The actor is dropped, and another is made in its place; mail that waits is the new one's.
    #[default]
    Restart,
    /// It goes on as it is, without what it failed on. One that panicked is restarted, since nobody knows what is left of it.
    Resume,
    /// It stops.
    Stop,
}

/// How failures are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supervision {
    /// What is done.
    pub strategy: Strategy,
    /// Failures that are met so within [`within`](Supervision::within); the next one stops the actor.
    pub budget: u32,
    /// The time that the budget is for.
    pub within: Duration,
}

impl Default for Supervision {
    /// Three restarts within a minute.
    fn default() -> Supervision {
        Supervision { strategy: Strategy::Restart, budget: 3, within: Duration::from_secs(60) }
    }
}

/// How an actor failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It said so.
    Said,
    /// It panicked.
    Panicked,
}

/// Keeps account of failures.
#[derive(Debug)]
pub(super) struct Supervisor {
    how: Supervision,
    failures: VecDeque<Time>,
}

impl Supervisor {
    pub(super) fn new(how: Supervision) -> Supervisor {
        Supervisor { how, failures: VecDeque::new() }
    }

    /// What is to be done now.
    pub(super) fn failed(&mut self, now: Time, failure: Failure) -> Strategy {
        let within = self.how.within;
        self.failures.retain(|then| now.since(*then) < within);
        if self.failures.len() >= self.how.budget as usize {
            return Strategy::Stop;
        }
        self.failures.push_back(now);
        match (self.how.strategy, failure) {
            (Strategy::Resume, Failure::Panicked) => Strategy::Restart,
            (strategy, _) => strategy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_budget_is_spent_and_comes_back_with_time() {
        let how = Supervision { strategy: Strategy::Restart, budget: 2, within: Duration::from_secs(10) };
        let mut supervisor = Supervisor::new(how);
        let mut failed = |seconds| supervisor.failed(at(seconds), Failure::Said);
        assert_eq!([failed(0), failed(5)], [Strategy::Restart; 2]);
        assert_eq!(failed(9), Strategy::Stop);
        assert_eq!(failed(10), Strategy::Restart, "the first is forgotten");
        assert_eq!(failed(11), Strategy::Stop);
        let mut none = Supervisor::new(Supervision { budget: 0, ..how });
        assert_eq!(none.failed(at(0), Failure::Said), Strategy::Stop);
    }

    #[test]
    fn what_has_panicked_is_not_resumed() {
        let how = Supervision { strategy: Strategy::Resume, ..Supervision::default() };
        let mut supervisor = Supervisor::new(how);
        assert_eq!(supervisor.failed(at(0), Failure::Said), Strategy::Resume);
        assert_eq!(supervisor.failed(at(0), Failure::Panicked), Strategy::Restart);
        let mut stops = Supervisor::new(Supervision { strategy: Strategy::Stop, ..how });
        assert_eq!(stops.failed(at(0), Failure::Panicked), Strategy::Stop);
    }
}

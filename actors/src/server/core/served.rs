//! When this server worked for a step, as its heartbeats tell it.
//!
//! 1. Of the steps that were completed since the last heartbeat one is told, as [`sampled`](crate::sampled) chooses it.
//! 2. One step is open at a time: no worker contributes to the next before it has every slice's version that this one makes.
//! 3. What is kept is two steps' moments, however many there are.

use crate::message::ServedStep;
use crate::sampled::rank;
use crate::time::Time;

/// A step that has contributions and is not complete.
#[derive(Debug)]
struct Open {
    step: u64,
    first: Time,
    last: Time,
    /// Slices without the next version.
    left: usize,
}

/// Follows the steps.
#[derive(Debug)]
pub(super) struct Served {
    /// Slices of this server.
    slices: usize,
    open: Option<Open>,
    /// The step to tell of: first and last contribution, and its end.
    chosen: Option<(u64, [Time; 3])>,
}

impl Served {
    pub(super) fn new(slices: usize) -> Served {
        Served { slices, open: None, chosen: None }
    }

    /// A contribution to `step` that counts has come.
    pub(super) fn came(&mut self, now: Time, step: u64) {
        match &mut self.open {
            Some(open) if open.step == step => open.last = now,
            Some(open) if open.step > step => {}
            _ => self.open = Some(Open { step, first: now, last: now, left: self.slices }),
        }
    }

    /// A slice has gone to `version`.
    pub(super) fn updated(&mut self, now: Time, version: u64) {
        let Some(open) = self.open.as_mut().filter(|open| open.step.saturating_add(1) == version) else {
            return;
        };
        open.left = open.left.saturating_sub(1);
        if open.left > 0 {
            return;
        }
        let done = (open.step, [open.first, open.last, now]);
        self.open = None;
        if self.chosen.is_none_or(|(step, _)| rank(done.0) >= rank(step)) {
            self.chosen = Some(done);
        }
    }

    /// What a heartbeat says.
    pub(super) fn tell(&mut self, now: Time) -> Option<ServedStep> {
        let (step, moments) = self.chosen.take()?;
        let [first_ago_us, last_ago_us, done_ago_us] = moments.map(|then| now.since(then).as_micros() as u64);
        let said_at_us = now.0.as_micros() as u64;
        Some(ServedStep { step, first_ago_us, last_ago_us, done_ago_us, said_at_us })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::default().after(Duration::from_millis(milliseconds))
    }

    /// Invariants 1 and 2.
    #[test]
    fn one_of_the_steps_since_the_last_heartbeat_is_told() {
        let mut served = Served::new(2);
        assert_eq!(served.tell(at(0)), None);
        // Steps of ten milliseconds: contributions after one and three, updates after five and seven.
        for step in 0..6 {
            let begin = 10 * step;
            served.came(at(begin + 1), step);
            served.came(at(begin + 3), step);
            served.updated(at(begin + 5), step + 1);
            served.came(at(begin + 6), step.saturating_sub(1));
            served.updated(at(begin + 6), step);
            served.updated(at(begin + 7), step + 1);
        }
        served.came(at(61), 6);
        served.updated(at(62), 7);
        // The fourth step, of all six.
        let told = ServedStep {
            step: 3,
            first_ago_us: 39_000,
            last_ago_us: 37_000,
            done_ago_us: 33_000,
            said_at_us: 70_000,
        };
        assert_eq!(served.tell(at(70)), Some(told));
        assert_eq!(served.tell(at(71)), None, "once");
        served.updated(at(75), 7);
        let told = ServedStep {
            step: 6,
            first_ago_us: 19_000,
            last_ago_us: 19_000,
            done_ago_us: 5_000,
            said_at_us: 80_000,
        };
        assert_eq!(served.tell(at(80)), Some(told));
    }
}

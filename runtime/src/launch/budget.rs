//! How often what has died is started again, and when. Pure; time is handed in.
//!
//! 1. At most so many times within [`WINDOW`]: what dies of itself does not take the machine with it.
//! 2. Each time within the window waits twice as long as the one before, from `FIRST` to `LONGEST`: what has just killed a
//!    node may still be there.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Restarts are counted over so long.
pub const WINDOW: Duration = Duration::from_secs(600);

/// Before the first restart.
const FIRST: Duration = Duration::from_millis(250);

/// Before any.
const LONGEST: Duration = Duration::from_secs(30);

/// What is left of one node's restarts, or a whole job's.
#[derive(Debug, Default)]
pub struct Budget {
    taken: VecDeque<Instant>,
}

/// One more start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// Which it is of those within the window, from 1.
    pub number: u32,
    /// How long to wait for it.
    pub wait: Duration,
}

impl Budget {
    /// Takes one of `most`; `None` when that many were taken within the window.
    pub fn take(&mut self, most: u32, now: Instant) -> Option<Again> {
        while self.taken.front().is_some_and(|at| now.duration_since(*at) >= WINDOW) {
            self.taken.pop_front();
        }
        let before = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        if before >= most {
            return None;
        }
        self.taken.push_back(now);
        let wait = FIRST.saturating_mul(1 << before.min(16)).min(LONGEST);
        Some(Again { number: before + 1, wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2.
    #[test]
    fn restarts_are_few_and_further_apart_each_time() {
        let (mut budget, begin) = (Budget::default(), Instant::now());
        let waits: Vec<u128> =
            (0..9).map_while(|_| budget.take(9, begin)).map(|again| again.wait.as_millis()).collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(budget.take(9, begin + WINDOW / 2), None);
        assert_eq!(budget.take(9, begin + WINDOW), Some(Again { number: 1, wait: FIRST }));
        assert_eq!(Budget::default().take(0, begin), None);
    }
}

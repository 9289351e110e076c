//! The shell of an identity's pace: a clock and a lock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::budget::Rate;
use crate::session::Pace;

/// The pace that one identity is heard at, which its connections share.
#[derive(Debug)]
pub(crate) struct Paced {
    since: Instant,
    pace: Mutex<Pace>,
}

impl Paced {
    pub(crate) fn new(streams: Rate) -> Paced {
        Paced { since: Instant::now(), pace: Mutex::new(Pace::new(streams, Duration::ZERO)) }
    }

    /// Waits until the next stream may be taken.
    pub(super) async fn stream_due(&self) {
        loop {
            let wait = self.lock().stream_due(self.since.elapsed());
            if wait.is_zero() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    pub(super) fn stream_taken(&self) {
        self.lock().stream_taken(self.since.elapsed());
    }

    /// How long a message of that kind must wait until it is heard.
    pub(crate) fn message(&self, kind: u8, rate: Rate) -> Duration {
        self.lock().message(self.since.elapsed(), kind, rate)
    }

    /// Whether one more message may be late.
    pub(super) fn late(&self) -> bool {
        self.lock().late(self.since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

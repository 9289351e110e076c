//! The only clock that cores know: a reading handed in by their shell.

use std::time::{Duration, Instant};

/// Time since the shell's start; monotonic. Cores compare readings and never ask for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl Time {
    /// The reading that lies `span` after this one.
    #[must_use]
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(span))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// What a shell reads its [`Time`] from.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The present reading.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(self.0.elapsed())
    }
}

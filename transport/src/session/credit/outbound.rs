//! The sending side: takes credit for each message, in turn, and waits for grants.

use std::sync::Mutex;

use tokio::sync::Notify;

use super::{Grant, Grants, largest_message, lock};
use crate::policy::Class;

#[derive(Debug, Default)]
struct OutLane {
    window: Option<Grant>,
    granted: Grant,
    sent: Grant,
}

impl OutClass {
    fn try_take(&self, bytes: u64) -> Take {
        let mut lane = lock(&self.lane);
        if let Some(window) = lane.window {
            let limit = largest_message(window.bytes);
            if bytes > limit {
                return Take::TooLarge { limit };
            }
        }
        let sent = lane.sent.plus(Grant::one(bytes));
        if !sent.within(lane.granted) {
            return Take::Wait;
        }
        lane.sent = sent;
        Take::Taken
    }
}

/// The turn of one sender of a class to wait for credit.
#[derive(Debug)]
pub struct Turn<'a> {
    class: &'a OutClass,
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Takes credit for a message of `bytes`, waiting for grants. Dropping the future takes nothing.
    ///
    /// # Errors
    /// The largest cost that this peer grants, when `bytes` is more.
    pub async fn take(&self, bytes: u64) -> Result<(), u64> {
        loop {
            let changed = self.class.changed.notified();
            match self.class.try_take(bytes) {
                Take::Taken => return Ok(()),
                Take::TooLarge { limit } => return Err(limit),
                Take::Wait => changed.await,
            }
        }
    }
}

/// What came of asking for credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// The credit is taken; the message may be sent.
    Taken,
    /// Not enough is granted yet.
    Wait,
    /// The message is larger than this peer will ever grant at once.
    TooLarge {
        /// The most that a message may cost, in bytes.
        limit: u64,
    },
}

/// The sending side of a connection's credit.
#[derive(Debug, Default)]
pub struct Outbound {
    control: OutClass,
    data: OutClass,
    opened: Notify,
}

#[derive(Debug, Default)]
struct OutClass {
    lane: Mutex<OutLane>,
    changed: Notify,
    // Held by the sender whose turn it is to wait: tokio's mutex is first come, first served (invariant 4).
    turn: tokio::sync::Mutex<()>,
}

impl Outbound {
    /// Waits for the turn to ask for credit in a class: first come, first served.
    pub async fn turn(&self, class: Class) -> Turn<'_> {
        let class = self.class(class);
        Turn { class, _guard: class.turn.lock().await }
    }

    /// Waits for the peer's first grant.
    pub async fn opened(&self) {
        loop {
            let opened = self.opened.notified();
            if lock(&self.control.lane).window.is_some() {
                return;
            }
            opened.await;
        }
    }

    /// Takes credit for a message of `bytes` if that needs no waiting: neither for grants nor for a turn.
    pub fn take_now(&self, class: Class, bytes: u64) -> Take {
        let class = self.class(class);
        match class.turn.try_lock() {
            Ok(_turn) => class.try_take(bytes),
            Err(_) => Take::Wait,
        }
    }

    /// Takes note of a grant. Returns false when it takes back what was granted before, which no honest peer
    /// does.
    #[must_use]
    pub fn apply(&self, grants: Grants) -> bool {
        let both = [(Class::Control, grants.control), (Class::Data, grants.data)];
        let is_good = both.into_iter().all(|(class, grant)| {
            let class = self.class(class);
            let mut lane = lock(&class.lane);
            if !lane.granted.within(grant) {
                return false;
            }
            lane.window.get_or_insert(grant);
            lane.granted = grant;
            drop(lane);
            class.changed.notify_one();
            true
        });
        self.opened.notify_waiters();
        is_good
    }

    fn class(&self, class: Class) -> &OutClass {
        match class {
            Class::Control => &self.control,
            Class::Data => &self.data,
        }
    }
}

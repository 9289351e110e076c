//! Requests of workers to servers that have no answer yet, counted over the process: how deep the queues are.
//!
//! 1. What is counted is uncounted when it is dropped, whatever became of it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Whose side of a request is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Asked, and not answered.
    Worker,
    /// Heard, and not answered: a push that is not stored, a pull whose version is not there.
    Server,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A gradient is to be taken.
    Push,
    /// Parameters are wanted.
    Pull,
}

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn count(side: Side, method: Method) -> &'static AtomicU64 {
    let [a, b, c, d] = &COUNTS;
    match (side, method) {
        (Side::Worker, Method::Push) => a,
        (Side::Worker, Method::Pull) => b,
        (Side::Server, Method::Push) => c,
        (Side::Server, Method::Pull) => d,
    }
}

/// How many there are in this process now.
#[must_use]
pub fn active(side: Side, method: Method) -> u64 {
    count(side, method).load(Ordering::Relaxed)
}

/// One request, while it lives.
#[derive(Debug)]
pub(crate) struct Active(&'static AtomicU64);

impl Active {
    pub(crate) fn begin(side: Side, method: Method) -> Active {
        let count = count(side, method);
        count.fetch_add(1, Ordering::Relaxed);
        Active(count)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

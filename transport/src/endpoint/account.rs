//! What an endpoint counts. It can be read on when the endpoint is gone, and does not keep it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::admit::{Admission, EndpointStats};
use super::sieve::{Sieve, SieveStats};
use crate::refusals::{Cause, Refusals, Who};

/// What an endpoint counted so far.
pub struct Account {
    admission: Arc<Admission>,
    sieve: Arc<Mutex<Sieve>>,
    /// Datagrams from networks that are not allowed, as far as they are among the refusals.
    not_allowed: AtomicU64,
}

impl Account {
    pub(super) fn new(admission: Arc<Admission>, sieve: Arc<Mutex<Sieve>>) -> Account {
        Account { admission, sieve, not_allowed: AtomicU64::new(0) }
    }

    /// What the endpoint saw so far.
    #[must_use]
    pub fn stats(&self) -> EndpointStats {
        EndpointStats { sieve: self.sieve_stats(), ..self.admission.stats() }
    }

    /// Whom the node refused, and why; whoever is let in and misbehaves is counted there too.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        let refusals = self.admission.refusals();
        // The sieve counts by itself, because it is in the way of every datagram; a source is not proved by one.
        let seen = self.sieve_stats().not_allowed;
        let more = seen.saturating_sub(self.not_allowed.fetch_max(seen, Ordering::Relaxed));
        if more > 0
            && let Some(left_out) = refusals.count_many(Cause::Address, Who::Anyone, more)
        {
            tracing::warn!(datagrams = more, left_out, "dropped: from networks that are not allowed");
        }
        refusals
    }

    fn sieve_stats(&self) -> SieveStats {
        self.sieve.lock().unwrap_or_else(PoisonError::into_inner).stats()
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Account").field(&self.stats()).finish()
    }
}

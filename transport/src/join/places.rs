//! Places for exchanges.
//!
//! 1. At most `total` places are taken, and at most `each` of them by one address (IPv4) or network (IPv6, 64 bits): so one
//!    source alone shuts nobody out.
//! 2. What is remembered are the addresses that hold a place now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::subscriber::subscriber;

/// The places. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub(super) struct Places {
    total: usize,
    each: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One of them, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    source: IpAddr,
}

impl Places {
    pub(super) fn new(total: usize, each: usize) -> Places {
        Places { total, each, taken: Arc::default() }
    }

    /// A place for a newcomer at `address`, if there is one.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let source = subscriber(address);
        let mut taken = self.taken();
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&source).copied().unwrap_or(0));
        if all >= self.total || own >= self.each {
            return None;
        }
        taken.insert(source, own + 1);
        drop(taken);
        Some(Place { places: self.clone(), source })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(own) = taken.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2.
    #[test]
    fn one_source_has_its_share_and_the_others_the_rest() {
        let places = Places::new(5, 2);
        let take = |text: &str| places.take(text.parse().unwrap());
        let first = [take("2001:db8::1"), take("2001:db8::2")].map(Option::unwrap);
        assert!(take("2001:db8::3").is_none(), "the same network");
        let others = [take("10.0.0.1"), take("10.0.0.1"), take("10.0.0.2")].map(Option::unwrap);
        assert!(take("10.0.0.3").is_none(), "all are taken");
        drop(first);
        let last = [take("10.0.0.3"), take("2001:db8::3")].map(Option::unwrap);
        drop((others, last));
        assert!(places.taken().is_empty());
    }
}

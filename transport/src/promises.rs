//! What all peers of a node together may make it hold, and what they do.
//!
//! Credit is a promise: a peer may make this node hold so many bytes, and those that wait for it to read as many more.
//! Promises are counted before a connection begins, so that no number of peers gets more memory than there is.
//!
//! Invariants:
//!
//! 1. The sum of what is promised never exceeds the most there is.
//! 2. A promise is given back when its connection has ended, whatever way it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A node's memory for its peers.
#[derive(Debug)]
pub(crate) struct Promises {
    most: u64,
    promised: AtomicU64,
    held: Arc<AtomicU64>,
}

impl Promises {
    pub(crate) fn new(most: u64) -> Arc<Promises> {
        Arc::new(Promises { most, promised: AtomicU64::new(0), held: Arc::default() })
    }

    /// Promises so many bytes, if there are as many.
    pub(crate) fn promise(self: &Arc<Self>, bytes: u64) -> Option<Promise> {
        let next = |promised: u64| promised.checked_add(bytes).filter(|next| *next <= self.most);
        self.promised.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Promise { promises: Arc::clone(self), bytes })
    }

    /// Counts bytes of messages that arrived and are not released yet.
    pub(crate) fn held(&self) -> &Arc<AtomicU64> {
        &self.held
    }

    /// Bytes promised.
    pub(crate) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }
}

/// Bytes promised to one connection.
#[derive(Debug)]
pub(crate) struct Promise {
    promises: Arc<Promises>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promises.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Invariants 1 and 2.
        #[test]
        fn promises_never_exceed_what_there_is(most in 0u64..1000, steps in prop::collection::vec((any::<bool>(), 0u64..400), 0..100)) {
            let (promises, mut kept) = (Promises::new(most), Vec::new());
            for (gives, bytes) in steps {
                if gives {
                    let before = promises.promised();
                    let promise = promises.promise(bytes);
                    prop_assert_eq!(promise.is_some(), before + bytes <= most);
                    kept.extend(promise);
                } else {
                    kept.pop();
                }
                prop_assert_eq!(promises.promised(), kept.iter().map(|promise| promise.bytes).sum::<u64>());
                prop_assert!(promises.promised() <= most);
            }
            kept.clear();
            prop_assert_eq!(promises.promised(), 0);
            prop_assert!(promises.promise(u64::MAX).is_none() || most == u64::MAX);
        }
    }
}

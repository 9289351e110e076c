//! Credit: how much of each class a peer may have outstanding.
//!
//! Grants are cumulative, like QUIC's MAX_DATA (RFC 9000, section 4.1): each says how many bytes and messages
//! may have been sent since the connection began. The first grant of a class is its window. A message costs
//! its whole frame and one message, from when its first 16 bytes arrive until its payload is dropped.
//!
//! Invariants:
//!
//! 1. A sender never sends what was not granted; nothing is granted before the first grant.
//! 2. Outstanding bytes and messages, as the receiver counts them, never exceed the window.
//! 3. Grants go out in batches of a quarter window, so an idle class always has three quarters of its window
//!    usable; a message larger than that could wait for ever and is refused at once instead.
//! 4. Within a class, senders get credit in the order in which they asked.

mod inbound;
mod outbound;

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::policy::Class;

pub use inbound::{Charge, Inbound};
pub use outbound::{Outbound, Take, Turn};

/// A quarter: see invariant 3.
const BATCH_DIVISOR: u64 = 4;

/// Bytes and messages, both counted since the connection began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grant {
    /// Bytes of whole frames.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
}

impl Grant {
    fn plus(self, other: Grant) -> Grant {
        let bytes = self.bytes.saturating_add(other.bytes);
        Grant { bytes, messages: self.messages.saturating_add(other.messages) }
    }

    fn within(self, limit: Grant) -> bool {
        self.bytes <= limit.bytes && self.messages <= limit.messages
    }

    fn one(bytes: u64) -> Grant {
        Grant { bytes, messages: 1 }
    }
}

/// The body of a credit message: what each class may have sent in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grants {
    /// The control class.
    pub control: Grant,
    /// The data class.
    pub data: Grant,
}

/// A peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{class} credit overrun: a message of {bytes} bytes with {bytes_left} bytes and {messages_left} messages left"
)]
pub struct Overrun {
    /// The class.
    pub class: Class,
    /// What the message costs.
    pub bytes: u64,
    /// What was left.
    pub bytes_left: u64,
    /// What was left.
    pub messages_left: u64,
}

/// The most that one message may cost under a window: see invariant 3.
pub(crate) fn largest_message(window: u64) -> u64 {
    window - window / BATCH_DIVISOR
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every update is a single assignment, so a panicking holder leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::config::CreditConfig;

    fn credit(bytes: u64, messages: u64) -> CreditConfig {
        CreditConfig { bytes, messages }
    }

    fn pair() -> (Arc<Inbound>, Outbound) {
        (Inbound::new(credit(100, 4), credit(1000, 8)), Outbound::default())
    }

    /// Invariant 1.
    #[test]
    fn nothing_is_granted_before_the_first_grant() {
        let (inbound, outbound) = pair();
        assert_eq!(outbound.take_now(Class::Data, 1), Take::Wait);
        assert!(inbound.charge(Class::Data, 1).is_err());
        let first = inbound.take_due().unwrap();
        assert_eq!(first.control, Grant { bytes: 100, messages: 4 });
        assert_eq!(first.data, Grant { bytes: 1000, messages: 8 });
        assert_eq!(inbound.take_due(), None);
        assert!(outbound.apply(first));
        assert_eq!(outbound.take_now(Class::Data, 750), Take::Taken);
        assert!(inbound.charge(Class::Data, 750).is_ok());
    }

    /// Invariant 2.
    #[test]
    fn an_overrun_in_bytes_or_messages_is_found() {
        let (inbound, _) = pair();
        inbound.take_due().unwrap();
        let _held: Vec<Charge> = (0..4).map(|_| inbound.charge(Class::Control, 1).unwrap()).collect();
        let overrun = inbound.charge(Class::Control, 1).unwrap_err();
        assert_eq!((overrun.bytes_left, overrun.messages_left), (96, 0));
        assert!(inbound.charge(Class::Data, 1001).is_err());
        assert!(inbound.charge(Class::Data, u64::MAX).is_err());
        assert!(inbound.charge(Class::Data, 1000).is_ok(), "classes have credit of their own");
    }

    /// Invariant 3.
    #[test]
    fn grants_come_in_quarters_and_an_idle_class_can_take_its_largest_message() {
        let (inbound, outbound) = pair();
        assert!(outbound.apply(inbound.take_due().unwrap()));
        // 249 bytes released in one message: less than a quarter of 1000 bytes and of 8 messages.
        assert_eq!(outbound.take_now(Class::Data, 249), Take::Taken);
        drop(inbound.charge(Class::Data, 249).unwrap());
        assert_eq!(inbound.take_due(), None);
        assert_eq!(outbound.take_now(Class::Data, 750), Take::Taken);
        drop(inbound.charge(Class::Data, 750).unwrap());
        assert_eq!(inbound.take_due().unwrap().data, Grant { bytes: 1999, messages: 10 });
        assert_eq!(outbound.take_now(Class::Data, 751), Take::TooLarge { limit: 750 });
    }

    #[test]
    fn a_grant_that_shrinks_is_refused() {
        let (inbound, outbound) = pair();
        let grants = inbound.take_due().unwrap();
        assert!(outbound.apply(grants));
        assert!(outbound.apply(grants));
        let shrunk = Grants { data: Grant { bytes: 999, messages: 8 }, ..grants };
        assert!(!outbound.apply(shrunk));
        assert!(!outbound.apply(Grants::default()));
    }

    /// Invariant 4.
    #[tokio::test]
    async fn a_large_message_is_not_overtaken_by_small_ones() {
        let (inbound, outbound) = pair();
        assert!(outbound.apply(inbound.take_due().unwrap()));
        assert_eq!(outbound.take_now(Class::Data, 600), Take::Taken);
        let large = async { outbound.turn(Class::Data).await.take(700).await };
        let small = async { outbound.turn(Class::Data).await.take(10).await };
        tokio::pin!(large, small);
        assert!(futures_ready(large.as_mut()).await.is_none());
        assert!(futures_ready(small.as_mut()).await.is_none(), "a small message went ahead");
        assert_eq!(outbound.take_now(Class::Data, 10), Take::Wait);
        drop(inbound.charge(Class::Data, 600).unwrap());
        assert!(outbound.apply(inbound.take_due().unwrap()));
        assert_eq!(futures_ready(large.as_mut()).await, Some(Ok(())));
        assert_eq!(futures_ready(small.as_mut()).await, Some(Ok(())));
    }

    async fn futures_ready<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        let mut future = Some(future);
        std::future::poll_fn(|cx| {
            let polled = future.as_mut().map(|future| future.as_mut().poll(cx));
            std::task::Poll::Ready(match polled {
                Some(std::task::Poll::Ready(output)) => Some(output),
                _ => None,
            })
        })
        .await
    }

    proptest! {
        /// Invariants 1 to 3: any interleaving of sends, releases and grants keeps the sender within the
        /// window, never overruns, and never deadlocks an idle class.
        #[test]
        fn any_interleaving_is_safe_and_live(steps in prop::collection::vec((0u8..3, 1u64..750), 1..200)) {
            let (inbound, outbound) = pair();
            let mut held: Vec<Charge> = Vec::new();
            for (action, size) in steps {
                match action {
                    0 => if outbound.take_now(Class::Data, size) == Take::Taken {
                        let charge = inbound.charge(Class::Data, size);
                        prop_assert!(charge.is_ok(), "overrun by an honest sender: {charge:?}");
                        held.extend(charge.ok());
                    },
                    1 => if !held.is_empty() {
                        held.remove(usize::try_from(size).unwrap() % held.len());
                    },
                    _ => if let Some(grants) = inbound.take_due() {
                        prop_assert!(outbound.apply(grants));
                    },
                }
                let outstanding = inbound.outstanding(Class::Data);
                prop_assert!(outstanding.bytes <= 1000 && outstanding.messages <= 8);
            }
            held.clear();
            if let Some(grants) = inbound.take_due() {
                prop_assert!(outbound.apply(grants));
            }
            prop_assert_eq!(outbound.take_now(Class::Data, 750), Take::Taken);
        }
    }
}

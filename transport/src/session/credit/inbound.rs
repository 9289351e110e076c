//! The receiving side: grants credit, charges what arrives, and takes back what actors release.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::{BATCH_DIVISOR, Grant, Grants, Overrun, lock};
use crate::config::CreditConfig;
use crate::policy::Class;

#[derive(Debug, Default)]
struct InLane {
    window: Grant,
    granted: Grant,
    received: Grant,
    released: Grant,
}

impl InLane {
    /// Whether a grant is worth sending: the first one, or a quarter of the window has come free.
    fn is_due(&self) -> bool {
        let next = self.released.plus(self.window);
        let free_bytes = next.bytes.saturating_sub(self.granted.bytes);
        let free_messages = next.messages.saturating_sub(self.granted.messages);
        free_bytes > 0 && free_bytes >= self.window.bytes / BATCH_DIVISOR
            || free_messages > 0 && free_messages >= self.window.messages / BATCH_DIVISOR
    }
}

/// The receiving side of a connection's credit.
#[derive(Debug)]
pub struct Inbound {
    lanes: [Mutex<InLane>; 2],
    due: Notify,
    held: Arc<AtomicU64>,
}

impl Inbound {
    /// Windows as configured; nothing is granted yet.
    pub fn new(control: CreditConfig, data: CreditConfig) -> Arc<Self> {
        Inbound::counted(control, data, Arc::default())
    }

    /// The same; `held` counts the bytes of all connections that share it.
    pub fn counted(control: CreditConfig, data: CreditConfig, held: Arc<AtomicU64>) -> Arc<Self> {
        let lane = |credit: CreditConfig| {
            let window = Grant { bytes: credit.bytes, messages: credit.messages };
            Mutex::new(InLane { window, ..InLane::default() })
        };
        Arc::new(Inbound { lanes: [lane(control), lane(data)], due: Notify::new(), held })
    }

    /// Charges an announced message to its class.
    ///
    /// # Errors
    /// [`Overrun`] when it was not granted: the peer is at fault.
    pub fn charge(self: &Arc<Self>, class: Class, bytes: u64) -> Result<Charge, Overrun> {
        let mut lane = self.lane(class);
        let received = lane.received.plus(Grant::one(bytes));
        if !received.within(lane.granted) {
            let bytes_left = lane.granted.bytes.saturating_sub(lane.received.bytes);
            let messages_left = lane.granted.messages.saturating_sub(lane.received.messages);
            return Err(Overrun { class, bytes, bytes_left, messages_left });
        }
        lane.received = received;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(Charge { ledger: Arc::clone(self), class, bytes })
    }

    /// The grants to announce now; `None` when nothing is due.
    pub fn take_due(&self) -> Option<Grants> {
        if !Class::ALL.into_iter().any(|class| self.lane(class).is_due()) {
            return None;
        }
        let [control, data] = Class::ALL.map(|class| {
            let mut lane = self.lane(class);
            lane.granted = lane.released.plus(lane.window);
            lane.granted
        });
        Some(Grants { control, data })
    }

    /// Waits until [`Inbound::take_due`] may have something; may wake for nothing.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    /// Bytes and messages of a class received and not yet released.
    pub fn outstanding(&self, class: Class) -> Grant {
        let lane = self.lane(class);
        Grant {
            bytes: lane.received.bytes.saturating_sub(lane.released.bytes),
            messages: lane.received.messages.saturating_sub(lane.released.messages),
        }
    }

    fn release(&self, class: Class, bytes: u64) {
        let mut lane = self.lane(class);
        lane.released = lane.released.plus(Grant::one(bytes));
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        let is_due = lane.is_due();
        drop(lane);
        if is_due {
            self.due.notify_one();
        }
    }

    fn lane(&self, class: Class) -> MutexGuard<'_, InLane> {
        let [control, data] = &self.lanes;
        lock(match class {
            Class::Control => control,
            Class::Data => data,
        })
    }
}

/// One message's credit, given back when dropped.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Inbound>,
    class: Class,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.release(self.class, self.bytes);
    }
}

//! Messages and their bytes, as they are counted for a connection and for a whole node.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was sent and received, the transport's own credit messages not counted. Bytes are whole messages: preludes, headers,
/// payloads, MACs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficStats {
    /// Bytes of messages sent.
    pub bytes_sent: u64,
    /// Bytes of messages received and accepted.
    pub bytes_received: u64,
    /// Messages sent.
    pub messages_sent: u64,
    /// Messages received and accepted.
    pub messages_received: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    messages_sent: AtomicU64,
    messages_received: AtomicU64,
}

impl Traffic {
    /// Counts a message that is sent.
    pub(crate) fn sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        self.messages_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message that was accepted.
    pub(crate) fn received(&self, bytes: u64) {
        self.bytes_received.fetch_add(bytes, Ordering::Relaxed);
        self.messages_received.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> TrafficStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TrafficStats {
            bytes_sent: read(&self.bytes_sent),
            bytes_received: read(&self.bytes_received),
            messages_sent: read(&self.messages_sent),
            messages_received: read(&self.messages_received),
        }
    }
}

//! Messages on their way to a peer: an actor posts without ever waiting, a task sends.
//!
//! 1. What waits for a peer is bounded in messages and in bytes, over all its streams together.
//! 2. A peer for whom more would wait does not read what it asked for: its connection is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testudo_transport::{CloseCode, Connection, Error, Outgoing, Sender};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the reason of a connection that cannot be written to is waited for.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How much may wait for one peer, shared by the outboxes of all its streams.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    max_messages: usize,
    max_bytes: usize,
}

impl Budget {
    /// At most so many messages, with so many bytes of bodies and payloads in all; a single message may always wait.
    #[must_use]
    pub fn new(max_messages: usize, max_bytes: usize) -> Budget {
        let (messages, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Budget(Arc::new(Counts { messages, bytes, max_messages, max_bytes }))
    }

    /// Messages alone: for peers that are trusted to read, and payloads that are bounded by other means.
    #[must_use]
    pub fn messages(max_messages: usize) -> Budget {
        Budget::new(max_messages, usize::MAX)
    }

    fn take(&self, bytes: usize) -> Option<Taken> {
        let counts = &self.0;
        let messages = counts.messages.fetch_add(1, Ordering::Relaxed) + 1;
        let waiting = counts.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let taken = Taken { budget: self.clone(), bytes };
        let within = messages <= counts.max_messages && waiting <= counts.max_bytes;
        (within || messages == 1).then_some(taken)
    }
}

/// One message's part of the budget, given back when it is dropped.
#[derive(Debug)]
struct Taken {
    budget: Budget,
    bytes: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget.0.messages.fetch_sub(1, Ordering::Relaxed);
        self.budget.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A message with whatever is to be given back once it has been sent.
struct Posted {
    message: Outgoing,
    _taken: Taken,
    _held: Option<Box<dyn Send>>,
}

/// The way to one stream of a peer.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// Unbounded in itself: the budget bounds it.
    queue: mpsc::UnboundedSender<Posted>,
    budget: Budget,
    connection: Connection,
}

impl Outbox {
    /// An outbox for `sender`, a stream of `connection`, whose task runs on `runtime`.
    #[must_use]
    pub fn new(connection: Connection, sender: Sender, budget: Budget, runtime: &Handle) -> Outbox {
        Outbox::with_task(connection, sender, budget, runtime).0
    }

    /// The same, with the task that sends: it ends when the last clone of the outbox is gone and all that was posted has arrived.
    #[must_use]
    pub fn with_task(
        connection: Connection,
        sender: Sender,
        budget: Budget,
        runtime: &Handle,
    ) -> (Outbox, JoinHandle<()>) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let task = runtime.spawn(send_all(connection.clone(), sender, waiting));
        (Outbox { queue, budget, connection }, task)
    }

    /// Posts a message, in the trace of the present span unless it has one of its own. A connection that is gone, or whose
    /// peer does not read, is closed and swallows it: its actor learns of that from the connection's end.
    pub fn post(&self, message: Outgoing) {
        self.post_holding(message, None);
    }

    /// Messages that wait for the peer, on all its streams.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.budget.0.messages.load(Ordering::Relaxed)
    }

    /// Posts a message and drops `held` once it has been handed to the transport.
    pub fn post_holding(&self, mut message: Outgoing, held: Option<Box<dyn Send>>) {
        message.traceparent = message.traceparent.or_else(testudo_observability::current_traceparent);
        match self.budget.take(message.body.len() + message.payload.len()) {
            Some(taken) => {
                let _ = self.queue.send(Posted { message, _taken: taken, _held: held });
            }
            None => self
                .connection
                .close(CloseCode::Stalled.number(), "more answers wait than a peer may leave unread"),
        }
    }
}

async fn send_all(connection: Connection, mut sender: Sender, mut waiting: mpsc::UnboundedReceiver<Posted>) {
    while let Some(Posted { message, _taken, _held }) = waiting.recv().await {
        if let Err(error) = sender.send(message).await {
            if !matches!(error, Error::Closed { .. } | Error::Lost { .. }) {
                tracing::warn!(%error, "a message could not be sent");
            }
            // A peer that ends a connection says why: that word is about to come, and ours must not stand in its place.
            if tokio::time::timeout(LAST_WORD, connection.closed()).await.is_err() {
                connection.close(CloseCode::Done.number(), "a stream cannot be written");
            }
            return;
        }
    }
    // Whoever posted is gone: what was sent still arrives.
    let _ = sender.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 1.
    #[test]
    fn a_budget_bounds_messages_and_bytes_and_gets_both_back() {
        let budget = Budget::new(3, 100);
        let first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none(), "bytes");
        let second = budget.take(40).unwrap();
        let third = budget.take(0).unwrap();
        assert!(budget.take(0).is_none(), "messages");
        drop((first, second, third));
        let large = budget.take(1000);
        assert!(large.is_some(), "one message may always wait");
        assert!(budget.take(1).is_none());
    }
}

//! From an actor's connections to its mailbox.
//!
//! 1. What nobody granted, no handler knows or no type reads is the sender's fault: its connection is closed and counted.
//! 2. Answers that were given when the actor stops still arrive, if whoever asked takes them within [`GRACE`].
//! 3. A mailbox holds [`LETTERS`](super::mail::LETTERS) letters and [`MAIL_BYTES`](super::mail::MAIL_BYTES) bytes at most; a stream whose letter finds no room is not read on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use testudo_transport::{Cause, CloseCode, Connection, Message as Heard, Receiver, Sender, WireError};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::actor::{Context, Flows, Handle as Handles, Trouble};
use super::answer::ReplyTo;
use super::flow::{Flow, Way};
use super::grants::Grants;
use super::mail::Mailbox;
use super::message::{Message, TO_ANSWER};
use crate::link::Network;
use crate::outbox::{Budget, Outbox};

/// Answers that one peer may leave unread.
const ANSWERS: usize = 256;
/// Bytes of them.
const ANSWER_BYTES: usize = 4 << 20;

/// How long answers that were given may take once the actor has stopped.
const GRACE: Duration = Duration::from_secs(5);

/// What handling a letter came to: why the actor failed, if it did.
pub(super) type Handled = Result<(), String>;

/// A message that was read, with what handles it.
pub(super) type Work<A> = Box<dyn FnOnce(&mut A, &Context<'_>) -> Handled + Send>;

/// How an actor takes one kind of message.
pub(super) enum Entry<A> {
    /// One at a time, answered on their stream.
    Hears(fn(&[u8], ReplyTo) -> Result<Work<A>, WireError>),
    /// One a stream, which is for what it asks for.
    Flows(fn(&[u8], Opened) -> Result<Work<A>, WireError>),
}

/// A stream that was opened for items.
pub(super) struct Opened {
    sender: Sender,
    left: watch::Receiver<bool>,
    request: u64,
    trace: Option<[u8; 25]>,
    runtime: Handle,
}

/// By kind.
pub(super) type Table<A> = BTreeMap<u8, Entry<A>>;

/// What handles `M`.
pub(super) fn hears<A: Handles<M>, M: Message>(body: &[u8], reply: ReplyTo) -> Result<Work<A>, WireError> {
    let message: M = testudo_transport::decode_canonical(body)?;
    Ok(Box::new(move |actor, context| {
        let (answer, failed) = match actor.handle(message, context) {
            Ok(answer) => (Ok(answer), Ok(())),
            Err(Trouble::Refused(reason)) => (Err(reason), Ok(())),
            Err(Trouble::Failed(reason)) => (Err(failed(&reason)), Err(reason)),
        };
        reply.answer::<M>(answer);
        failed
    }))
}

/// What whoever asked is told of a failure.
fn failed(reason: &str) -> String {
    format!("the actor failed: {reason}")
}

/// What opens a stream of `M`'s items.
pub(super) fn flows<A: Flows<M>, M: Message>(body: &[u8], opened: Opened) -> Result<Work<A>, WireError> {
    let message: M = testudo_transport::decode_canonical(body)?;
    let Opened { sender, left, request, trace, runtime } = opened;
    let way = Way { left, kind: M::KIND + TO_ANSWER, request, trace, runtime };
    let (flow, opening) = Flow::<M>::new(sender, way);
    Ok(Box::new(move |actor, context| match actor.open(message, flow, context) {
        Ok(()) => Ok(()),
        Err(Trouble::Refused(reason)) => {
            opening.give_up(reason);
            Ok(())
        }
        Err(Trouble::Failed(reason)) => {
            opening.give_up(failed(&reason));
            Err(reason)
        }
    }))
}

/// What the tasks of an actor's connections share.
pub(super) struct Serving<A> {
    pub(super) network: Network,
    pub(super) grants: Grants,
    pub(super) table: Table<A>,
    pub(super) mailbox: Mailbox<A>,
    pub(super) runtime: Handle,
}

/// Accepts connections until the network is closed or the actor has stopped.
pub(super) async fn accept<A: 'static>(serving: Arc<Serving<A>>) {
    let mut peers = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = serving.network.accept() => accepted,
            () = serving.mailbox.letters.closed() => None,
        };
        let Some(connection) = accepted else { break };
        while peers.try_join_next().is_some() {}
        peers.spawn(hear_peer(Arc::clone(&serving), connection));
    }
    // Each has its own grace.
    while peers.join_next().await.is_some() {}
}

async fn hear_peer<A: 'static>(serving: Arc<Serving<A>>, connection: Connection) {
    let (budget, mut streams) = (Budget::new(ANSWERS, ANSWER_BYTES), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted.ok(),
            () = serving.mailbox.letters.closed() => None,
        };
        let Some((sender, receiver)) = accepted else { break };
        let stream = Stream {
            serving: Arc::clone(&serving),
            connection: connection.clone(),
            budget: budget.clone(),
            half: Half::Unused(sender),
            left: watch::channel(false).0,
        };
        while streams.try_join_next().is_some() {}
        streams.spawn(stream.hear(receiver));
    }
    let _ = tokio::time::timeout(GRACE, async { while streams.join_next().await.is_some() {} }).await;
    connection.close(CloseCode::Done.number(), "the actor has stopped");
}

/// What a stream's sending half is used for.
enum Half {
    Unused(Sender),
    Answers(Outbox, JoinHandle<()>),
    Items,
}

/// One stream of a peer's.
struct Stream<A> {
    serving: Arc<Serving<A>>,
    connection: Connection,
    budget: Budget,
    half: Half,
    /// Tells a stream of items that the other end has left; so does its drop.
    left: watch::Sender<bool>,
}

impl<A: 'static> Stream<A> {
    /// Hears the stream to its end, and sees to it that its answers arrive.
    async fn hear(mut self, receiver: Receiver) {
        self.hear_all(receiver).await;
        let _ = self.left.send(true);
        if let Half::Answers(outbox, sending) = self.half {
            drop(outbox);
            let _ = sending.await;
        }
    }

    async fn hear_all(&mut self, mut receiver: Receiver) {
        let letters = self.serving.mailbox.letters.clone();
        loop {
            let message = tokio::select! {
                received = receiver.recv() => received,
                () = letters.closed() => return,
            };
            let Ok(Some(message)) = message else { return };
            let bytes = message.body.len();
            match self.read(message) {
                Ok(work) => {
                    let from = self.connection.peer().clone();
                    if !self.serving.mailbox.deliver(from, bytes, work).await {
                        return;
                    }
                }
                Err(what) => {
                    let cause =
                        if matches!(what, Amiss::NotGranted) { Cause::Policy } else { Cause::Message };
                    return self.connection.blame(cause, CloseCode::Policy, &what.to_string());
                }
            }
        }
    }

    /// What `message` is to the actor.
    fn read(&mut self, message: Heard) -> Result<Work<A>, Amiss> {
        let Heard { kind, envelope, body, .. } = message;
        let serving = Arc::clone(&self.serving);
        if !serving.grants.permits(kind, self.connection.peer(), self.connection.local()) {
            return Err(Amiss::NotGranted);
        }
        let (request, trace) = (envelope.request, envelope.traceparent);
        match serving.table.get(&kind).ok_or(Amiss::NoHandler)? {
            Entry::Hears(read) => {
                let outbox = self.outbox().ok_or(Amiss::Stream)?;
                Ok(read(&body, ReplyTo::new(outbox, kind, request, trace))?)
            }
            Entry::Flows(read) => match std::mem::replace(&mut self.half, Half::Items) {
                Half::Unused(sender) => {
                    let (left, runtime) = (self.left.subscribe(), serving.runtime.clone());
                    Ok(read(&body, Opened { sender, left, request, trace, runtime })?)
                }
                other => {
                    self.half = other;
                    Err(Amiss::Stream)
                }
            },
        }
    }

    /// The way for answers, unless the stream is one for items.
    fn outbox(&mut self) -> Option<Outbox> {
        self.half = match std::mem::replace(&mut self.half, Half::Items) {
            Half::Unused(sender) => {
                let (connection, budget) = (self.connection.clone(), self.budget.clone());
                let (outbox, task) = Outbox::with_task(connection, sender, budget, &self.serving.runtime);
                Half::Answers(outbox, task)
            }
            other => other,
        };
        match &self.half {
            Half::Answers(outbox, _) => Some(outbox.clone()),
            _ => None,
        }
    }
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
enum Amiss {
    #[error("a message that no grant lets it say here")]
    NotGranted,
    #[error("a message that this actor does not hear")]
    NoHandler,
    #[error("a second message on a stream of items, or one that opens such a stream on another")]
    Stream,
    #[error("a message that cannot be read: {0}")]
    Unreadable(#[from] WireError),
}

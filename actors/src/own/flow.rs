//! Streams of messages, each on a stream of the transport's own: bounded by its credit, in order, and ended by either end.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use testudo_transport::message::Traceparent;
use testudo_transport::{Cause, CloseCode, Connection, Outgoing, Receiver, Sender};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::answer;
use super::caller::{Opened, Remote, SayError, traceparent};
use super::message::{Message, TO_ANSWER};

/// Items that wait for whoever subscribed, beside the transport's credit.
const AHEAD: usize = 16;

/// A stream of messages to an actor. Dropped, it ends once what was sent has arrived.
#[derive(Debug)]
pub struct Outflow<M> {
    remote: Remote,
    /// None while something is sent, and once that has failed.
    sender: Option<Sender>,
    of: PhantomData<fn(M)>,
}

impl<M: Message> Outflow<M> {
    pub(super) fn new(remote: Remote, sender: Sender) -> Outflow<M> {
        Outflow { remote, sender: Some(sender), of: PhantomData }
    }

    /// Sends one, waiting for the actor's credit. If the future is dropped before it is ready, the stream is over.
    ///
    /// # Errors
    /// [`SayError`]; after [`SayError::Lost`] the stream is over.
    pub async fn send(&mut self, message: &M) -> Result<(), SayError> {
        let body = self.remote.checked(message)?;
        let message = Outgoing::new(M::KIND, 0, body).with_traceparent(traceparent());
        let mut sender = self.sender.take().ok_or_else(|| self.remote.lost("the stream is over"))?;
        let remote = self.remote.clone();
        let sent = self.remote.on_runtime(async move {
            sender.send(message).await.map_err(|error| remote.broken(&error))?;
            Ok(sender)
        });
        self.sender = Some(sent.await?);
        Ok(())
    }

    /// Ends the stream and waits until the actor's node has all of it; its handler may still be at it.
    ///
    /// # Errors
    /// [`SayError::Lost`] when the connection ended first.
    pub async fn finish(mut self) -> Result<(), SayError> {
        let mut sender = self.sender.take().ok_or_else(|| self.remote.lost("the stream is over"))?;
        let remote = self.remote.clone();
        let done = async move { sender.finish().await.map_err(|error| remote.broken(&error)) };
        self.remote.on_runtime(done).await
    }
}

impl<M> Drop for Outflow<M> {
    fn drop(&mut self) {
        if let Some(mut sender) = self.sender.take() {
            // What is in flight is completed there.
            self.remote.runtime().spawn(async move { sender.end().await });
        }
    }
}

/// A stream of items from an actor. Dropped, it tells the actor so.
#[derive(Debug)]
pub struct Inflow<M: Message> {
    items: mpsc::Receiver<Result<M::Answer, SayError>>,
}

impl<M: Message> Inflow<M> {
    pub(super) fn new(remote: Remote, Opened(connection, sender, receiver): Opened) -> Inflow<M> {
        let (put, items) = mpsc::channel(AHEAD);
        let runtime = remote.runtime().clone();
        runtime.spawn(pump::<M>(remote, connection, (sender, receiver), put));
        Inflow { items }
    }

    /// The next item; `None` when the actor has finished the stream, and all of it has come.
    ///
    /// # Errors
    /// [`SayError::Refused`] with the actor's reason, [`SayError::Lost`] when the stream ended without one: nothing comes after either, and the
    /// stream is not whole.
    pub async fn next(&mut self) -> Result<Option<M::Answer>, SayError> {
        self.items.recv().await.transpose()
    }

    /// As [`next`](Inflow::next), for threads that are no tasks.
    ///
    /// # Errors
    /// As [`next`](Inflow::next).
    pub fn next_blocking(&mut self) -> Result<Option<M::Answer>, SayError> {
        self.items.blocking_recv().transpose()
    }
}

/// Passes items on until the stream ends or nobody takes them. The sending half is held until then: its end says that nobody listens.
async fn pump<M: Message>(
    remote: Remote,
    connection: Connection,
    (sender, mut receiver): (Sender, Receiver),
    put: mpsc::Sender<Result<M::Answer, SayError>>,
) {
    let _listening = sender;
    loop {
        let received = tokio::select! {
            received = receiver.recv() => received,
            () = put.closed() => return,
        };
        let item = match received {
            Ok(Some(message)) if message.kind != M::KIND + TO_ANSWER => {
                connection.blame(
                    Cause::Message,
                    CloseCode::Policy,
                    "an item of another kind than was asked for",
                );
                Err(remote.lost("the actor sent an item of another kind than was asked for"))
            }
            Ok(Some(message)) if message.body == answer::WHOLE => return,
            Ok(None) => Err(remote.lost("the stream ended before it was finished")),
            Ok(Some(message)) => match answer::decode::<M>(&message.body) {
                Ok(Ok(item)) => Ok(item),
                Ok(Err(reason)) => Err(remote.refused(reason)),
                Err(error) => Err(SayError::Misheard(error)),
            },
            Err(error) => Err(remote.broken(&error)),
        };
        let last = item.is_err();
        if put.send(item).await.is_err() || last {
            return;
        }
    }
}

/// Nobody takes a stream's items any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("whoever subscribed has left")]
pub struct Unheard;

/// What whoever subscribed is told when the stream's end was not said.
const NO_END: &str = "the actor failed, stopped or gave the stream up before it was finished";

/// The actor's end of a stream of items: whoever subscribed takes them. It may be kept, and sent on to other threads. The stream is whole once it
/// is [`finish`](Flow::finish)ed; dropped before, it fails for whoever subscribed.
#[derive(Debug)]
pub struct Flow<M> {
    /// None while something is sent, and once that has failed.
    sender: Option<Sender>,
    way: Way,
    fate: Arc<Mutex<Fate>>,
    of: PhantomData<fn(M)>,
}

impl<M: Message> Flow<M> {
    pub(super) fn new(sender: Sender, way: Way) -> (Flow<M>, Opening) {
        let fate = Arc::new(Mutex::new(Fate::Opening(None)));
        let opening = Opening { way: way.clone(), fate: Arc::clone(&fate), reason: None };
        (Flow { sender: Some(sender), way, fate, of: PhantomData }, opening)
    }

    /// Sends an item, waiting for room at the other end. If the future is dropped before it is ready, the stream has failed.
    ///
    /// # Errors
    /// [`Unheard`] when whoever subscribed has left, or cannot be reached; the stream is over then.
    pub async fn send(&mut self, item: M::Answer) -> Result<(), Unheard> {
        let task = self.task(item)?;
        self.sender = Some(self.way.runtime.spawn(task).await.unwrap_or(Err(Unheard))?);
        Ok(())
    }

    /// As [`send`](Flow::send), for threads that are no tasks. An actor that calls it from a handler hears nothing else while it waits: a
    /// subscriber who does not read holds it up until the transport's stall timeout.
    ///
    /// # Errors
    /// As [`send`](Flow::send).
    pub fn send_blocking(&mut self, item: M::Answer) -> Result<(), Unheard> {
        let task = self.task(item)?;
        let (done, result) = std::sync::mpsc::sync_channel(1);
        self.way.runtime.spawn(async move {
            let _ = done.send(task.await);
        });
        self.sender = Some(result.recv().unwrap_or(Err(Unheard))?);
        Ok(())
    }

    /// Ends the stream, of which all was sent. Whoever subscribed learns that it is whole.
    pub fn finish(mut self) {
        self.last(answer::WHOLE.to_vec());
    }

    /// Ends the stream, and says why.
    pub fn refuse(mut self, reason: &str) {
        self.last(answer::refusal(reason));
    }

    fn last(&mut self, body: Vec<u8>) {
        if let Some(sender) = self.sender.take() {
            self.way.last(sender, body);
        }
    }

    /// Sends an item and gives the sender back, unless the other end leaves first.
    fn task(
        &mut self,
        item: M::Answer,
    ) -> Result<impl Future<Output = Result<Sender, Unheard>> + Send + use<M>, Unheard> {
        let sender = self.sender.take().ok_or(Unheard)?;
        Ok(self.way.clone().send(sender, answer::encode::<M>(Ok(item))))
    }
}

impl<M> Drop for Flow<M> {
    fn drop(&mut self) {
        let Some(sender) = self.sender.take() else { return };
        match &mut *self.fate.lock().unwrap_or_else(PoisonError::into_inner) {
            Fate::Opening(given_up) => *given_up = Some(sender),
            Fate::Open(reason) => self.way.last(sender, answer::refusal(reason.as_deref().unwrap_or(NO_END))),
        }
    }
}

/// What is known of a stream of items beside its sending half.
#[derive(Debug)]
enum Fate {
    /// The actor is opening it. The sending half, if it has been given up already: why, the actor is about to say.
    Opening(Option<Sender>),
    /// With what whoever subscribed is told if it is given up, where the actor has said so.
    Open(Option<String>),
}

/// A stream of items while it is being opened. Dropped, it is open, or has failed if it was given up.
#[derive(Debug)]
pub(super) struct Opening {
    way: Way,
    fate: Arc<Mutex<Fate>>,
    /// Why the actor did not open it.
    reason: Option<String>,
}

impl Opening {
    /// The actor does not open it, and says why.
    pub(super) fn give_up(mut self, reason: String) {
        self.reason = Some(reason);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let reason = self.reason.take();
        let told = answer::refusal(reason.as_deref().unwrap_or(NO_END));
        let mut fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Fate::Opening(Some(sender)) = std::mem::replace(&mut *fate, Fate::Open(reason)) {
            self.way.last(sender, told);
        }
    }
}

/// How a stream's items are sent.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// Whether the other end has left.
    pub(super) left: watch::Receiver<bool>,
    /// Of each item.
    pub(super) kind: u8,
    pub(super) request: u64,
    pub(super) trace: Option<Traceparent>,
    pub(super) runtime: Handle,
}

impl Way {
    /// Sends a message and gives the sender back, unless the other end leaves first.
    async fn send(mut self, mut sender: Sender, body: Vec<u8>) -> Result<Sender, Unheard> {
        let message = Outgoing::new(self.kind, self.request, body).with_traceparent(self.trace);
        tokio::select! {
            biased;
            _ = self.left.wait_for(|left| *left) => Err(Unheard),
            sent = sender.send(message) => sent.map(|()| sender).map_err(|_| Unheard),
        }
    }

    /// Sends the last message of a stream, and ends it.
    fn last(&self, sender: Sender, body: Vec<u8>) {
        let sending = self.clone().send(sender, body);
        self.runtime.spawn(async move {
            if let Ok(mut sender) = sending.await {
                let _ = sender.end().await;
            }
        });
    }
}

//! Streams of messages, each on a stream of the transport's own: bounded by its credit, in order, and ended by either end.

use std::marker::PhantomData;

use testudo_transport::message::Traceparent;
use testudo_transport::{Outgoing, Receiver, Sender};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::answer;
use super::caller::{Remote, SayError, traceparent};
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
    pub(super) fn new(remote: Remote, sender: Sender, receiver: Receiver) -> Inflow<M> {
        let (put, items) = mpsc::channel(AHEAD);
        let runtime = remote.runtime().clone();
        runtime.spawn(pump::<M>(remote, sender, receiver, put));
        Inflow { items }
    }

    /// The next item; `None` when the actor has ended the stream in good order.
    ///
    /// # Errors
    /// [`SayError::Refused`] with the actor's reason, [`SayError::Lost`]: nothing comes after either.
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
    sender: Sender,
    mut receiver: Receiver,
    put: mpsc::Sender<Result<M::Answer, SayError>>,
) {
    let _listening = sender;
    loop {
        let received = tokio::select! {
            received = receiver.recv() => received,
            () = put.closed() => return,
        };
        let item = match received {
            Ok(None) => return,
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

/// The actor's end of a stream of items: whoever subscribed takes them. It may be kept, and sent on to other threads. Dropped, it ends
/// the stream.
#[derive(Debug)]
pub struct Flow<M> {
    /// None while something is sent, and once that has failed.
    sender: Option<Sender>,
    /// Whether the other end has left.
    left: watch::Receiver<bool>,
    request: u64,
    trace: Option<Traceparent>,
    runtime: Handle,
    of: PhantomData<fn(M)>,
}

impl<M: Message> Flow<M> {
    pub(super) fn new(
        sender: Sender,
        left: watch::Receiver<bool>,
        request: u64,
        trace: Option<Traceparent>,
        runtime: Handle,
    ) -> Flow<M> {
        Flow { sender: Some(sender), left, request, trace, runtime, of: PhantomData }
    }

    /// Sends an item, waiting for room at the other end.
    ///
    /// # Errors
    /// [`Unheard`] when whoever subscribed has left, or cannot be reached; the stream is over then.
    pub async fn send(&mut self, item: M::Answer) -> Result<(), Unheard> {
        self.put(Ok(item)).await
    }

    /// As [`send`](Flow::send), for threads that are no tasks. An actor that calls it from a handler hears nothing else while it waits: a
    /// subscriber who does not read holds it up until the transport's stall timeout.
    ///
    /// # Errors
    /// As [`send`](Flow::send).
    pub fn send_blocking(&mut self, item: M::Answer) -> Result<(), Unheard> {
        let (task, runtime) = (self.task(Ok(item))?, self.runtime.clone());
        let (done, result) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            let _ = done.send(task.await);
        });
        self.sender = Some(result.recv().unwrap_or(Err(Unheard))?);
        Ok(())
    }

    /// Ends the stream, and says why.
    pub fn refuse(mut self, reason: &str) {
        if let Ok(task) = self.task(Err(reason.to_owned())) {
            self.runtime.spawn(task);
        }
    }

    async fn put(&mut self, item: Result<M::Answer, String>) -> Result<(), Unheard> {
        let task = self.task(item)?;
        self.sender = Some(self.runtime.spawn(task).await.unwrap_or(Err(Unheard))?);
        Ok(())
    }

    /// Sends an item and gives the sender back, unless the other end leaves first.
    fn task(
        &mut self,
        item: Result<M::Answer, String>,
    ) -> Result<impl Future<Output = Result<Sender, Unheard>> + Send + use<M>, Unheard> {
        let mut sender = self.sender.take().ok_or(Unheard)?;
        let body = answer::encode::<M>(item);
        let message = Outgoing::new(M::KIND + TO_ANSWER, self.request, body).with_traceparent(self.trace);
        let mut left = self.left.clone();
        Ok(async move {
            tokio::select! {
                biased;
                _ = left.wait_for(|left| *left) => Err(Unheard),
                sent = sender.send(message) => sent.map(|()| sender).map_err(|_| Unheard),
            }
        })
    }
}

impl<M> Drop for Flow<M> {
    fn drop(&mut self) {
        if let Some(mut sender) = self.sender.take() {
            self.runtime.spawn(async move { sender.end().await });
        }
    }
}

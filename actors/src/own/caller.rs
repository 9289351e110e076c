//! Saying something to an actor of one's own: connections that are there when they are needed, asks by number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use testudo_transport::{
    Cause, Class, CloseCode, Connection, Error, Outgoing, Receiver, Sender, SpiffeId, WireError,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::answer;
use super::flow::{Inflow, Outflow};
use super::grants::Grants;
use super::message::{Message, TO_ANSWER};
use crate::link::Network;

/// Asks on one lane that may wait for their answers.
const MOST_ASKS: usize = 256;

/// All streams of a caller are alike.
pub(super) const PRIORITY: i32 = 0;

/// Why something could not be said, or was not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SayError {
    /// No row grants it.
    #[error("{from} may not say `{name}` to {to}: no grant says so")]
    NotGranted {
        /// Who would say it.
        from: String,
        /// What.
        name: &'static str,
        /// To whom.
        to: String,
    },
    /// It is larger than its type says.
    #[error("`{name}` has {bytes} bytes, {most} at most")]
    TooLarge {
        /// What.
        name: &'static str,
        /// Its bytes.
        bytes: usize,
        /// The most that it may have.
        most: u32,
    },
    /// The actor cannot be reached.
    #[error("{to} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        to: String,
        /// Why.
        reason: String,
    },
    /// The connection ended; whether what was said is heard is not known.
    #[error("the connection with {to} was lost: {reason}")]
    Lost {
        /// With whom.
        to: String,
        /// Why.
        reason: String,
    },
    /// No answer came in time.
    #[error("{to} did not answer within {within:?}")]
    TimedOut {
        /// Who.
        to: String,
        /// The time it had.
        within: Duration,
    },
    /// The actor gives no answer, and says why.
    #[error("{to} refused: {reason}")]
    Refused {
        /// Who.
        to: String,
        /// Why.
        reason: String,
    },
    /// As many asks wait for an answer as may.
    #[error("{0} asks wait for answers already")]
    Busy(usize),
    /// What came back is not of the type that was asked for.
    #[error("the answer cannot be read: {0}; are both ends built from the same types?")]
    Misheard(#[from] WireError),
    /// The threads for connections have ended.
    #[error("the threads for connections have ended")]
    Ended,
}

/// Somebody who says something: an identity with a network. Clones are the same one. The last one that is dropped lets what was said arrive, and
/// then hangs up.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    network: Network,
    grants: Grants,
    runtime: Handle,
    peers: Mutex<HashMap<(SpiffeId, String), Arc<Peer>>>,
}

impl Caller {
    /// Says under `network`'s identity what `grants` let it; connections' tasks run on `runtime`.
    #[must_use]
    pub fn new(network: Network, grants: Grants, runtime: Handle) -> Caller {
        Caller(Arc::new(Inner { network, grants, runtime, peers: Mutex::default() }))
    }

    /// Who this is.
    #[must_use]
    pub fn me(&self) -> &SpiffeId {
        self.0.network.id()
    }

    /// The actor `id`, at `address` (`host:port`; within a process, any text). Nothing is dialled before something is said.
    #[must_use]
    pub fn to(&self, id: &SpiffeId, address: &str) -> Remote {
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.entry((id.clone(), address.to_owned())).or_insert_with(|| {
            let (id, address) = (id.clone(), address.to_owned());
            Arc::new(Peer { id, address, link: tokio::sync::Mutex::default() })
        });
        Remote { caller: self.clone(), peer: Arc::clone(peer) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let peers = std::mem::take(&mut *self.peers.lock().unwrap_or_else(PoisonError::into_inner));
        self.runtime.spawn(async move {
            for peer in peers.into_values() {
                let Some(link) = peer.link.lock().await.take() else { continue };
                for mut lane in link.lanes.into_iter().flatten() {
                    let _ = lane.sender.finish().await;
                }
                link.connection.close(CloseCode::Done.number(), "done");
            }
        });
    }
}

#[derive(Debug)]
struct Peer {
    id: SpiffeId,
    address: String,
    link: tokio::sync::Mutex<Option<Link>>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    /// For control and for data, opened when they are needed.
    lanes: [Option<Lane>; 2],
}

#[derive(Debug)]
struct Lane {
    sender: Sender,
    asks: Asks,
}

/// The kind that the answer to each ask has, and where it goes, by the ask's number.
type Waiting = HashMap<u64, (u8, oneshot::Sender<Vec<u8>>)>;

/// A place among those that wait, and what comes there.
type Place = (Asked, oneshot::Receiver<Vec<u8>>);

/// Asks that wait for their answers; `None` once no answer can come.
#[derive(Clone, Debug)]
struct Asks {
    waiting: Arc<Mutex<Option<Waiting>>>,
    last: Arc<AtomicU64>,
}

impl Asks {
    fn new() -> Asks {
        Asks { waiting: Arc::new(Mutex::new(Some(HashMap::new()))), last: Arc::default() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> Option<T> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(change)
    }

    /// A place for an answer of that kind; given back when the ask is over, however that comes.
    fn place(&self, kind: u8) -> Option<Result<Place, SayError>> {
        let (answer, answered) = oneshot::channel();
        self.with(|waiting| {
            if waiting.len() >= MOST_ASKS {
                return Err(SayError::Busy(MOST_ASKS));
            }
            let request = self.last.fetch_add(1, Ordering::Relaxed) + 1;
            waiting.insert(request, (kind, answer));
            Ok((Asked { asks: self.clone(), request }, answered))
        })
    }

    fn end(&self) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A place among the asks that wait.
struct Asked {
    asks: Asks,
    request: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.asks.with(|waiting| waiting.remove(&self.request));
    }
}

/// Passes answers on until the stream ends.
async fn hear(connection: Connection, mut answers: Receiver, asks: Asks) {
    while let Ok(Some(message)) = answers.recv().await {
        let request = message.envelope.request;
        let asked = (1..=asks.last.load(Ordering::Relaxed)).contains(&request) && message.kind >= TO_ANSWER;
        // One that comes late is nobody's any more.
        let waiting = asks.with(|waiting| waiting.remove(&request)).flatten();
        if !asked || waiting.as_ref().is_some_and(|(kind, _)| *kind != message.kind) {
            connection.blame(Cause::Message, CloseCode::Policy, "answers what nobody asked");
            break;
        }
        if let Some((_, waiting)) = waiting {
            let _ = waiting.send(message.body);
        }
    }
    asks.end();
}

/// A stream of its own, and the connection that it is of.
pub(super) struct Opened(pub(super) Connection, pub(super) Sender, pub(super) Receiver);

/// An actor of one's own, as somebody else sees it.
#[derive(Clone, Debug)]
pub struct Remote {
    caller: Caller,
    peer: Arc<Peer>,
}

impl Remote {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.peer.id
    }

    /// Says `message`, waiting for the actor's credit. Returns when it is handed to the network.
    ///
    /// # Errors
    /// [`SayError`]; nothing was said unless it is [`SayError::Lost`].
    pub async fn tell<M: Message>(&self, message: &M) -> Result<(), SayError> {
        let (body, remote) = (self.checked(message)?, self.clone());
        self.on_runtime(async move { remote.say::<M>(body, false).await.map(|_| ()) }).await
    }

    /// Says `message` and waits for its answer, `within` that time in all.
    ///
    /// # Errors
    /// [`SayError`], [`SayError::TimedOut`] and [`SayError::Refused`] among them.
    pub async fn ask<M: Message>(&self, message: &M, within: Duration) -> Result<M::Answer, SayError> {
        let asked = self.asked::<M>(self.checked(message)?, within);
        self.read::<M>(&self.on_runtime(asked).await?)
    }

    /// Says what is to be answered, and waits for the answer's bytes.
    fn asked<M: Message>(
        &self,
        body: Vec<u8>,
        within: Duration,
    ) -> impl Future<Output = Result<Vec<u8>, SayError>> + Send + use<M> {
        let remote = self.clone();
        async move {
            let answered = async {
                let Some((_place, answered)) = remote.say::<M>(body, true).await? else {
                    return Err(SayError::Ended);
                };
                answered.await.map_err(|_| remote.lost("no answer can come any more"))
            };
            let to = remote.peer.id.short().to_owned();
            tokio::time::timeout(within, answered).await.unwrap_or(Err(SayError::TimedOut { to, within }))
        }
    }

    fn read<M: Message>(&self, answer: &[u8]) -> Result<M::Answer, SayError> {
        answer::decode::<M>(answer)?.map_err(|reason| self.refused(reason))
    }

    /// As [`tell`](Remote::tell), for threads that are no tasks.
    ///
    /// # Errors
    /// As [`tell`](Remote::tell).
    pub fn tell_blocking<M: Message>(&self, message: &M) -> Result<(), SayError> {
        let (body, remote) = (self.checked(message)?, self.clone());
        self.blocking(async move { remote.say::<M>(body, false).await.map(|_| ()) })
    }

    /// As [`ask`](Remote::ask), for threads that are no tasks: handlers of actors, above all. Two actors that ask each other so wait for
    /// each other until the time is up.
    ///
    /// # Errors
    /// As [`ask`](Remote::ask).
    pub fn ask_blocking<M: Message>(&self, message: &M, within: Duration) -> Result<M::Answer, SayError> {
        let asked = self.asked::<M>(self.checked(message)?, within);
        self.read::<M>(&self.blocking(asked)?)
    }

    /// A stream to the actor: messages are heard in order, and whoever sends faster than they are handled waits.
    ///
    /// # Errors
    /// [`SayError`] when the actor cannot be reached, or no row grants `M`.
    pub async fn flow<M: Message>(&self) -> Result<Outflow<M>, SayError> {
        self.granted::<M>()?;
        let remote = self.clone();
        let opened =
            self.on_runtime(async move { remote.open(M::CLASS).await.map(|Opened(_, sender, _)| sender) });
        Ok(Outflow::new(self.clone(), opened.await?))
    }

    /// A stream from the actor, which `message` asks for: items come in order, and the actor waits where they are not taken.
    ///
    /// # Errors
    /// [`SayError`]; what the actor refuses, the first [`Inflow::next`] tells.
    pub async fn subscribe<M: Message>(&self, message: &M) -> Result<Inflow<M>, SayError> {
        let subscribed = self.subscribed::<M>(self.checked(message)?);
        Ok(Inflow::new(self.clone(), self.on_runtime(subscribed).await?))
    }

    /// As [`subscribe`](Remote::subscribe), for threads that are no tasks.
    ///
    /// # Errors
    /// As [`subscribe`](Remote::subscribe).
    pub fn subscribe_blocking<M: Message>(&self, message: &M) -> Result<Inflow<M>, SayError> {
        let opened = self.blocking(self.subscribed::<M>(self.checked(message)?))?;
        Ok(Inflow::new(self.clone(), opened))
    }

    /// Opens a stream and says what it is for.
    fn subscribed<M: Message>(
        &self,
        body: Vec<u8>,
    ) -> impl Future<Output = Result<Opened, SayError>> + Send + use<M> {
        let remote = self.clone();
        async move {
            let mut opened = remote.open(M::CLASS).await?;
            let message = Outgoing::new(M::KIND, 1, body).with_traceparent(traceparent());
            opened.1.send(message).await.map_err(|error| remote.broken(&error))?;
            Ok(opened)
        }
    }

    fn granted<M: Message>(&self) -> Result<(), SayError> {
        let (from, to) = (self.caller.me(), &self.peer.id);
        if self.caller.0.grants.permits(M::KIND, from, to) {
            return Ok(());
        }
        Err(SayError::NotGranted { from: from.short().to_owned(), name: M::NAME, to: to.short().to_owned() })
    }

    /// The message's bytes, if it may be said.
    pub(super) fn checked<M: Message>(&self, message: &M) -> Result<Vec<u8>, SayError> {
        self.granted::<M>()?;
        let body = testudo_transport::encode(message);
        if body.len() > M::MOST as usize {
            return Err(SayError::TooLarge { name: M::NAME, bytes: body.len(), most: M::MOST });
        }
        Ok(body)
    }

    /// On the connections' threads, so that whoever waits may be a task of any executor.
    pub(super) async fn on_runtime<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, SayError>> + Send + 'static,
    ) -> Result<T, SayError> {
        self.caller.0.runtime.spawn(task).await.unwrap_or(Err(SayError::Ended))
    }

    pub(super) fn blocking<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, SayError>> + Send + 'static,
    ) -> Result<T, SayError> {
        let (done, result) = mpsc::sync_channel(1);
        self.caller.0.runtime.spawn(async move {
            let _ = done.send(task.await);
        });
        result.recv().unwrap_or(Err(SayError::Ended))
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.caller.0.runtime
    }

    pub(super) fn lost(&self, reason: &str) -> SayError {
        SayError::Lost { to: self.peer.id.short().to_owned(), reason: reason.to_owned() }
    }

    pub(super) fn broken(&self, error: &Error) -> SayError {
        self.lost(&error.to_string())
    }

    pub(super) fn refused(&self, reason: String) -> SayError {
        SayError::Refused { to: self.peer.id.short().to_owned(), reason }
    }

    /// The connection, dialled anew if there is none or it has ended.
    async fn linked(&self, link: &mut Option<Link>) -> Result<(), SayError> {
        if link.as_ref().is_some_and(|link| link.connection.ended().is_none()) {
            return Ok(());
        }
        let Peer { id, address, .. } = self.peer.as_ref();
        let connected = self.caller.0.network.connect(address, id).await;
        let unreachable = |reason| SayError::Unreachable { to: id.short().to_owned(), reason };
        *link = Some(Link { connection: connected.map_err(unreachable)?, lanes: [None, None] });
        Ok(())
    }

    /// A stream of its own.
    async fn open(&self, class: Class) -> Result<Opened, SayError> {
        let connection = {
            let mut link = self.peer.link.lock().await;
            self.linked(&mut link).await?;
            link.as_ref().map(|link| link.connection.clone()).ok_or(SayError::Ended)?
        };
        let (sender, receiver) =
            connection.open(class, PRIORITY).await.map_err(|error| self.broken(&error))?;
        Ok(Opened(connection, sender, receiver))
    }

    /// Says a message on the shared lane of its class; with `asks`, with a place for its answer.
    async fn say<M: Message>(
        &self,
        body: Vec<u8>,
        asks: bool,
    ) -> Result<Option<(Asked, oneshot::Receiver<Vec<u8>>)>, SayError> {
        let mut link = self.peer.link.lock().await;
        self.linked(&mut link).await?;
        let Some(Link { connection, lanes }) = link.as_mut() else { return Err(SayError::Ended) };
        let lane = match M::CLASS {
            Class::Control => &mut lanes[0],
            Class::Data => &mut lanes[1],
        };
        if lane.is_none() {
            let opened = connection.open(M::CLASS, PRIORITY).await;
            let (sender, receiver) = opened.map_err(|error| self.broken(&error))?;
            let asks = Asks::new();
            tokio::spawn(hear(connection.clone(), receiver, asks.clone()));
            *lane = Some(Lane { sender, asks });
        }
        let Some(Lane { sender, asks: waiting }) = lane else { return Err(SayError::Ended) };
        let place = match asks {
            true => match waiting.place(M::KIND + TO_ANSWER) {
                Some(place) => Some(place?),
                None => {
                    *link = None;
                    return Err(self.lost("its stream has ended"));
                }
            },
            false => None,
        };
        let request = place.as_ref().map_or(0, |(asked, _)| asked.request);
        let message = Outgoing::new(M::KIND, request, body).with_traceparent(traceparent());
        if let Err(error) = sender.send(message).await {
            let error = self.broken(&error);
            *link = None;
            return Err(error);
        }
        Ok(place)
    }
}

/// The trace that this task is in.
pub(super) fn traceparent() -> Option<[u8; 25]> {
    testudo_observability::current_traceparent()
}

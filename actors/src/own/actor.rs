//! An actor of one's own, and the thread that runs it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use testudo_transport::SpiffeId;
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;

use super::caller::Caller;
use super::flow::Flow;
use super::grants::{Grants, is_reserved};
use super::mail::{Inbox, Letter, Mailbox};
use super::message::Message;
use super::serve::{self, Entry, Serving, Table};
use super::supervision::{Failure, Strategy, Supervision, Supervisor};
use crate::audit::printable;
use crate::link::Network;
use crate::time::Clock;

/// Characters of a reason in logs and errors.
const REASON: usize = 400;

/// Something that hears messages, one at a time, on a thread of its own.
pub trait Actor: Send + 'static {
    /// Called before it hears anything, and again for whatever takes its place after a failure.
    ///
    /// # Errors
    /// Why it cannot begin: a failure as any.
    fn started(&mut self, context: &Context<'_>) -> Result<(), String> {
        let _ = context;
        Ok(())
    }

    /// Called when it stops in order; not when it is dropped after a failure.
    fn stopped(&mut self) {}
}

/// Hears messages of type `M`.
pub trait Handle<M: Message>: Actor {
    /// Handles one. What it returns answers whoever asked; who only told is not answered.
    ///
    /// # Errors
    /// [`Trouble`]: whoever asked is told, and after [`Trouble::Failed`] the actor's supervision decides.
    fn handle(&mut self, message: M, context: &Context<'_>) -> Result<M::Answer, Trouble>;
}

/// Opens streams of items for whoever asks by a message of type `M`.
pub trait Flows<M: Message>: Actor {
    /// Opens one: `flow` may be kept, or handed to another thread. It is whole when it is finished with [`Flow::finish`]; one that is dropped
    /// before fails for whoever subscribed.
    ///
    /// # Errors
    /// [`Trouble`]: whoever subscribed is told, and after [`Trouble::Failed`] the actor's supervision decides.
    fn open(&mut self, message: M, flow: Flow<M>, context: &Context<'_>) -> Result<(), Trouble>;
}

/// Why a message has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The actor will not, and goes on.
    Refused(String),
    /// The actor has failed.
    Failed(String),
}

/// What a handler is told beside the message.
#[derive(Debug)]
pub struct Context<'a> {
    sender: &'a SpiffeId,
    caller: &'a Caller,
    stop: &'a Cell<bool>,
}

impl Context<'_> {
    /// Who said it, as its certificate names it; the actor itself in [`Actor::started`].
    #[must_use]
    pub fn sender(&self) -> &SpiffeId {
        self.sender
    }

    /// Says things as this actor: to others by [`Caller::to`], with the blocking calls.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        self.caller
    }

    /// Stops the actor once this message is handled.
    pub fn stop(&self) {
        self.stop.set(true);
    }
}

/// Why an actor stopped other than in order, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoppedActor {
    /// It failed once more than its supervision bears.
    #[error("{id} failed, and its supervision has it stop: {reason}")]
    Failed {
        /// Who.
        id: SpiffeId,
        /// Why.
        reason: String,
    },
    /// The identity is no actor's, or one that is used otherwise.
    #[error(
        "{0} is no identity for an actor of one's own: actor/NAME is, but for actor/audit, which signs the audit log"
    )]
    Identity(SpiffeId),
    /// No thread could be started.
    #[error("no thread could be started: {0}")]
    Thread(String),
}

/// An actor that is to be started: how it is made, what it hears, how its failures are met.
pub struct OwnActor<A> {
    make: Box<dyn FnMut() -> A + Send>,
    table: Table<A>,
    supervision: Supervision,
}

impl<A> std::fmt::Debug for OwnActor<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<u8> = self.table.keys().copied().collect();
        f.debug_struct("OwnActor").field("hears", &kinds).field("supervision", &self.supervision).finish()
    }
}

impl<A: Actor> OwnActor<A> {
    /// One that `make` makes: once, and again after each failure that is met by a restart.
    #[must_use]
    pub fn new(make: impl FnMut() -> A + Send + 'static) -> OwnActor<A> {
        OwnActor { make: Box::new(make), table: Table::new(), supervision: Supervision::default() }
    }

    /// It hears `M`. Of two handlers for one kind, the last counts.
    #[must_use]
    pub fn hears<M: Message>(mut self) -> OwnActor<A>
    where
        A: Handle<M>,
    {
        self.table.insert(M::KIND, Entry::Hears(serve::hears::<A, M>));
        self
    }

    /// It opens streams for `M`.
    #[must_use]
    pub fn flows<M: Message>(mut self) -> OwnActor<A>
    where
        A: Flows<M>,
    {
        self.table.insert(M::KIND, Entry::Flows(serve::flows::<A, M>));
        self
    }

    /// Its failures are met so.
    #[must_use]
    pub fn supervised(mut self, supervision: Supervision) -> OwnActor<A> {
        self.supervision = supervision;
        self
    }

    /// Starts it under `network`'s identity. Connections' tasks run on `runtime`.
    ///
    /// # Errors
    /// [`StoppedActor::Identity`] unless the identity is one for actors of one's own; [`StoppedActor::Thread`].
    pub fn start(
        self,
        network: Network,
        grants: Grants,
        runtime: Runtime,
    ) -> Result<RunningActor, StoppedActor> {
        let id = network.id().clone();
        if id.role() != testudo_transport::Role::Actor || is_reserved(&id) {
            return Err(StoppedActor::Identity(id));
        }
        let OwnActor { make, table, supervision } = self;
        let stop = watch::Sender::new(false);
        let (mailbox, inbox) = Mailbox::new(stop.subscribe(), runtime.clone());
        let address = network.local_addr().to_string();
        let caller = Caller::new(network.clone(), grants.clone(), runtime.clone());
        let serving = Serving { network: network.clone(), grants, table, mailbox, runtime: runtime.clone() };
        let body = Body { id: id.clone(), make, supervisor: Supervisor::new(supervision), caller };
        let spawned = std::thread::Builder::new().name(id.short().to_owned()).spawn(move || body.run(inbox));
        let thread = spawned.map_err(|error| StoppedActor::Thread(error.to_string()))?;
        runtime.spawn(async move {
            serve::accept(Arc::new(serving)).await;
            network.close("the actor has stopped").await;
        });
        Ok(RunningActor { id, address, thread: Some(thread), stop })
    }
}

/// An actor under way. Dropped, it is stopped in order and waited for.
pub struct RunningActor {
    id: SpiffeId,
    address: String,
    thread: Option<JoinHandle<Result<(), StoppedActor>>>,
    stop: watch::Sender<bool>,
}

impl std::fmt::Debug for RunningActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningActor")
            .field("id", &self.id)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl RunningActor {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where it is bound, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it has stopped.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it in order, once what lies in its mailbox is handled, and waits for that, whether or not the runtime of its connections is there
    /// still. Not to be called by a task of that runtime while a handler waits in a blocking call: neither would go on.
    ///
    /// # Errors
    /// [`StoppedActor::Failed`] if it had stopped so before.
    pub fn stop(mut self) -> Result<(), StoppedActor> {
        self.stop.send_replace(true);
        self.join()
    }

    /// Waits until it stops by itself.
    ///
    /// # Errors
    /// [`StoppedActor::Failed`].
    pub fn wait(mut self) -> Result<(), StoppedActor> {
        self.join()
    }

    fn join(&mut self) -> Result<(), StoppedActor> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let panicked = || StoppedActor::Failed { id: self.id.clone(), reason: "its thread panicked".into() };
        thread.join().unwrap_or_else(|_| Err(panicked()))
    }
}

impl Drop for RunningActor {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        let _ = self.join();
    }
}

/// What an actor's thread has.
struct Body<A> {
    id: SpiffeId,
    make: Box<dyn FnMut() -> A + Send>,
    supervisor: Supervisor,
    caller: Caller,
}

/// How one of an actor's lives ended.
enum Ended {
    InOrder,
    Failed(Failure, String),
}

impl<A: Actor> Body<A> {
    fn run(mut self, mut inbox: Inbox<A>) -> Result<(), StoppedActor> {
        let clock = Clock::start();
        let mut kept = None;
        loop {
            let (failure, reason) = match self.live(&mut kept, &mut inbox) {
                Ended::InOrder => return Ok(()),
                Ended::Failed(failure, reason) => (failure, printable(&reason, REASON)),
            };
            let strategy = self.supervisor.failed(clock.now(), failure);
            tracing::warn!(actor = %self.id, reason, ?strategy, "an actor failed");
            match strategy {
                Strategy::Resume => {}
                Strategy::Restart => drop(kept.take()),
                Strategy::Stop => return Err(StoppedActor::Failed { id: self.id, reason }),
            }
        }
    }

    /// Runs the actor that is kept, or a new one, until it fails or stops. One that panicked is not kept.
    fn live(&mut self, kept: &mut Option<A>, inbox: &mut Inbox<A>) -> Ended {
        let Body { id, make, caller, .. } = self;
        let stop = Cell::new(false);
        let mut now = kept.take();
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let mut begin = |id: &SpiffeId| {
                let mut actor = make();
                actor.started(&Context { sender: id, caller, stop: &stop }).map(|()| actor)
            };
            let actor = match now.take() {
                Some(actor) => now.insert(actor),
                None => match begin(id) {
                    Ok(actor) => now.insert(actor),
                    Err(reason) => return Err(reason),
                },
            };
            while !stop.get() {
                let Some(Letter { from, work, _room }) = inbox.next() else { break };
                work(actor, &Context { sender: &from, caller, stop: &stop })?;
            }
            actor.stopped();
            Ok(())
        }));
        match lived {
            Ok(Ok(())) => Ended::InOrder,
            Ok(Err(reason)) => {
                *kept = now;
                Ended::Failed(Failure::Said, reason)
            }
            Err(panic) => Ended::Failed(Failure::Panicked, said(panic.as_ref())),
        }
    }
}

/// What a panic says.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or("it panicked".into(), |text| format!("it panicked: {text}"))
}

//! A server's connections: who is served, their streams, and what can be answered without the actor.
//!
//! 1. Nobody is served but a worker with a lease, and of it only the process that the scheduler admitted. The connections of a former
//!    one are closed when the scheduler names another, or nobody: they take no places from it.
//! 2. What the store has is answered on the stream's own task; everything else is the core's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use testudo_kernels::Codec;
use testudo_observability::Span;
use testudo_transport::{
    Cause, CloseCode, Connection, Message, Outgoing, Payload, Receiver, Refusals, Role, SpiffeId, Who,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::active::{Active, Method, Side};
use crate::incarnation;
use crate::link::Network;
use crate::mailbox::Mailbox;
use crate::message::{
    Body, Hello, Membership, Pull, PullRefusal, PullRefused, Push, PushRefused, SliceVersion,
};
use crate::outbox::{Budget, Outbox};
use crate::placement::SliceId;
use crate::server::actor::{Mail, ServerActor};
use crate::server::allowances::Allowances;
use crate::server::traced::{Pushed, Run};
use crate::server::{Input, PushInput, Store, StoreMiss};

/// What a process is told whose leases are others' by now.
const MOVED: &str = "its leases have moved to others";

/// How long a worker that has connected may take to say who it is: it says so at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Where the answer to one request goes.
#[derive(Debug)]
pub struct ReplyTo {
    outbox: Outbox,
    request: u64,
    /// The trace that the request belongs to; its answer does too.
    trace: Option<[u8; 25]>,
    /// Whether a pull wants every bit.
    exact: bool,
    /// Keeps the request charged to its sender until it is answered.
    held: Option<Payload>,
    /// The request as it is shown in the trace of its step, if that is traced; ends with the answer.
    span: Option<Box<Span>>,
    /// Counted until it is answered.
    _active: Active,
}

impl ReplyTo {
    pub(super) fn answer<B: Body>(mut self, body: &B) {
        if let (PushRefused::KIND | PullRefused::KIND, Some(span)) = (B::KIND, &mut self.span) {
            span.fail("refused");
        }
        self.outbox.post(Outgoing::new(B::KIND, self.request, body.encode()).with_traceparent(self.trace));
    }
}

/// The workers that hold a lease in the present epoch, with their live incarnations: nobody else is served.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveWorkers(Arc<watch::Sender<BTreeMap<u32, [u8; 32]>>>);

impl LiveWorkers {
    pub(super) fn set(&self, membership: &Membership) {
        let leased: BTreeSet<u32> = membership.leases.iter().map(|lease| lease.worker).collect();
        let live = membership.workers.iter().filter(|w| leased.contains(&w.index));
        self.0.send_replace(live.map(|w| (w.index, w.commitment)).collect());
    }

    fn contains(&self, worker: u32) -> bool {
        self.0.borrow().contains_key(&worker)
    }

    fn is(&self, worker: u32, commitment: &[u8; 32]) -> bool {
        is_one_of(&self.0.borrow(), worker, commitment)
    }

    /// Until that process takes part no more.
    async fn left(&self, worker: u32, commitment: [u8; 32]) {
        let mut live = self.0.subscribe();
        // It ends with the server otherwise.
        let _ = live.wait_for(|live| !is_one_of(live, worker, &commitment)).await;
    }
}

fn is_one_of(live: &BTreeMap<u32, [u8; 32]>, worker: u32, commitment: &[u8; 32]) -> bool {
    live.get(&worker).is_some_and(|expected| incarnation::same(expected, commitment))
}

/// What the tasks of a server's connections share.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) network: Network,
    pub(super) store: Arc<Store>,
    pub(super) mailbox: Mailbox<ServerActor>,
    pub(super) runtime: Handle,
    pub(super) live: LiveWorkers,
    pub(super) run: Run,
    pub(super) allowances: Allowances,
    /// Workers of the job: nobody with a higher index can ever hold a lease.
    pub(super) workers: u32,
    pub(super) max_answers: usize,
    pub(super) max_bytes: usize,
}

impl Serving {
    pub(super) async fn accept(self) {
        while let Some(connection) = self.network.accept().await {
            self.runtime.spawn(self.clone().connection(connection));
        }
    }

    async fn connection(self, connection: Connection) {
        let peer = connection.peer().clone();
        let Some(worker) = worker_index(&peer).filter(|index| self.live.contains(*index)) else {
            let what = "servers serve workers that hold a lease";
            // One that may come to hold a lease may only be early, or late.
            if worker_index(&peer).is_some_and(|index| index < self.workers) {
                connection.close(CloseCode::Policy.number(), what);
            } else {
                connection.blame(Cause::Request, CloseCode::Policy, what);
            }
            return;
        };
        // The first word says which process this is; until then, no other stream is heard.
        let Some((first, shown)) = greeted(&connection, self.network.refusals()).await else { return };
        if !self.live.is(worker, &shown) {
            if let Some(left_out) = self.network.refusals().count(Cause::Incarnation, Who::node(&peer)) {
                tracing::warn!(%peer, left_out, "another incarnation of it takes part; this one is not served");
            }
            connection
                .close(CloseCode::Admission.number(), "another incarnation of this identity takes part");
            return;
        }
        tracing::info!(%peer, "connected");
        let budget = Budget::new(self.max_answers, self.max_bytes);
        let mut next = Some(first);
        while let Some((sender, receiver)) = next {
            let outbox = Outbox::new(connection.clone(), sender, budget.clone(), &self.runtime);
            let (serving, connection) = (self.clone(), connection.clone());
            let stream = Stream { serving, connection: connection.clone(), worker, shown, outbox };
            self.runtime.spawn(stream.run(receiver));
            next = tokio::select! {
                accepted = connection.accept() => accepted.ok(),
                () = self.live.left(worker, shown) => {
                    connection.close(CloseCode::Policy.number(), MOVED);
                    None
                }
            };
        }
        tracing::info!(%peer, "disconnected");
    }
}

/// Hears the first word on the first stream of a worker's connection; the commitment to what it shows. A peer that says
/// something else, or nothing for too long, is cut off and counted. It may be somebody who has a worker's key alone, so nothing
/// of it is held against the worker.
async fn greeted(
    connection: &Connection,
    refusals: &Refusals,
) -> Option<((testudo_transport::Sender, Receiver), [u8; 32])> {
    let word = async {
        let (sender, mut receiver) = connection.accept().await.ok()?;
        let message = receiver.recv().await.ok()?;
        let hello = message.filter(|m| m.kind == Hello::KIND).and_then(|m| Hello::decode(&m.body).ok());
        Some(hello.map(|hello| ((sender, receiver), hello.secret.commitment())))
    };
    let (cause, code, what) = match tokio::time::timeout(HELLO_PATIENCE, word).await {
        Ok(Some(Some(greeted))) => return Some(greeted),
        Ok(Some(None)) => (Cause::Message, CloseCode::Policy, "the first word to a server is a hello"),
        Err(_) => (Cause::Late, CloseCode::Stalled, "no hello came"),
        // The connection has ended already.
        Ok(None) => return None,
    };
    let peer = connection.peer();
    if let Some(left_out) = refusals.count(cause, Who::node(peer)) {
        tracing::warn!(%peer, what, left_out, "a worker that is not served");
    }
    connection.close(code.number(), what);
    None
}

fn worker_index(peer: &SpiffeId) -> Option<u32> {
    matches!(peer.role(), Role::Worker | Role::Peer).then(|| peer.index()).flatten()
}

struct Stream {
    serving: Serving,
    connection: Connection,
    worker: u32,
    /// The commitment of the process at the other end.
    shown: [u8; 32],
    outbox: Outbox,
}

impl Stream {
    async fn run(self, mut receiver: Receiver) {
        loop {
            let message = match receiver.recv().await {
                Ok(Some(_)) if !self.serving.live.is(self.worker, &self.shown) => {
                    self.connection.close(CloseCode::Policy.number(), MOVED);
                    return;
                }
                Ok(Some(_)) if !self.serving.allowances.take(self.worker) => {
                    let what = "asks for more than its work can need";
                    self.connection.blame(Cause::Flood, CloseCode::Credit, what);
                    return;
                }
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(error) => {
                    // The connection's end is logged once; this is as many lines as it had streams.
                    tracing::debug!(%error, "a worker's stream ended");
                    return;
                }
            };
            match self.request(message) {
                Ok(None) => {}
                Ok(Some(mail)) => {
                    if self.serving.mailbox.deliver(mail).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let who = Who::node(self.connection.peer());
                    if let Some(left_out) = self.serving.network.refusals().count(Cause::Message, who) {
                        tracing::warn!(worker = self.worker, error, left_out, "malformed request");
                    }
                    self.connection.close(CloseCode::Framing.number(), "malformed request");
                    return;
                }
            }
        }
    }

    /// Answers what the store can answer; the rest is for the core.
    fn request(&self, message: Message) -> Result<Option<Mail>, String> {
        let (request, worker, outbox) = (message.envelope.request, self.worker, self.outbox.clone());
        let trace = message.envelope.traceparent;
        let input = match message.kind {
            Pull::KIND => {
                let pull = Pull::decode(&message.body).map_err(|e| e.to_string())?;
                let span = self.serving.run.pulled(&message, &pull);
                let (exact, held) = (pull.exact, Some(message.payload));
                let active = Active::begin(Side::Server, Method::Pull);
                let reply = ReplyTo { outbox, request, trace, exact, held, span, _active: active };
                if self.serving.store.may_answer(pull.slice, pull.version) {
                    answer_pull(&self.serving.store, reply, pull.slice, pull.version);
                    return Ok(None);
                }
                // What waits is bounded by the core, for each slice and worker; were it to hold credit as well, waiting
                // pulls could take the credit of the very pushes that they wait for.
                let reply = ReplyTo { held: None, ..reply };
                Input::Pull { worker, reply, pull }
            }
            Push::KIND => {
                let push = Push::decode(&message.body).map_err(|e| e.to_string())?;
                let span = self.serving.run.pushed(&message, &push);
                let place = span.as_deref().map(Span::place);
                let active = Active::begin(Side::Server, Method::Push);
                let reply =
                    ReplyTo { outbox, request, trace, exact: false, held: None, span, _active: active };
                Input::Push(PushInput {
                    worker,
                    reply,
                    push,
                    bytes: message.payload.len() as u64,
                    values: Pushed { values: message.payload, place },
                    digest: message.payload_hash,
                })
            }
            other => return Err(format!("kind {other} makes no sense to a server")),
        };
        Ok(Some(Mail::Input(input)))
    }
}

pub(super) fn answer_pull(store: &Store, reply: ReplyTo, slice: SliceId, version: u64) {
    let (read, codec) = match reply.exact {
        true => (store.read_exact(slice, version), Codec::F32),
        false => (store.read(slice, version).map(|(bytes, hash)| (bytes, Some(hash))), store.codec()),
    };
    match read {
        Ok((bytes, payload_hash)) => {
            let body = SliceVersion { slice, version, codec: codec.id() };
            let message = Outgoing {
                payload_hash,
                ..Outgoing::new(SliceVersion::KIND, reply.request, body.encode())
                    .with_payload(bytes)
                    .with_traceparent(reply.trace)
            };
            let held: Option<Box<dyn Send>> = reply.held.map(|p| Box::new(p) as Box<dyn Send>);
            reply.outbox.post_holding(message, held);
        }
        // The core answers only versions that are there; one that has just gone is refused as such.
        Err(StoreMiss::Refused(reason)) => reply.answer(&PullRefused { reason }),
        Err(StoreMiss::Next) => {
            let reason = PullRefusal::NotYetPossible { version: version.saturating_sub(1) };
            reply.answer(&PullRefused { reason });
        }
    }
}

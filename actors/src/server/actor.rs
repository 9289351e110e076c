//! The server's shell: connections in, replies out, arithmetic on its own thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler};
use testudo_kernels::Codec;
use testudo_transport::{
    Cause, CloseCode, Connection, Identity, Message, Outgoing, Payload, Receiver, Role, SpiffeId, Who,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::checkpoint::{PartSource, PartWriter};
use crate::countersign::Countersigner;
use crate::hear::{Heard, hear};
use crate::incarnation;
use crate::job::JobSpec;
use crate::link::Network;
use crate::mailbox::{Letter, Mailbox};
use crate::message::{
    AuditHead, Body, CheckpointOrder, CheckpointPart, Failure, HashOrder, Heartbeat, Hello, Membership,
    ParameterPieces, PartOutcome, Pull, PullRefused, Push, PushAccepted, PushRefused, Ready, Revocations,
    Shutdown, SliceVersion,
};
use crate::node::NodeError;
use crate::outbox::{Budget, Outbox};
use crate::placement::SliceId;
use crate::server::compute::{self, Checkpointing, Work};
use crate::server::writer;
use crate::server::{Effect, Input, PushInput, ServerCore, SliceMath, Store};
use crate::time::Clock;

/// Answers that may wait for one worker beside two for each slice: refusals and acknowledgements of duplicates.
const SPARE_ANSWERS: usize = 1024;

/// How long a worker that has connected may take to say who it is: it says so at once.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// Where the answer to one request goes.
#[derive(Debug)]
pub struct ReplyTo {
    outbox: Outbox,
    request: u64,
    /// The trace that the request belongs to; its answer does too.
    trace: Option<[u8; 25]>,
    /// Keeps the request charged to its sender until it is answered.
    held: Option<Payload>,
}

impl ReplyTo {
    fn answer<B: Body>(self, body: &B) {
        self.outbox.post(Outgoing::new(B::KIND, self.request, body.encode()).with_traceparent(self.trace));
    }
}

/// The workers that hold a lease in the present epoch, with their live incarnations: nobody else is served.
#[derive(Clone, Debug, Default)]
struct LiveWorkers(Arc<RwLock<BTreeMap<u32, [u8; 32]>>>);

impl LiveWorkers {
    fn set(&self, membership: &Membership) {
        let leased: BTreeSet<u32> = membership.leases.iter().map(|lease| lease.worker).collect();
        let live = membership.workers.iter().filter(|w| leased.contains(&w.index));
        let live = live.map(|w| (w.index, w.commitment)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = live;
    }

    fn contains(&self, worker: u32) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&worker)
    }

    fn is(&self, worker: u32, commitment: &[u8; 32]) -> bool {
        let live = self.0.read().unwrap_or_else(PoisonError::into_inner);
        live.get(&worker).is_some_and(|expected| incarnation::same(expected, commitment))
    }
}

/// What comes to the actor.
#[derive(Debug)]
pub enum Mail {
    /// For the core.
    Input(Input<ReplyTo, Payload>),
    /// From the scheduler.
    Scheduler(Message),
    /// The connection to the scheduler has ended.
    SchedulerGone(String),
    /// What has become of this server's part of a checkpoint.
    Part(CheckpointPart),
    /// What it keeps of a version, for the hash of all parameters.
    Pieces(ParameterPieces),
    /// The arithmetic cannot go on.
    Fatal(String),
}

/// The actix shell of a [`ServerCore`].
pub struct ServerActor {
    core: ServerCore<ReplyTo, Payload>,
    clock: Clock,
    store: Arc<Store>,
    math: Option<SliceMath>,
    job: Arc<JobSpec>,
    source: Option<Box<dyn PartSource>>,
    writer: Option<Box<dyn PartWriter>>,
    work: Option<mpsc::Sender<Work>>,
    runtime: Handle,
    network: Network,
    countersigner: Countersigner,
    scheduler: Outbox,
    from_scheduler: Option<Receiver>,
    live: LiveWorkers,
    max_answers: usize,
    max_bytes: usize,
    /// What this server does, in the trace of the run.
    serving: tracing::Span,
    follows_run: bool,
    over: Option<oneshot::Sender<Result<(), NodeError>>>,
}

impl std::fmt::Debug for ServerActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerActor").field("core", &self.core).finish_non_exhaustive()
    }
}

/// What a server's shell is made of.
pub struct ServerParts {
    /// The decisions.
    pub core: ServerCore<ReplyTo, Payload>,
    /// The arithmetic.
    pub math: SliceMath,
    /// The job.
    pub job: Arc<JobSpec>,
    /// What the slices begin with, if not with the seed.
    pub source: Option<Box<dyn PartSource>>,
    /// Where parts of checkpoints go, if the job wants any.
    pub writer: Option<Box<dyn PartWriter>>,
    /// The versions, shared with the arithmetic.
    pub store: Arc<Store>,
    /// Slices that this server keeps.
    pub slices: usize,
    /// Their bytes in all.
    pub bytes: usize,
    /// Where it is dialled.
    pub network: Network,
    /// What it signs with.
    pub identity: Arc<Identity>,
    /// To the scheduler.
    pub scheduler: Outbox,
    /// From the scheduler.
    pub from_scheduler: Receiver,
    /// Where connections' tasks run.
    pub runtime: Handle,
}

impl std::fmt::Debug for ServerParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerParts").field("slices", &self.slices).finish_non_exhaustive()
    }
}

impl ServerActor {
    /// A shell; `over` is told how it ended.
    #[must_use]
    pub fn new(parts: ServerParts, over: oneshot::Sender<Result<(), NodeError>>) -> ServerActor {
        ServerActor {
            core: parts.core,
            clock: Clock::start(),
            store: parts.store,
            math: Some(parts.math),
            job: parts.job,
            source: parts.source,
            writer: parts.writer,
            work: None,
            runtime: parts.runtime,
            network: parts.network,
            countersigner: Countersigner::new(parts.identity),
            scheduler: parts.scheduler,
            from_scheduler: Some(parts.from_scheduler),
            live: LiveWorkers::default(),
            max_answers: parts.slices * 2 + SPARE_ANSWERS,
            max_bytes: parts.bytes,
            serving: tracing::info_span!("serve"),
            follows_run: false,
            over: Some(over),
        }
    }

    fn drive(&mut self, context: &mut Context<Self>, input: Input<ReplyTo, Payload>) {
        self.core.handle(self.clock.now(), input);
        while let Some(effect) = self.core.poll() {
            self.carry_out(context, effect);
        }
    }

    fn carry_out(&mut self, context: &mut Context<Self>, effect: Effect<ReplyTo, Payload>) {
        match effect {
            Effect::Initialise => self.work(context, Work::Initialise),
            Effect::Store { slice, step, node, values } => {
                self.work(context, Work::Store { slice, step, node, values });
            }
            Effect::Accept { reply, duplicate } => reply.answer(&PushAccepted { duplicate }),
            Effect::RefusePush { reply, worker, reason } => {
                let who = Who::Node(format!("worker/{worker}"));
                if let Some(left_out) = self.network.refusals().count(Cause::Request, who) {
                    tracing::warn!(worker, %reason, left_out, "refused a push");
                }
                reply.answer(&PushRefused { reason });
            }
            Effect::Answer { reply, slice, version } => answer_pull(&self.store, reply, slice, version),
            Effect::RefusePull { reply, reason } => reply.answer(&PullRefused { reason }),
            Effect::Ready { epoch } => self.tell(&Ready { epoch }),
            Effect::Heartbeat(heartbeat) => {
                self.tell(&Heartbeat { load: self.network.load(), ..heartbeat });
                if let Some(report) = self.network.refusal_report() {
                    self.tell(&report);
                }
            }
        }
    }

    fn start_threads(&mut self, mailbox: &Mailbox<ServerActor>) -> std::io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        self.work = Some(sender);
        let Some(math) = self.math.take() else { return Ok(()) };
        let mut checkpointing =
            Checkpointing { job: Arc::clone(&self.job), source: self.source.take(), snapshots: None };
        if let Some(writer) = self.writer.take() {
            let (snapshots, waiting) = mpsc::sync_channel(writer::WAITING);
            writer::start(writer, waiting, mailbox.clone(), self.runtime.clone())?;
            checkpointing.snapshots = Some(snapshots);
        }
        compute::start(math, checkpointing, receiver, mailbox.clone(), self.runtime.clone())?;
        Ok(())
    }

    fn tell<B: Body>(&self, body: &B) {
        self.scheduler.post(Outgoing::new(B::KIND, 0, body.encode()));
    }

    fn work(&mut self, context: &mut Context<Self>, work: Work) {
        if self.work.as_ref().is_none_or(|queue| queue.send(work).is_err()) {
            self.end(context, Err(NodeError::Bug("the compute thread has ended".into())));
        }
    }

    fn end(&mut self, context: &mut Context<Self>, result: Result<(), NodeError>) {
        if let Some(over) = self.over.take() {
            let _ = over.send(result);
        }
        actix::ActorContext::stop(context);
    }

    fn order(&mut self, context: &mut Context<Self>, message: &Message) -> Result<(), String> {
        match message.kind {
            Membership::KIND => {
                let membership = Membership::decode(&message.body).map_err(|e| e.to_string())?;
                tracing::info!(epoch = membership.epoch, leases = membership.leases.len(), "membership");
                if !self.follows_run
                    && let Some(run) = message.envelope.traceparent
                {
                    self.follows_run = true;
                    self.serving = tracing::info_span!(parent: None, "serve");
                    // Without OpenTelemetry there is no parent to set; the span is then a root.
                    let _ = testudo_observability::set_remote_parent(&self.serving, run);
                }
                self.live.set(&membership);
                self.drive(context, Input::Membership(membership));
            }
            CheckpointOrder::KIND => {
                let CheckpointOrder { version } =
                    CheckpointOrder::decode(&message.body).map_err(|e| e.to_string())?;
                self.work(context, Work::Checkpoint { version });
            }
            HashOrder::KIND => {
                let HashOrder { version } = HashOrder::decode(&message.body).map_err(|e| e.to_string())?;
                self.work(context, Work::Hash { version });
            }
            Revocations::KIND => crate::revoke::passed_on(&self.network, &message.body)?,
            AuditHead::KIND => {
                let shown = AuditHead::decode(&message.body).map_err(|e| e.to_string())?;
                let signed = self.countersigner.sign(&shown)?;
                self.tell(&signed);
            }
            Shutdown::KIND => {
                let shutdown = Shutdown::decode(&message.body).map_err(|e| e.to_string())?;
                tracing::info!(reason = shutdown.reason, "leaving");
                self.end(context, Ok(()));
            }
            other => return Err(format!("kind {other} makes no sense to a server")),
        }
        Ok(())
    }
}

impl Actor for ServerActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let mailbox = Mailbox::new(context.address());
        if let Err(error) = self.start_threads(&mailbox) {
            return self
                .end(context, Err(NodeError::Environment(format!("no thread could be started: {error}"))));
        }
        if let Some(receiver) = self.from_scheduler.take() {
            self.runtime.spawn(hear(receiver, mailbox.clone(), from_scheduler));
        }
        let serving = Serving {
            network: self.network.clone(),
            store: Arc::clone(&self.store),
            mailbox: mailbox.clone(),
            runtime: self.runtime.clone(),
            live: self.live.clone(),
            max_answers: self.max_answers,
            max_bytes: self.max_bytes,
        };
        self.runtime.spawn(serving.accept());
        tick(self, context);
    }
}

fn tick(actor: &mut ServerActor, context: &mut Context<ServerActor>) {
    let now = actor.clock.now();
    let wait = actor.core.poll_timeout().map_or(std::time::Duration::from_secs(1), |at| at.since(now));
    context.run_later(wait.max(std::time::Duration::from_millis(1)), |actor, context| {
        let serving = actor.serving.clone();
        serving.in_scope(|| actor.drive(context, Input::Tick));
        tick(actor, context);
    });
}

impl Handler<Letter<Mail>> for ServerActor {
    type Result = ();

    fn handle(&mut self, letter: Letter<Mail>, context: &mut Context<Self>) {
        let serving = self.serving.clone();
        let _inside = serving.enter();
        match letter.mail {
            Mail::Input(input) => self.drive(context, input),
            Mail::Scheduler(message) => {
                if let Err(what) = self.order(context, &message) {
                    self.end(context, Err(NodeError::Scheduler(what)));
                }
            }
            Mail::SchedulerGone(why) => self.end(context, Err(NodeError::SchedulerLost(why))),
            Mail::Part(part) => {
                if part.outcome != PartOutcome::Skipped {
                    self.work(context, Work::Written);
                }
                self.tell(&part);
            }
            Mail::Pieces(pieces) => self.tell(&pieces),
            Mail::Fatal(reason) => {
                tracing::error!(reason, "cannot go on");
                self.tell(&Failure { reason });
            }
        }
    }
}

fn from_scheduler(heard: Heard) -> Mail {
    match heard {
        Ok(message) => Mail::Scheduler(message),
        Err(why) => Mail::SchedulerGone(why),
    }
}

/// What the tasks of a server's connections share.
#[derive(Clone)]
struct Serving {
    network: Network,
    store: Arc<Store>,
    mailbox: Mailbox<ServerActor>,
    runtime: Handle,
    live: LiveWorkers,
    max_answers: usize,
    max_bytes: usize,
}

impl Serving {
    async fn accept(self) {
        while let Some(connection) = self.network.accept().await {
            self.runtime.spawn(self.clone().connection(connection));
        }
    }

    async fn connection(self, connection: Connection) {
        let peer = connection.peer().clone();
        let Some(worker) = worker_index(&peer).filter(|index| self.live.contains(*index)) else {
            connection.close(CloseCode::Policy.number(), "servers serve workers that hold a lease");
            return;
        };
        // The first word says which process this is; until then, no other stream is heard.
        let Some((first, shown)) = greeted(&connection).await else { return };
        if !self.live.is(worker, &shown) {
            self.network.refusals().count(Cause::Incarnation, Who::node(&peer));
            tracing::warn!(%peer, "another incarnation of it takes part; this one is not served");
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
            next = connection.accept().await.ok();
        }
        tracing::info!(%peer, "disconnected");
    }
}

/// Hears the first word on the first stream of a worker's connection; the commitment to what it shows. A peer that says
/// something else, or nothing for too long, is cut off.
async fn greeted(connection: &Connection) -> Option<((testudo_transport::Sender, Receiver), [u8; 32])> {
    let word = async {
        let (sender, mut receiver) = connection.accept().await.ok()?;
        let message = receiver.recv().await.ok()??;
        let hello = (message.kind == Hello::KIND).then(|| Hello::decode(&message.body).ok()).flatten()?;
        Some(((sender, receiver), hello.secret.commitment()))
    };
    match tokio::time::timeout(HELLO_PATIENCE, word).await {
        Ok(Some(greeted)) => Some(greeted),
        Ok(None) => {
            connection.close(CloseCode::Policy.number(), "the first word to a server is a hello");
            None
        }
        Err(_) => {
            connection.close(CloseCode::Stalled.number(), "no hello came");
            None
        }
    }
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
                    self.connection.close(CloseCode::Policy.number(), "its leases have moved to others");
                    return;
                }
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(%error, "a worker's stream ended");
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
                    self.serving.network.refusals().count(Cause::Message, Who::node(self.connection.peer()));
                    tracing::warn!(worker = self.worker, error, "malformed request");
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
                let reply = ReplyTo { outbox, request, trace, held: Some(message.payload) };
                if self.serving.store.read(pull.slice, pull.version).is_ok() {
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
                let reply = ReplyTo { outbox, request, trace, held: None };
                Input::Push(PushInput {
                    worker,
                    reply,
                    push,
                    bytes: message.payload.len() as u64,
                    values: message.payload,
                    digest: message.payload_hash,
                })
            }
            other => return Err(format!("kind {other} makes no sense to a server")),
        };
        Ok(Some(Mail::Input(input)))
    }
}

fn answer_pull(store: &Store, reply: ReplyTo, slice: SliceId, version: u64) {
    match store.read(slice, version) {
        Ok((bytes, hash)) => {
            let body = SliceVersion { slice, version, codec: Codec::F32.id() };
            let message = Outgoing {
                payload_hash: Some(hash),
                ..Outgoing::new(SliceVersion::KIND, reply.request, body.encode())
                    .with_payload(bytes)
                    .with_traceparent(reply.trace)
            };
            let held: Option<Box<dyn Send>> = reply.held.map(|p| Box::new(p) as Box<dyn Send>);
            reply.outbox.post_holding(message, held);
        }
        Err(_) => {
            // The core answers only versions that are there; one that has just gone is refused as such.
            let reason = crate::message::PullRefusal::Gone { version: version.saturating_add(2) };
            reply.answer(&PullRefused { reason });
        }
    }
}

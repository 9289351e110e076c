//! The worker's shell: lanes to servers, a stream to the scheduler, arithmetic on its own thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler};
use testudo_observability::setup::LOG_ONLY;
use testudo_transport::{CloseCode, Connection, Error, Identity, Outgoing, Receiver, Role};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use self::inbox::{Asked, Request};
use self::traced::Traced;
use crate::active::{Active, Method, Side};
use crate::checkpoint::{PartSource, PartWriter};
use crate::contributions::{self, Pushed};
use crate::countersign::Countersigner;
use crate::hear::hear;
use crate::incarnation::Secret;
use crate::job::JobSpec;
use crate::link::Network;
use crate::mailbox::{Letter, Mailbox};
use crate::message::{
    Body, Contributions, Failure, Given, Heartbeat, NodeDone, PartOutcome, Pull, Push, ServerMember,
    Testimony, Unreachable,
};
use crate::node::NodeError;
use crate::numbers;
use crate::outbox::Outbox;
use crate::placement::SliceId;
use crate::signer::Signer;
use crate::time::Clock;
use crate::worker::dial::Dialling;
use crate::worker::thread::{self, Checkpointing, Work};
use crate::worker::{Effect, Input, ShardCompute, WorkerCore, writer};

mod inbox;
mod mail;
mod traced;

pub use self::mail::{Mail, Values};
pub(super) use traced::NODE;

/// Gradient slices that may be under way to servers at a time: enough to keep every stream busy, and 32 MiB at most with
/// slices of the default size.
pub(super) const SLICES_IN_FLIGHT: usize = 32;

/// What a worker's shell is made of.
pub struct WorkerParts {
    /// The job.
    pub job: Arc<JobSpec>,
    /// Which worker it is.
    pub index: u32,
    /// The decisions.
    pub core: WorkerCore<Values>,
    /// The arithmetic.
    pub compute: ShardCompute,
    /// The checkpoint to begin with, if it holds residuals.
    pub source: Option<Box<dyn PartSource>>,
    /// Where residuals go, if the job keeps any.
    pub writer: Option<Box<dyn PartWriter>>,
    /// How many parameters the model has.
    pub parameters: usize,
    /// Streams to each server, by priority: the first layers' slices overtake the last layers', because the next step
    /// needs them first and they are computed last.
    pub lanes: u32,
    /// How many slices it has.
    pub slices: usize,
    /// What it dials with.
    pub network: Network,
    /// What it signs with.
    pub identity: Arc<Identity>,
    /// What shows servers that it is the process that joined.
    pub secret: Secret,
    /// To the scheduler.
    pub scheduler: Outbox,
    /// From the scheduler.
    pub from_scheduler: Receiver,
    /// Where connections' tasks run.
    pub runtime: Handle,
}

impl std::fmt::Debug for WorkerParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerParts").field("core", &self.core).finish_non_exhaustive()
    }
}

/// The actix shell of a [`WorkerCore`].
pub struct WorkerActor {
    job: Arc<JobSpec>,
    core: WorkerCore<Values>,
    clock: Clock,
    index: u32,
    compute: Option<ShardCompute>,
    source: Option<Box<dyn PartSource>>,
    writer: Option<Box<dyn PartWriter>>,
    work: Option<mpsc::Sender<Work>>,
    parameters: usize,
    lanes: u32,
    slices: usize,
    network: Network,
    signer: Signer,
    pushed: Pushed,
    countersigner: Countersigner,
    secret: Secret,
    scheduler: Outbox,
    from_scheduler: Option<Receiver>,
    runtime: Handle,
    expected: usize,
    servers: BTreeMap<u32, (Connection, Vec<Outbox>)>,
    /// Servers that are being dialled; with this, nobody dials any more.
    dialling: JoinSet<()>,
    /// By request number.
    asked: HashMap<u64, Request>,
    next_request: u64,
    reported: (u64, u64),
    /// The step under way, for lines of the log.
    step: tracing::Span,
    traced: Traced,
    over: Option<oneshot::Sender<Result<(), NodeError>>>,
}

impl std::fmt::Debug for WorkerActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerActor").field("core", &self.core).finish_non_exhaustive()
    }
}

impl WorkerActor {
    /// A shell; `over` is told how it ended.
    #[must_use]
    pub fn new(parts: WorkerParts, over: oneshot::Sender<Result<(), NodeError>>) -> WorkerActor {
        WorkerActor {
            job: parts.job,
            core: parts.core,
            clock: Clock::start(),
            index: parts.index,
            compute: Some(parts.compute),
            source: parts.source,
            writer: parts.writer,
            work: None,
            parameters: parts.parameters,
            lanes: parts.lanes,
            slices: parts.slices,
            network: parts.network,
            countersigner: Countersigner::default(),
            signer: Signer::new(parts.identity),
            pushed: Pushed::default(),
            secret: parts.secret,
            scheduler: parts.scheduler,
            from_scheduler: Some(parts.from_scheduler),
            runtime: parts.runtime,
            expected: 0,
            servers: BTreeMap::new(),
            dialling: JoinSet::new(),
            asked: HashMap::new(),
            next_request: 1,
            reported: (0, 0),
            step: tracing::info_span!("begin"),
            traced: Traced::default(),
            over: Some(over),
        }
    }

    fn drive(&mut self, context: &mut Context<Self>, input: Input<Values>) {
        if let Err(error) = self.core.handle(self.clock.now(), input) {
            return self.fatal(error.to_string());
        }
        while let Some(effect) = self.core.poll() {
            self.carry_out(context, effect);
        }
    }

    fn carry_out(&mut self, context: &mut Context<Self>, effect: Effect<Values>) {
        match effect {
            Effect::Connect(servers) => self.connect(context, servers),
            Effect::Push { server, push, values } => {
                let Push { step, node, slice, .. } = push;
                let Values::Gradient(bytes, permit) = values else { return };
                let span = self.traced.push(step, (server, slice), bytes.len());
                let (trace, sending) = match span.as_deref() {
                    Some(span) => (span.context(), Some(span.place().begin(NODE, "send"))),
                    None => (self.traced.run(), None),
                };
                let request = self.ask(server, Asked::Push { step, node, slice }, span);
                // Hashed once: for the MAC, and for what this worker signs of its step.
                let hash = *blake3::hash(&bytes).as_bytes();
                self.pushed.add(step, node, slice, hash);
                let message = Outgoing::new(Push::KIND, request, push.encode()).with_payload(bytes);
                let message = Outgoing { payload_hash: Some(hash), ..message }.with_traceparent(trace);
                let held: Box<dyn Send> = match sending {
                    Some(sending) => Box::new((permit, sending)),
                    None => Box::new(permit),
                };
                self.post(server, slice, message, Some(held));
            }
            Effect::Pull { server, pull } => {
                let Pull { slice, version, .. } = pull;
                let span = self.traced.pull(version, (server, slice));
                let trace = span.as_deref().map_or(self.traced.run(), testudo_observability::Span::context);
                let request = self.ask(server, Asked::Pull { slice, version }, span);
                let message = Outgoing::new(Pull::KIND, request, pull.encode());
                self.post(server, slice, message.with_traceparent(trace), None);
            }
            Effect::Install { slice, codec, values } => {
                if let Values::Arrived(values) = values {
                    self.work(context, Work::Install { slice, codec, values });
                }
            }
            Effect::InstallExact { slice, values } => {
                if let Values::Arrived(values) = values {
                    self.work(context, Work::InstallExact { slice, values });
                }
            }
            Effect::Adopt { version } => self.work(context, Work::Adopt { version }),
            Effect::Compute { step, nodes } => {
                self.step = tracing::info_span!(target: LOG_ONLY, parent: None, "step", step);
                let place = self.traced.begin(step, nodes.len());
                self.work(context, Work::Compute { step, nodes, place });
            }
            Effect::Evaluate(order) => self.work(context, Work::Evaluate(order)),
            Effect::Export(order) => self.work(context, Work::Export(order)),
            Effect::Differs { server, parameter, slice, step, node } => {
                let what =
                    "a worker that is lost contributed something else than this one computes in its place";
                tracing::warn!(%node, step, parameter, slice = slice.index, server, what);
            }
            Effect::Report(done) => {
                let (sent, received) = self.traffic();
                let done = NodeDone {
                    bytes_sent: sent - self.reported.0,
                    bytes_received: received - self.reported.1,
                    ..done
                };
                self.reported = (sent, received);
                tracing::debug!(step = done.step, "step done");
                self.traced.report(done.step);
                self.sign(&done);
                self.tell(&done);
            }
            Effect::Result(result) => self.tell(&result),
            Effect::Heartbeat(heartbeat) => {
                self.tell(&Heartbeat { load: self.network.load(), ..heartbeat });
                if let Some(report) = self.network.refusal_report() {
                    self.tell(&report);
                }
            }
        }
    }

    /// Signs what was pushed for the nodes of a report.
    fn sign(&mut self, done: &NodeDone) {
        let digest = self.pushed.take(done.step, done.nodes.iter().map(|n| n.node));
        match self.signer.sign(&contributions::signed_bytes(done.step, &digest)) {
            Ok((renewed, signature)) => {
                renewed.iter().for_each(|renewed| self.tell(renewed));
                let (count, blake3) = (digest.count, digest.blake3);
                self.tell(&Contributions { step: done.step, count, digest: blake3, signature });
            }
            Err(error) => tracing::error!(%error, step = done.step, "contributions are not signed"),
        }
    }

    /// Bytes sent to and received from servers; what the server of this very process is handed crosses no network.
    fn traffic(&self) -> (u64, u64) {
        let remote = self.servers.values().filter(|(c, _)| !self.network.is_beside(c.peer()));
        remote.map(|(c, _)| c.stats()).fold((0, 0), |(sent, received), stats| {
            (sent + stats.bytes_sent, received + stats.bytes_received)
        })
    }

    fn ask(&mut self, server: u32, asked: Asked, span: Option<Box<testudo_observability::Span>>) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        let method = match asked {
            Asked::Push { .. } => Method::Push,
            Asked::Pull { .. } => Method::Pull,
        };
        let active = Active::begin(Side::Worker, method);
        self.asked.insert(request, Request { server, asked, span, _active: active });
        request
    }

    /// The first layers' slices travel on the first lane.
    fn lane(&self, slice: SliceId) -> usize {
        slice.parameter as usize * self.lanes as usize / self.parameters.max(1)
    }

    fn post(&self, server: u32, slice: SliceId, message: Outgoing, held: Option<Box<dyn Send>>) {
        let lane = self.lane(slice);
        if let Some(outbox) = self.servers.get(&server).and_then(|(_, lanes)| lanes.get(lane)) {
            outbox.post_holding(message, held);
        }
    }

    fn tell<B: Body>(&self, body: &B) {
        let message = Outgoing::new(B::KIND, 0, body.encode());
        self.scheduler.post(message.with_traceparent(self.traced.run()));
    }

    /// With values as the payload.
    fn tell_values<B: Body>(&self, body: &B, values: Vec<f32>) {
        let message = Outgoing::new(B::KIND, 0, body.encode()).with_traceparent(self.traced.run());
        self.scheduler.post(message.with_payload(numbers::share(&Arc::new(values))));
    }

    fn work(&mut self, context: &mut Context<Self>, work: Work) {
        if self.work.as_ref().is_none_or(|queue| queue.send(work).is_err()) {
            self.end(context, Err(NodeError::Bug("the compute thread has ended".into())));
        }
    }

    /// Whether a server hung up because this node is trusted no longer, or asks, under its name, for more than its work can need.
    fn is_cut_off(&self, server: u32) -> bool {
        let for_cause = [CloseCode::Untrusted, CloseCode::Credit].map(CloseCode::number);
        matches!(self.how_ended(server), Some(Error::Closed { by_peer: true, code, .. }) if for_cause.contains(&code))
    }

    /// How the connection with a server ended, if there was one and it has.
    fn how_ended(&self, server: u32) -> Option<Error> {
        self.servers.get(&server).and_then(|(connection, _)| connection.ended())
    }

    /// A server that is not there, or is not there any more, or hangs, may be another time. One that this worker has hung up on, for what it
    /// said or because it is trusted no longer, or that has hung up on this worker for a fault, would do so again.
    fn cannot_reach(&mut self, server: u32, why: String) {
        let not_there = [CloseCode::Done, CloseCode::Busy, CloseCode::Stalled].map(CloseCode::number);
        let for_good = match self.how_ended(server) {
            Some(Error::Closed { code, .. }) => !not_there.contains(&code),
            Some(Error::Peer { fault, .. }) => fault.code() != CloseCode::Stalled,
            _ => false,
        };
        if for_good {
            return self.fatal(format!("server/{server} cannot be reached: {why}"));
        }
        tracing::error!(server, why, "a server cannot be reached");
        self.tell(&Unreachable { server, reason: why });
    }

    /// The operator hears of it through the scheduler, for whom this worker is lost.
    fn fatal(&mut self, reason: String) {
        tracing::error!(reason, "cannot go on");
        self.tell(&Failure { reason });
    }

    fn end(&mut self, context: &mut Context<Self>, result: Result<(), NodeError>) {
        self.dialling.abort_all();
        if let Some(over) = self.over.take() {
            let _ = over.send(result);
        }
        actix::ActorContext::stop(context);
    }

    fn start_threads(
        &mut self,
        work: mpsc::Receiver<Work>,
        mailbox: &Mailbox<WorkerActor>,
        in_flight: Arc<Semaphore>,
    ) -> std::io::Result<()> {
        let mut checkpointing = Checkpointing { source: self.source.take(), ..Checkpointing::default() };
        if let Some(parts) = self.writer.take() {
            let (sender, receiver) = mpsc::sync_channel(writer::WAITING);
            checkpointing.snapshots = Some(sender);
            writer::start(parts, self.index, receiver, mailbox.clone(), self.runtime.clone())?;
        }
        if let Some(compute) = self.compute.take() {
            let runtime = self.runtime.clone();
            thread::start(compute, checkpointing, work, mailbox.clone(), runtime, in_flight)?;
        }
        Ok(())
    }

    fn connect(&mut self, context: &mut Context<Self>, servers: Vec<ServerMember>) {
        self.expected = servers.len();
        let mailbox = Mailbox::new(context.address());
        for server in servers {
            let id = match self.job.member(Role::Server, server.index) {
                Ok(id) => id,
                Err(error) => return self.fatal(error.to_string()),
            };
            let dialling = Dialling {
                network: self.network.clone(),
                secret: self.secret.clone(),
                mailbox: mailbox.clone(),
                runtime: self.runtime.clone(),
                server,
                slices: self.slices,
                lanes: self.lanes,
                trace: self.step.in_scope(testudo_observability::current_traceparent).or(self.traced.run()),
            };
            self.dialling.spawn_on(dialling.run(id), &self.runtime);
        }
    }
}

impl Actor for WorkerActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let mailbox = Mailbox::new(context.address());
        let (sender, receiver) = mpsc::channel();
        self.work = Some(sender);
        let in_flight = Arc::new(Semaphore::new(SLICES_IN_FLIGHT));
        if let Err(error) = self.start_threads(receiver, &mailbox, in_flight) {
            return self
                .end(context, Err(NodeError::Environment(format!("no thread could be started: {error}"))));
        }
        if let Some(receiver) = self.from_scheduler.take() {
            self.runtime.spawn(hear(receiver, mailbox, mail::from_scheduler));
        }
        tick(self, context);
    }
}

fn tick(actor: &mut WorkerActor, context: &mut Context<WorkerActor>) {
    let now = actor.clock.now();
    let wait = actor.core.poll_timeout().map_or(Duration::from_secs(1), |at| at.since(now));
    context.run_later(wait.max(Duration::from_millis(1)), |actor, context| {
        let step = actor.step.clone();
        step.in_scope(|| actor.drive(context, Input::Tick));
        tick(actor, context);
    });
}

impl Handler<Letter<Mail>> for WorkerActor {
    type Result = ();

    fn handle(&mut self, letter: Letter<Mail>, context: &mut Context<Self>) {
        let step = self.step.clone();
        let _inside = step.enter();
        match letter.mail {
            Mail::Input(input) => self.drive(context, input),
            Mail::Connected { server, connection, lanes } => {
                self.servers.insert(server, (connection, lanes));
                if self.servers.len() == self.expected {
                    self.drive(context, Input::Connected);
                }
            }
            Mail::Answer { server, message } => {
                if let Err(what) = self.answer(context, server, message) {
                    self.fatal(format!("server/{server} misbehaved: {what}"));
                }
            }
            // A node that was revoked, or taken for a flood, is lost, and no reason for the run to end.
            Mail::ServerGone { server, why } if self.is_cut_off(server) => {
                self.end(context, Err(NodeError::Untrusted(why)));
            }
            Mail::ServerGone { server, why } => self.cannot_reach(server, why),
            Mail::Scheduler(message) => {
                if let Err(what) = self.order(context, &message) {
                    self.end(context, Err(NodeError::Scheduler(what)));
                }
            }
            Mail::SchedulerGone(why) => self.end(context, Err(NodeError::SchedulerLost(why))),
            Mail::Exported(exported) => self.tell(&exported),
            Mail::Testimony { step, node, values } => self.tell_values(&Testimony { step, node }, values),
            Mail::Given { version, values } => self.tell_values(&Given { version }, values),
            Mail::Residuals(part) => {
                if part.outcome != PartOutcome::Skipped {
                    self.work(context, Work::ResidualsWritten);
                }
                self.tell(&part);
            }
            Mail::Fatal(reason) => self.fatal(reason),
        }
    }
}

//! The server's shell: the scheduler's orders in, replies out, arithmetic on its own thread. Workers' connections are in serve.rs.

use std::sync::{Arc, mpsc};

use actix::{Actor, AsyncContext, Context, Handler};
use testudo_kernels::robust::weigh::Weights;
use testudo_transport::{Cause, Identity, Message, Outgoing, Receiver, Role, Who};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::checkpoint::{PartSource, PartWriter};
use crate::countersign::Countersigner;
use crate::hear::{Heard, hear};
use crate::job::JobSpec;
use crate::link::Network;
use crate::mailbox::{Letter, Mailbox};
use crate::message::{
    AuditHead, Body, CheckpointOrder, CheckpointPart, Failure, GradientProducts, GradientWeights, HashOrder,
    Heartbeat, Histograms, Load, Membership, ParameterPieces, PartOutcome, PullRefused, PushAccepted,
    PushRefused, Ready, Revocations, Shutdown,
};
use crate::node::{NodeError, dismissed};
use crate::outbox::Outbox;
use crate::server::allowances::Allowances;
use crate::server::compute::{self, Busy, Checkpointing, Work};
use crate::server::serve::{LiveWorkers, ReplyTo, Serving, answer_pull};
use crate::server::traced::{Pushed, Run};
use crate::server::writer;
use crate::server::{Effect, Input, ServerCore, SliceMath, Store, Updated};
use crate::signer::Signer;
use crate::time::Clock;

/// Answers that may wait for one worker beside two for each slice: refusals and acknowledgements of duplicates.
const SPARE_ANSWERS: usize = 1024;
/// Messages to the scheduler that may wait before histograms are left out: a part of what may wait in all.
const MOST_WAITING: usize = 256;
/// Bytes that the body of an answer takes at most.
const ANSWER: usize = 64;

/// What comes to the actor.
#[derive(Debug)]
pub enum Mail {
    /// For the core.
    Input(Input<ReplyTo, Pushed>),
    /// From the scheduler.
    Scheduler(Message),
    /// The connection to the scheduler has ended.
    SchedulerGone(String),
    /// What has become of this server's part of a checkpoint.
    Part(CheckpointPart),
    /// The inner products over its slices of what a step contributes, for the weights of that step.
    Products(u64, Vec<u8>),
    /// What it keeps of a version, for the hash of all parameters.
    Pieces(ParameterPieces),
    /// How the values of a version are spread, and what is given back when that was sent.
    Histograms(Histograms, Arc<()>),
    /// The arithmetic cannot go on.
    Fatal(String),
}

/// The actix shell of a [`ServerCore`].
pub struct ServerActor {
    core: ServerCore<ReplyTo, Pushed>,
    clock: Clock,
    store: Arc<Store>,
    math: Option<SliceMath>,
    job: Arc<JobSpec>,
    source: Option<Box<dyn PartSource>>,
    writer: Option<Box<dyn PartWriter>>,
    work: Option<mpsc::Sender<Work>>,
    busy: Busy,
    runtime: Handle,
    network: Network,
    countersigner: Countersigner,
    signer: Signer,
    scheduler: Outbox,
    from_scheduler: Option<Receiver>,
    live: LiveWorkers,
    allowances: Allowances,
    max_answers: usize,
    max_bytes: usize,
    /// What this server does, in the trace of the run.
    serving: tracing::Span,
    run: Run,
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
    pub core: ServerCore<ReplyTo, Pushed>,
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
        let allowances = Allowances::new(
            parts.slices,
            parts.job.slice_bytes,
            !parts.job.codecs.pull.is_lossless() && parts.job.evaluation.every_steps > 0,
        );
        let max_answers = parts.slices * 2 + SPARE_ANSWERS;
        ServerActor {
            core: parts.core,
            clock: Clock::start(),
            store: parts.store,
            math: Some(parts.math),
            job: parts.job,
            source: parts.source,
            writer: parts.writer,
            work: None,
            busy: Busy::default(),
            runtime: parts.runtime,
            network: parts.network,
            countersigner: Countersigner::default(),
            signer: Signer::new(parts.identity),
            scheduler: parts.scheduler,
            from_scheduler: Some(parts.from_scheduler),
            live: LiveWorkers::default(),
            allowances,
            max_answers,
            max_bytes: parts.bytes + max_answers * ANSWER,
            serving: tracing::info_span!("serve"),
            run: Run::default(),
            over: Some(over),
        }
    }

    fn drive(&mut self, context: &mut Context<Self>, input: Input<ReplyTo, Pushed>) {
        self.core.handle(self.clock.now(), input);
        while let Some(effect) = self.core.poll() {
            self.carry_out(context, effect);
        }
    }

    fn carry_out(&mut self, context: &mut Context<Self>, effect: Effect<ReplyTo, Pushed>) {
        match effect {
            Effect::Initialise => self.work(context, Work::Initialise),
            Effect::Store { slice, step, node, values } => {
                self.work(context, Work::Store { slice, step, node, values });
            }
            Effect::Accept { reply, duplicate } => reply.answer(&PushAccepted { duplicate }),
            Effect::RefusePush { reply, worker, reason } => {
                let who = Who::member(Role::Worker, worker);
                if let Some(left_out) = self.network.refusals().count(Cause::Request, who) {
                    tracing::warn!(worker, %reason, left_out, "refused a push");
                }
                reply.answer(&PushRefused { reason });
            }
            Effect::Answer { reply, slice, version } => answer_pull(&self.store, reply, slice, version),
            Effect::RefusePull { reply, reason } => reply.answer(&PullRefused { reason }),
            Effect::Ready { epoch, version } => self.tell(&Ready { epoch, version }),
            Effect::Heartbeat(heartbeat) => {
                let load = Load { busy_us: self.busy.micros(), ..self.network.load() };
                self.tell(&Heartbeat { load, ..heartbeat });
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
        let busy = self.busy.clone();
        compute::start(math, checkpointing, receiver, busy, mailbox.clone(), self.runtime.clone())?;
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
                if let Some(run) = message.envelope.traceparent
                    && self.run.tell(run)
                {
                    self.serving = tracing::info_span!(parent: None, "serve");
                    // Without OpenTelemetry there is no parent to set; the span is then a root.
                    let _ = testudo_observability::set_remote_parent(&self.serving, run);
                }
                // Allowances first: whoever is served has one.
                self.allowances.renew(&membership.leases);
                self.live.set(&membership);
                self.drive(context, Input::Membership(membership));
            }
            CheckpointOrder::KIND => {
                let CheckpointOrder { version } =
                    CheckpointOrder::decode(&message.body).map_err(|e| e.to_string())?;
                self.work(context, Work::Checkpoint { version });
            }
            GradientWeights::KIND => {
                let GradientWeights { step, weights, clip } =
                    GradientWeights::decode(&message.body).map_err(|e| e.to_string())?;
                let place = self.run.top(step);
                self.work(context, Work::Combine { step, weights: Weights { of: weights, clip }, place });
            }
            HashOrder::KIND => {
                let HashOrder { version } = HashOrder::decode(&message.body).map_err(|e| e.to_string())?;
                self.work(context, Work::Hash { version });
            }
            Revocations::KIND => crate::revoke::passed_on(&self.network, &message.body)?,
            AuditHead::KIND => {
                let shown = AuditHead::decode(&message.body).map_err(|e| e.to_string())?;
                let (renewed, signed) = self.countersigner.sign(&mut self.signer, &shown)?;
                renewed.iter().for_each(|renewed| self.tell(renewed));
                self.tell(&signed);
            }
            Shutdown::KIND => {
                let shutdown = Shutdown::decode(&message.body).map_err(|e| e.to_string())?;
                self.end(context, dismissed(shutdown));
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
            run: self.run.clone(),
            allowances: self.allowances.clone(),
            workers: self.job.most_workers(),
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
            Mail::Input(input) => {
                let updated = match &input {
                    Input::Stored { updated, .. } => updated.as_slice(),
                    Input::Combined { updated } => updated,
                    _ => &[],
                };
                for Updated { version, slices } in updated {
                    for slice in slices {
                        self.store.tell(*slice, *version);
                        self.allowances.earn();
                    }
                }
                self.drive(context, input);
            }
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
            Mail::Products(step, products) => {
                let body = GradientProducts { step }.encode();
                let message = Outgoing::new(GradientProducts::KIND, 0, body);
                self.scheduler.post(message.with_payload(products));
            }
            Mail::Pieces(pieces) => self.tell(&pieces),
            // Nothing depends on them: where a scheduler is behind, it gets what does.
            Mail::Histograms(told, until_sent) if self.scheduler.waiting() < MOST_WAITING => {
                let message = Outgoing::new(Histograms::KIND, 0, told.encode());
                self.scheduler.post_holding(message, Some(Box::new(until_sent)));
            }
            Mail::Histograms(..) => {}
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

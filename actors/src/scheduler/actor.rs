//! The scheduler's shell: members and operators in, orders and reports out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler};
use testudo_transport::{Cause, CloseCode, Connection, Crl, Message, Outgoing, Role, SpiffeId, Who};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::audited::Recorded;
use self::reporting::Follows;
use self::traced::Traced;
use crate::allowance::Allowance;
use crate::audit::{self, Base64, Entry, Hex};
use crate::checkpoint::{Commit, Committed};
use crate::job::SignedJob;
use crate::link::Network;
use crate::mailbox::{Letter, Mailbox};
use crate::message::{Answer, Body, HeadName, JoinRefused, Member, MemberRole, Outcome, Welcome};
use crate::outbox::Outbox;
use crate::scheduler::histograms::Collector;
use crate::scheduler::ledger;
use crate::scheduler::refusals::RefusalLog;
use crate::scheduler::{Effect, Input, Observer, SchedulerCore, ToMember};
use crate::time::Clock;

mod accept;
mod allowed;
mod audited;
mod expelled;
mod histograms;
mod inbox;
mod reporting;
mod traced;

pub use accept::order_bytes;

/// How long a scheduler whose run is over stays for members and operators that have not left yet.
const LINGER: Duration = Duration::from_secs(5);

/// How long a node that was turned away may take to read why, and leave.
const LAST_WORD: Duration = Duration::from_secs(2);

/// Operators that may be connected at a time: a launcher, a few people, a few programs that watch. Each report to each costs
/// the scheduler time that members wait for.
const MAX_OPERATORS: usize = 16;

/// What comes to the actor.
#[derive(Debug)]
pub enum Mail {
    /// A peer has opened a stream.
    Opened {
        /// The connection's number.
        link: u64,
        /// Who.
        peer: SpiffeId,
        /// The connection.
        connection: Connection,
        /// To it.
        outbox: Outbox,
    },
    /// A peer said something.
    Said {
        /// The connection's number.
        link: u64,
        /// What.
        message: Box<Message>,
    },
    /// A commit has ended.
    Committed {
        /// The checkpoint's step.
        step: u64,
        /// How.
        result: Result<Committed, String>,
    },
    /// A peer's connection has ended.
    Gone {
        /// The connection's number.
        link: u64,
        /// Why.
        reason: String,
    },
}

#[derive(Debug)]
struct Link {
    peer: SpiffeId,
    connection: Connection,
    outbox: Outbox,
    follows: Option<Follows>,
    recorded: Recorded,
    /// Whether it was turned away, and has only to read why.
    refused: bool,
    /// With which it signs since it said so.
    renewed: Option<Vec<u8>>,
    /// What a worker may still say of its work.
    allowance: Allowance,
}

impl Link {
    /// The certificate (DER) that the peer's signatures are checked with; there is none in memory.
    fn certificate(&self) -> Option<&[u8]> {
        self.renewed.as_deref().or_else(|| self.connection.peer_certificate())
    }
}

/// The actix shell of a [`SchedulerCore`].
pub struct SchedulerActor {
    core: SchedulerCore<u64>,
    clock: Clock,
    signed: SignedJob,
    network: Network,
    runtime: Handle,
    observer: Box<dyn Observer>,
    commits: Option<std::sync::mpsc::SyncSender<Commit>>,
    links: BTreeMap<u64, Link>,
    refusals: RefusalLog,
    histograms: Collector,
    /// Heads of the audit log that members were shown lately.
    heads: VecDeque<HeadName>,
    countersign_every: u64,
    /// The lists of revoked certificates that members have been told of.
    passed_on: Vec<Arc<Crl>>,
    run: tracing::Span,
    traced: Traced,
    outcome: Option<Outcome>,
    over: Option<oneshot::Sender<Outcome>>,
}

impl std::fmt::Debug for SchedulerActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SchedulerActor").field("links", &self.links.len()).finish_non_exhaustive()
    }
}

impl SchedulerActor {
    /// A shell; `over` is told the outcome.
    #[must_use]
    pub fn new(
        core: SchedulerCore<u64>,
        signed: SignedJob,
        network: Network,
        runtime: Handle,
        observer: Box<dyn Observer>,
        over: oneshot::Sender<Outcome>,
    ) -> SchedulerActor {
        let countersign_every = core.job().audit.countersign_every;
        let traced = Traced::new(core.job().first_step());
        SchedulerActor {
            core,
            clock: Clock::start(),
            signed,
            network,
            runtime,
            observer,
            commits: None,
            links: BTreeMap::new(),
            refusals: RefusalLog::default(),
            histograms: Collector::default(),
            heads: VecDeque::new(),
            countersign_every,
            passed_on: Vec::new(),
            run: tracing::info_span!("run"),
            traced,
            outcome: None,
            over: Some(over),
        }
    }

    fn drive(&mut self, context: &mut Context<Self>, input: Input<u64>) {
        self.core.handle(self.clock.now(), input);
        while let Some(effect) = self.core.poll() {
            self.carry_out(context, effect);
        }
    }

    fn carry_out(&mut self, context: &mut Context<Self>, effect: Effect<u64>) {
        match effect {
            Effect::Welcome { connection, member, incarnation } => {
                tracing::info!(%member, incarnation, "joined");
                let certificate = self.links.get(&connection).and_then(Link::certificate);
                self.observer.audit(Entry::Join {
                    node: member.to_string(),
                    incarnation,
                    certificate: certificate.map(|der| Base64(der.to_vec())),
                });
                self.tell(connection, &Welcome { incarnation, job: self.signed.clone() });
                self.pass_on_to(connection);
            }
            Effect::Refuse { connection, refused } => {
                self.refuse(context, connection, &refused);
            }
            Effect::Send { connection, member: _, message } => {
                // Every order wants an answer.
                if let Some(link) = self.links.get_mut(&connection) {
                    link.allowance.earn(1);
                }
                self.traced.order(&message);
                self.order(connection, message);
            }
            Effect::Fault { member, what } => {
                let who = Who::member(Role::Worker, member.index);
                if let Some(left_out) = self.network.refusals().count(Cause::Report, who) {
                    tracing::warn!(%member, what, left_out, "what it says cannot be; it is lost");
                }
            }
            Effect::Disconnect { connection, member, incarnation, reason } => {
                if let Some(link) = self.links.get(&connection) {
                    link.connection.close(testudo_transport::CloseCode::Admission.number(), &reason);
                }
                let node = member.to_string();
                self.observer.audit(Entry::Leave { node, incarnation, reason: audit::text(&reason) });
            }
            Effect::Answer { connection, request, result } => self.answer(connection, request, result),
            Effect::Step(summary) => {
                let words = self.words_a_step();
                self.links.values_mut().for_each(|link| link.allowance.earn(words));
                self.observer.step(&summary);
                self.traced.complete(&summary);
                self.show_head(summary.step + 1);
            }
            Effect::Evaluated(found) => {
                tracing::info!(step = found.step, loss = found.loss, accuracy = found.accuracy, "evaluated");
                self.observer.evaluated(&found);
            }
            Effect::Parameters { version, params_blake3 } => {
                let (step, params_blake3) = (version, Hex(params_blake3));
                self.observer.audit(Entry::Parameters { step, params_blake3 });
            }
            Effect::Commit(commit) => {
                let step = commit.step;
                tracing::info!(step, parts = commit.parts.len(), "every part of a checkpoint is stored");
                let sent = self.commits.as_ref().is_some_and(|commits| commits.try_send(commit).is_ok());
                if !sent {
                    let result = Err("the thread that writes manifests has ended".to_owned());
                    self.drive(context, Input::Committed { step, result });
                }
            }
            Effect::Checkpoint(committed) => {
                tracing::info!(step = committed.step, deleted = committed.deleted.len(), "checkpoint");
                let Committed { step, manifest_blake3, deleted } = &committed;
                self.observer
                    .audit(Entry::Checkpoint { step: *step, manifest_blake3: Hex(*manifest_blake3) });
                for deletion in deleted {
                    let (step, manifest_blake3) = (deletion.step, Hex(deletion.manifest_blake3));
                    self.observer.audit(Entry::Deletion { step, manifest_blake3, why: deletion.why.clone() });
                }
                self.observer.checkpoint(&committed);
            }
            Effect::Finding(finding) => self.observer.audit(finding.entry()),
            Effect::Notice(text) => tracing::warn!("{text}"),
            Effect::Over(outcome) => {
                match &outcome {
                    Outcome::Finished(f) => {
                        tracing::info!(
                            steps = f.steps,
                            test_loss = f.test_loss,
                            test_accuracy = f.test_accuracy,
                            params_blake3 = %Hex(f.params_blake3),
                            "finished"
                        );
                    }
                    Outcome::Failed(reason) | Outcome::ServerLost(reason) => {
                        tracing::error!(reason, "failed")
                    }
                }
                self.outcome = Some(outcome);
                self.report_to_followers();
                context.run_later(LINGER, |actor, context| actor.end(context));
            }
        }
    }

    /// Says why a node may not take part, once, and hangs up: when it has had time to read that, or asks again.
    fn refuse(&mut self, context: &mut Context<Self>, number: u64, refused: &JoinRefused) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if let Some(left_out) = self.network.refusals().count(Cause::Join, Who::node(&link.peer)) {
            tracing::warn!(peer = %link.peer, reason = refused.reason, left_out, "a node was turned away");
        }
        if std::mem::replace(&mut link.refused, true) {
            hang_up(link);
            return;
        }
        self.tell(number, refused);
        context.run_later(LAST_WORD, move |actor, _| {
            if let Some(link) = actor.links.get(&number) {
                hang_up(link);
            }
        });
    }

    pub(super) fn record(&mut self, entry: Entry) {
        self.observer.audit(entry);
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// The lists of revoked certificates that members have been told of.
    pub(super) fn passed_on(&mut self) -> &mut Vec<Arc<Crl>> {
        &mut self.passed_on
    }

    /// The connections of members: who has not joined yet is told nothing but what came of that.
    pub(super) fn joined(&self) -> impl Iterator<Item = u64> {
        let speaks = |(number, link): (&u64, &Link)| {
            member_of(&link.peer).filter(|member| self.core.speaks_for(number, *member)).map(|_| *number)
        };
        self.links.iter().filter_map(speaks)
    }

    pub(super) fn tell<B: Body>(&self, link: u64, body: &B) {
        self.reply(link, 0, body);
    }

    fn reply<B: Body>(&self, link: u64, request: u64, body: &B) {
        if let Some(link) = self.links.get(&link) {
            link.outbox.post(Outgoing::new(B::KIND, request, body.encode()));
        }
    }

    fn answer(&mut self, link: u64, request: u64, result: Result<String, String>) {
        if let Some(link) = self.links.get(&link) {
            tracing::info!(operator = %link.peer.short(), ?result, "commanded");
            self.observer.audit(Entry::command(link.peer.short(), &result));
        }
        self.reply(link, request, &Answer { result });
    }

    fn end(&mut self, context: &mut Context<Self>) {
        if let (Some(over), Some(outcome)) = (self.over.take(), self.outcome.take()) {
            self.record_refusals(true);
            self.observer.audit(Entry::end(self.core.report().steps_done, &outcome));
            let _ = over.send(outcome);
        }
        actix::ActorContext::stop(context);
    }

    fn order(&self, connection: u64, message: ToMember) {
        match message {
            ToMember::Membership(body) => self.tell(connection, &body),
            ToMember::Extended(body) => self.tell(connection, &body),
            ToMember::Evaluate(body) => self.tell(connection, &body),
            ToMember::Export(body) => self.tell(connection, &body),
            ToMember::Witnessed(body) => self.tell(connection, &body),
            ToMember::Checkpoint(body) => self.tell(connection, &body),
            ToMember::Residuals(body) => self.tell(connection, &body),
            ToMember::Hash(body) => self.tell(connection, &body),
            ToMember::Weights(body) => self.tell(connection, &body),
            ToMember::Shutdown(body) => self.tell(connection, &body),
        }
    }
}

fn hang_up(link: &Link) {
    link.connection
        .close(testudo_transport::CloseCode::Admission.number(), "turned away: see the answer to its join");
}

fn member_of(peer: &SpiffeId) -> Option<Member> {
    let role = match peer.role() {
        Role::Server => MemberRole::Server,
        Role::Worker => MemberRole::Worker,
        _ => return None,
    };
    Some(Member { role, index: peer.index()? })
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let mailbox = Mailbox::new(context.address());
        if let Some(ledger) = self.observer.ledger() {
            match ledger::start(ledger, mailbox.clone(), self.runtime.clone()) {
                Ok(commits) => self.commits = Some(commits),
                Err(error) => {
                    tracing::error!(%error, "no thread could be started: there will be no checkpoints")
                }
            }
        }
        let doors = accept::Doors {
            network: self.network.clone(),
            mailbox,
            runtime: self.runtime.clone(),
            most: accept::orders_of(self.core.job()),
        };
        self.runtime.spawn(doors.run());
        tick(self, context);
    }
}

fn tick(actor: &mut SchedulerActor, context: &mut Context<SchedulerActor>) {
    let now = actor.clock.now();
    let wait = actor.core.poll_timeout().map_or(Duration::from_secs(1), |at| at.since(now));
    context.run_later(wait.max(Duration::from_millis(1)), |actor, context| {
        let run = actor.run.clone();
        run.in_scope(|| actor.drive(context, Input::Tick));
        actor.record_refusals(false);
        actor.pass_on_new_lists();
        tick(actor, context);
    });
}

impl Handler<Letter<Mail>> for SchedulerActor {
    type Result = ();

    fn handle(&mut self, letter: Letter<Mail>, context: &mut Context<Self>) {
        let run = self.run.clone();
        let _inside = run.enter();
        match letter.mail {
            Mail::Opened { connection, peer, .. }
                if peer.role() == Role::Operator && self.operators() >= MAX_OPERATORS =>
            {
                tracing::warn!(%peer, "turned away: {MAX_OPERATORS} operators are connected");
                connection.close(
                    testudo_transport::CloseCode::Busy.number(),
                    &format!("{MAX_OPERATORS} operators are connected, as many as may be; try again when one has left"),
                );
            }
            Mail::Opened { link, peer, connection, outbox } => {
                let (follows, recorded) = (None, Recorded::default());
                let allowance = Allowance::new(self.words_a_step(), allowed::SPARE, self.clock.now().0);
                self.links.insert(
                    link,
                    Link {
                        peer,
                        connection,
                        outbox,
                        follows,
                        recorded,
                        refused: false,
                        renewed: None,
                        allowance,
                    },
                );
            }
            Mail::Said { link, message } if !self.allows(link, message.kind) => {
                if let Some(link) = self.links.get(&link) {
                    let kind = message.kind;
                    let what = format!("says more than its work needs: message kind {kind}");
                    link.connection.blame(Cause::Flood, CloseCode::Credit, &what);
                }
            }
            Mail::Said { link, message } => {
                if let Err(what) = self.said(context, link, &message)
                    && let Some(link) = self.links.get(&link)
                {
                    let who = Who::node(&link.peer);
                    if let Some(left_out) = self.network.refusals().count(Cause::Message, who) {
                        tracing::warn!(peer = %link.peer, what, left_out, "malformed message");
                    }
                    link.connection.close(CloseCode::Framing.number(), "malformed message");
                }
            }
            Mail::Committed { step, result } => self.drive(context, Input::Committed { step, result }),
            Mail::Gone { link, reason } => {
                self.expel(context, link);
                let Some(gone) = self.links.remove(&link) else { return };
                tracing::info!(peer = %gone.peer, reason, "disconnected");
                if let Some(follows) = gone.follows {
                    context.cancel_future(follows.timer);
                }
                if let Some(member) = member_of(&gone.peer) {
                    self.drive(context, Input::Gone { member, connection: link, reason });
                }
                if self.outcome.is_some() && self.links.is_empty() {
                    self.end(context);
                }
            }
        }
    }
}

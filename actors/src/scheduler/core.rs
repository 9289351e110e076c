//! The scheduler's decisions. Pure.
//!
//! 1. Training begins when every member of the job has joined and every server has installed the first epoch.
//! 2. Servers learn of a membership epoch before workers do, so no push is ever ahead of its server; and of the next one when all
//!    of them have installed it.
//! 3. A worker's death moves its leases at once, and so does what it says that cannot be; a server's ends the run with its name, and so
//!    does what the last worker says of a server that it cannot reach: from a checkpoint such a run may go on. It may not where the
//!    server was expelled, for what it did or because its certificate was revoked: what goes on would take it back in.
//! 4. Whenever progress stops for longer than the heartbeat timeout, the scheduler says whom it waits for.
//! 5. Servers are told to leave after every worker has left, and after the last checkpoint.
//! 6. Where whole gradients are weighed, a step is complete only once its weights are on their way to the servers: whatever they are
//!    told of its version comes after.
//! 7. Steps are leased to a worker that joins a running job from the horizon on, and the horizon stays until everybody knows. It is
//!    owed no step below the version that it begins with.
//! 8. A run whose outcome is known is over within a heartbeat timeout and a heartbeat in which the scheduler does not stand still,
//!    whoever refuses to leave.
//! 9. While the scheduler itself stands still, as a process that was stopped, nobody falls silent, no wait for workers ends, and nobody is
//!    late in leaving: what was said then is read first. Connections have times of their own, which go on.

mod admission;
mod checkpointing;
mod evaluating;
mod hashing;
mod io;
mod leaving;
mod operate;
mod reports;
mod returning;
mod scaling;
mod stall;
mod votes;
mod weighing;
mod witnessing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use io::{Command, Effect, Input, ToMember};

use self::returning::Returning;
use self::scaling::Scaling;
use self::witnessing::Testified;
use crate::audit::printable;
use crate::job::JobSpec;
pub use crate::lease::LEASED_AHEAD;
use crate::lease::{Lease, assign};
use crate::message::*;
use crate::plan::Plan;
use crate::scheduler::checkpoints::Checkpoints;
use crate::scheduler::evaluations::Evaluations;
use crate::scheduler::parameters::Parameters;
use crate::scheduler::progress::Progress;
use crate::scheduler::tasks::Tasks;
use crate::scheduler::timeline::Timelines;
use crate::scheduler::weighing::WholeGradients;
use crate::time::Time;
use crate::tree::ReductionTree;
use crate::witness::{Key, Witness};

/// Characters that are quoted of what a peer says.
const MAX_QUOTED: usize = 300;

/// Characters of a reason for people: it travels in a header, whose limit is in bytes.
const MAX_REASON: usize = 1500;

#[derive(Debug)]
struct Joined<C> {
    connection: C,
    incarnation: u64,
    commitment: [u8; 32],
    address: Option<String>,
    heard: Time,
    said: Option<Heartbeat>,
    ready: u64,
    /// The lowest version of a server's slices when it was ready.
    version: u64,
    /// The version that a worker begins with, once that is known.
    start: Option<u64>,
}

/// The scheduler's state machine.
#[derive(Debug)]
pub struct SchedulerCore<C> {
    job: Arc<JobSpec>,
    release: String,
    names: Vec<String>,
    plan: Plan,
    tree: ReductionTree,
    phase: Phase,
    members: BTreeMap<Member, Joined<C>>,
    incarnations: BTreeMap<Member, u64>,
    fingerprint: Option<(Member, String)>,
    epoch: u64,
    leases: Vec<Lease>,
    /// Those that have ended, for residuals that are written late.
    ended: Vec<Lease>,
    workers_told: u64,
    /// Leases have moved since servers were told of any.
    moved: bool,
    until: u64,
    stop_at: Option<u64>,
    paused: bool,
    progress: Progress,
    timelines: Timelines,
    checkpoints: Checkpoints,
    parameters: Parameters,
    gradients: WholeGradients,
    returning: Returning,
    scaling: Scaling,
    evaluations: Evaluations,
    ending: Option<Tasks>,
    witness: Option<(Key, Witness)>,
    testified: Testified,
    outcome: Option<Outcome>,
    /// When the outcome was known.
    decided: Option<Time>,
    workers_lost: u32,
    residuals_lost: u32,
    joins_refused: u64,
    last_progress: Time,
    stalled: Option<String>,
    next_look: Time,
    effects: VecDeque<Effect<C>>,
}

impl<C: Clone + PartialEq> SchedulerCore<C> {
    /// The scheduler of `job`, for nodes of program version `release`. `names` are the parameters', for messages.
    #[must_use]
    pub fn new(job: Arc<JobSpec>, release: String, names: Vec<String>) -> SchedulerCore<C> {
        let plan = Plan::new(&job);
        let tree = job.tree();
        SchedulerCore {
            progress: Progress::new(tree, &job),
            timelines: Timelines::new(&job),
            checkpoints: Checkpoints::new(&job),
            parameters: Parameters::new(&job),
            gradients: WholeGradients::new(&job),
            returning: Returning::default(),
            scaling: Scaling::default(),
            evaluations: Evaluations::new(&job),
            plan,
            tree,
            job,
            release,
            names,
            phase: Phase::Forming,
            members: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            fingerprint: None,
            epoch: 0,
            leases: Vec::new(),
            ended: Vec::new(),
            workers_told: 0,
            moved: false,
            until: 0,
            stop_at: None,
            paused: false,
            ending: None,
            witness: None,
            testified: Testified::default(),
            outcome: None,
            decided: None,
            workers_lost: 0,
            residuals_lost: 0,
            joins_refused: 0,
            last_progress: Time::default(),
            stalled: None,
            next_look: Time::default(),
            effects: VecDeque::new(),
        }
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &JobSpec {
        &self.job
    }

    /// What happened, at `now`.
    pub fn handle(&mut self, now: Time, input: Input<C>) {
        match input {
            Input::Join { member, connection, join } => self.join(now, member, connection, join),
            Input::Gone { member, connection, reason } => {
                if self.members.get(&member).is_some_and(|m| m.connection == connection) {
                    self.lose(now, member, &reason);
                }
            }
            Input::Ready { server, epoch, version } => self.ready(now, server, epoch, version),
            Input::NodeDone { worker, done } => self.node_done(now, worker, done),
            Input::Heartbeat { member, heartbeat } => {
                if let Some(joined) = self.hear(now, member) {
                    let served = heartbeat.served.filter(|_| member.role == MemberRole::Server);
                    joined.said = Some(heartbeat);
                    served.into_iter().for_each(|served| self.timelines.served(now, member.index, served));
                }
            }
            Input::Evaluated { worker, result } => self.evaluated(now, worker, &result),
            Input::Exported { worker, exported } => self.exported(now, worker, exported),
            Input::Testimony { worker, testimony, values } => self.testified(now, worker, &testimony, values),
            Input::Given { worker, given, values } => self.was_given(now, worker, &given, values),
            Input::CheckpointPart { server, part } => self.part(now, server, part),
            Input::ResidualPart { worker, part } => self.residual_part(now, worker, part),
            Input::Pieces { server, told } => self.pieces(now, server, told),
            Input::Products { server, step, bytes } => self.products(now, server, step, &bytes),
            Input::Committed { step, result } => self.committed(now, step, result),
            Input::Flooded { worker, server } => {
                let member = Member { role: MemberRole::Worker, index: worker };
                self.returning.bar(member);
                self.lose(now, member, &format!("it flooded server/{server}"));
            }
            Input::Failure { member, reason } => self.failed(now, member, &reason),
            Input::Unreachable { worker, server, reason } => self.unreachable(now, worker, server, &reason),
            Input::Expelled { member, connection, reason } => {
                if self.speaks_for(&connection, member) {
                    self.expel(now, member, &reason);
                }
            }
            Input::Command { connection, request, command } => {
                self.command(now, connection, request, command);
            }
            Input::Tick => {}
        }
        self.settle();
        self.dismiss_leaving();
        if self.outcome.is_some() {
            self.decided.get_or_insert(now);
        }
        self.look(now);
        self.tell_moved();
        if self.phase == Phase::Training {
            self.timelines.open(now, self.until);
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Effect<C>> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (self.phase != Phase::Over).then_some(self.next_look)
    }

    /// Whether `connection` is the one that `member` joined on: a former incarnation does not speak for the present one.
    #[must_use]
    pub fn speaks_for(&self, connection: &C, member: Member) -> bool {
        self.members.get(&member).is_some_and(|joined| joined.connection == *connection)
    }

    fn steps(&self) -> u64 {
        self.stop_at.unwrap_or(self.plan.steps()).min(self.plan.steps())
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.job.heartbeat_timeout_ms)
    }

    fn hear(&mut self, now: Time, member: Member) -> Option<&mut Joined<C>> {
        let joined = self.members.get_mut(&member)?;
        joined.heard = now;
        Some(joined)
    }

    fn live(&self, role: MemberRole) -> Vec<u32> {
        self.members.keys().filter(|m| m.role == role).map(|m| m.index).collect()
    }

    fn send(&mut self, member: Member, message: ToMember) {
        if let Some(joined) = self.members.get(&member) {
            let connection = joined.connection.clone();
            self.effects.push_back(Effect::Send { connection, member, message });
        }
    }

    fn send_all(&mut self, role: MemberRole, message: &ToMember) {
        for index in self.live(role) {
            self.send(Member { role, index }, message.clone());
        }
    }

    fn join(&mut self, now: Time, member: Member, connection: C, join: Join) {
        if let Err(refused) = self.judge(now, member, &join) {
            self.joins_refused += 1;
            self.effects.push_back(Effect::Refuse { connection, refused });
            return;
        }
        if self.fingerprint.is_none() {
            self.fingerprint = Some((member, join.fingerprint));
        }
        let incarnation = self.incarnations.entry(member).or_default();
        *incarnation += 1;
        let incarnation = *incarnation;
        let joined = Joined {
            connection: connection.clone(),
            incarnation,
            commitment: join.commitment,
            address: join.address,
            heard: now,
            said: None,
            ready: 0,
            version: 0,
            start: None,
        };
        self.members.insert(member, joined);
        self.timelines.joined(member);
        self.effects.push_back(Effect::Welcome { connection, member, incarnation });
        self.last_progress = now;
        self.returning.count(now, member);
        if self.epoch > 0 {
            return self.returned(member, incarnation);
        }
        let complete = self.live(MemberRole::Worker).len() == self.job.workers as usize
            && self.live(MemberRole::Server).len() == self.job.servers as usize;
        if self.phase == Phase::Forming && complete {
            let (live, first) = (self.live(MemberRole::Worker), self.job.first_step());
            self.leases = assign(self.tree, &live, self.epoch + 1, first, self.job.sums_shards());
            self.begin_at(first, &live);
            self.until = self.horizon();
            self.new_epoch();
        }
    }

    /// Names members and leases anew if leases have moved: one epoch at a time, however many workers are lost before servers
    /// have installed the one before, so that no server is sent more memberships than it takes.
    fn tell_moved(&mut self) {
        if self.moved && self.is_installed() && self.outcome.is_none() && self.phase != Phase::Over {
            self.moved = false;
            self.lease_to_newcomers();
            self.new_epoch();
        }
    }

    /// Whether every server has installed the present epoch.
    fn is_installed(&self) -> bool {
        let mut servers = self.members.iter().filter(|(member, _)| member.role == MemberRole::Server);
        servers.all(|(_, joined)| joined.ready == self.epoch)
    }

    /// Names the members and leases: to servers first (invariant 2).
    fn new_epoch(&mut self) {
        self.epoch += 1;
        let membership = ToMember::Membership(self.membership());
        self.send_all(MemberRole::Server, &membership);
    }

    fn membership(&self) -> Membership {
        let servers = self
            .members
            .iter()
            .filter(|(m, _)| m.role == MemberRole::Server)
            .filter_map(|(m, j)| Some(ServerMember { index: m.index, address: j.address.clone()? }))
            .collect();
        let workers = self
            .members
            .iter()
            .filter(|(m, _)| m.role == MemberRole::Worker)
            .map(|(m, j)| WorkerMember {
                index: m.index,
                incarnation: j.incarnation,
                commitment: j.commitment,
                start: j.start.unwrap_or(self.until),
            })
            .collect();
        Membership { epoch: self.epoch, servers, workers, leases: self.leases.clone(), until: self.until }
    }

    fn ready(&mut self, now: Time, server: u32, epoch: u64, version: u64) {
        let epoch = epoch.min(self.epoch);
        if let Some(joined) = self.hear(now, Member { role: MemberRole::Server, index: server })
            && joined.ready < epoch
        {
            (joined.ready, joined.version) = (epoch, version);
        }
        if self.is_installed() && !self.moved && self.epoch > self.workers_told && self.outcome.is_none() {
            self.workers_told = self.epoch;
            if self.phase == Phase::Forming {
                self.phase = Phase::Training;
                self.stalled = None;
                self.progress.begin(now);
                self.tell_choice();
            }
            self.last_progress = now;
            self.begin_afresh();
            let membership = ToMember::Membership(self.membership());
            self.send_all(MemberRole::Worker, &membership);
            self.returning.held = false;
            self.extend();
            // Whoever has come after the last step writes that those who kept residuals are gone.
            if self.phase == Phase::Finishing {
                self.order_residuals(self.progress.completed());
            }
            // A run that resumes at its last step has nothing left but its end.
            if self.phase == Phase::Training && self.progress.completed() >= self.steps() {
                self.end();
            }
            self.evaluate();
        }
    }

    /// While the run is paused, it does not grow (invariant 2 of `operate.rs`), nor while a server withholds hashes, nor until workers
    /// know of leases that begin with it (invariant 7); and never beyond a version that is to be evaluated first.
    fn horizon(&self) -> u64 {
        if self.paused || self.returning.held || self.parameters.withheld().is_some() {
            return self.until;
        }
        (self.progress.completed() + LEASED_AHEAD).min(self.evaluations.horizon()).min(self.steps())
    }

    /// Looks for members that have fallen silent and for a stall (invariant 4).
    fn look(&mut self, now: Time) {
        if now < self.next_look || self.phase == Phase::Over {
            return;
        }
        let (timeout, late) = (self.timeout(), now.since(self.next_look));
        self.next_look = now.after(Duration::from_millis(self.job.heartbeat_ms));
        // Invariant 9.
        if late > timeout / 2 {
            let shifted = |at: Time| at.after(late).min(now);
            self.members.values_mut().for_each(|joined| joined.heard = shifted(joined.heard));
            self.last_progress = shifted(self.last_progress);
            self.decided = self.decided.map(shifted);
            self.returning.stood_still(shifted);
        }
        let silent: Vec<Member> =
            self.members.iter().filter(|(_, j)| now.since(j.heard) > timeout).map(|(m, _)| *m).collect();
        for member in silent {
            self.lose(now, member, &format!("no heartbeat for {} ms", timeout.as_millis()));
        }
        // Invariant 8. Servers need no such care: with the last worker, the run is over.
        if self.decided.is_some_and(|decided| now.since(decided) > timeout) {
            for index in self.live(MemberRole::Worker) {
                let member = Member { role: MemberRole::Worker, index };
                self.lose(now, member, "it did not leave when it was dismissed");
            }
        }
        if self.returning.is_forsaken(now, &self.job) {
            return self.fail(format!(
                "no worker is left, and none came back within {} ms",
                self.job.elastic.return_ms
            ));
        }
        // A paused run with nothing under way waits for its operator alone.
        let idle = self.progress.completed() >= self.until && self.evaluations.under_way().is_none();
        if self.paused && self.phase == Phase::Training && idle {
            self.last_progress = now;
            self.stalled = None;
        }
        if now.since(self.last_progress) > timeout && self.phase != Phase::Over {
            if let Some(whom) = self.withheld() {
                return self.fail(format!("waited {} ms in vain for {whom}", timeout.as_millis()));
            }
            self.last_progress = now;
            let text = printable(&self.waits_for(), MAX_REASON);
            self.effects
                .push_back(Effect::Notice(format!("no progress for {} ms: {text}", timeout.as_millis())));
            self.stalled = Some(text);
        }
    }
}

#[cfg(test)]
mod tests;

//! A whole cluster of pure cores in one thread, stepped by a seed.
//!
//! Every link keeps its order, as a stream does; which link delivers next, when arithmetic runs, and when a node crashes
//! are the seed's choice. A failing run is a seed.

mod choice;
mod deliver;
mod kept;
mod lives;
mod looks;
mod server;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use testudo_actors::checkpoint::{Commit, Committed, PartSource, ResidualSnapshot, Snapshot};
use testudo_actors::message::{
    Evaluated, Finished, Heartbeat, Member, MemberRole, Outcome, Pull, Push, PushRefusal,
};
use testudo_actors::placement::SliceMap;
use testudo_actors::plan::Plan;
use testudo_actors::scheduler::{
    Command, Effect as SchedulerEffect, Input as SchedulerInput, SchedulerCore, ToMember,
};
use testudo_actors::server::{Input as ServerInput, ServerCore, SliceMath, Store, SumOrder};
use testudo_actors::witness::{Key, Witness};
use testudo_actors::worker::{Input as WorkerInput, ShardCompute, WorkerCore};
use testudo_actors::{JobSpec, Time};

pub use choice::Choice;
pub use kept::{Kept, KeptResiduals};
use lives::name;
use server::Server;
use worker::Worker;

use crate::liar::{self, Lie};
use crate::toy;

/// A worker's values in the simulator: little-endian bytes.
pub type Values = bytes::Bytes;

/// The scheduler's handle of a member: who, and which of its lives.
type Connection = (Member, u64);

/// Where a server's reply goes: which worker, and what it was about.
#[derive(Clone, Debug, PartialEq)]
struct Reply {
    worker: u32,
    life: u64,
    about: About,
}

#[derive(Clone, Debug, PartialEq)]
enum About {
    Push(Push),
    Pull(Pull),
}

impl Reply {
    /// Whether every bit of a slice was asked for.
    fn wants_exact(&self) -> bool {
        matches!(self.about, About::Pull(Pull { exact: true, .. }))
    }
}

/// A message under way.
#[derive(Debug)]
#[allow(clippy::enum_variant_names, reason = "the names say where a message goes")]
enum Wire {
    ToScheduler(SchedulerInput<Connection>),
    FromWorker(Connection, SchedulerInput<Connection>),
    ToServer(u32, ServerInput<Reply, Values>),
    ToServerMember(u32, ToMember),
    ToWorker((u32, u64), WorkerInput<Values>),
    ToWorkerMember((u32, u64), ToMember),
}

/// A simulated cluster.
pub struct Simulation {
    choice: Choice,
    clock: Time,
    scheduler: SchedulerCore<Connection>,
    servers: Vec<Server>,
    workers: Vec<Worker>,
    /// Makes an honest worker.
    make: Box<dyn Fn(u32) -> Worker>,
    /// How many things have moved.
    pub moves: u64,
    /// How often in a row nothing could move but time.
    pub idle: usize,
    links: BTreeMap<String, VecDeque<Wire>>,
    /// Deliver every message to a server twice.
    pub duplicate: bool,
    /// Links that deliver nothing.
    pub frozen: Vec<String>,
    /// Completed steps, as the scheduler summarised them.
    pub steps: Vec<testudo_actors::scheduler::StepSummary>,
    /// Evaluations of the test set, in order.
    pub evaluations: Vec<Evaluated>,
    /// What the scheduler noticed.
    pub notices: Vec<String>,
    /// Pushes refused, with the reason.
    pub refused: Vec<(u32, PushRefusal)>,
    /// Workers that were not let in again, with the reason.
    pub turned_away: Vec<(u32, String)>,
    /// Every message with values that was sent, gradients and parameters: its kind, its body, its payload.
    pub carried: Vec<(u8, Vec<u8>, Values)>,
    /// A worker that says that it has written other shards' residuals than its own.
    pub foreign_residuals: Option<u32>,
    answers: Vec<Result<String, String>>,
    /// Checkpoints: by version, what each server wrote.
    pub parts: BTreeMap<u64, BTreeMap<u32, Snapshot>>,
    /// By version, what each worker wrote last of its residuals, and how many such parts were written by then.
    pub residuals: BTreeMap<u64, BTreeMap<u32, (u64, ResidualSnapshot)>>,
    /// Those that were committed, in order.
    pub commits: Vec<Commit>,
    /// The parameters' hashes that were formed, with their versions.
    pub hashes: Vec<(u64, [u8; 32])>,
    /// What a resumed cluster begins with.
    restored: Vec<Snapshot>,
    /// Whether workers keep residuals.
    feeds_back: bool,
    outcome: Option<Outcome>,
}

impl Simulation {
    /// A cluster for `job` on the toy data, all of whose nodes are about to join.
    #[must_use]
    pub fn new(job: JobSpec, seed: u64, order: SumOrder) -> Simulation {
        Simulation::resumed(job, seed, order, Vec::new())
    }

    /// A cluster for `job`, which resumes, and whose servers begin with what `restored` holds.
    #[must_use]
    pub fn resumed(job: JobSpec, seed: u64, order: SumOrder, restored: Vec<Snapshot>) -> Simulation {
        Simulation::with_liars(job, seed, order, restored, |_| None)
    }

    /// The same, some of whose workers lie about their gradients, by index.
    #[must_use]
    pub fn with_liars(
        job: JobSpec,
        seed: u64,
        order: SumOrder,
        restored: Vec<Snapshot>,
        lie: impl Fn(u32) -> Option<Lie>,
    ) -> Simulation {
        job.validate().unwrap();
        let job = Arc::new(job);
        let parameters = job.model.parameters().unwrap();
        let names: Vec<String> = parameters.iter().map(|p| p.name.clone()).collect();
        let server_indices: Vec<u32> = (0..job.servers).collect();
        let map = SliceMap::of(&job, &parameters).unwrap();
        let heartbeat = Duration::from_millis(job.heartbeat_ms);
        let servers = server_indices
            .iter()
            .map(|index| {
                let store = Arc::new(Store::new(job.codecs.pull));
                let mine: Vec<_> = map.of_server(*index).copied().collect();
                Server {
                    core: ServerCore::new(*index, job.tree(), map.clone(), job.first_step(), heartbeat)
                        .with_codec(job.codecs.push),
                    math: SliceMath::new(
                        *index,
                        Arc::clone(&job),
                        parameters.clone(),
                        mine,
                        Arc::clone(&store),
                        order,
                    )
                    .unwrap(),
                    store,
                    work: VecDeque::new(),
                    initialise: false,
                    orders: VecDeque::new(),
                    hash_orders: VecDeque::new(),
                    weights: VecDeque::new(),
                    writing: None,
                    live: BTreeMap::new(),
                }
            })
            .collect();
        let mut scheduler = SchedulerCore::new(Arc::clone(&job), "1".into(), names.clone());
        if job.witness_rate > 0.0 {
            let key = Key::known([seed as u8; 32]);
            let mut kept = Kept(restored.clone());
            let source = job.resume.as_ref().map(|_| &mut kept as &mut dyn PartSource);
            let witness = Witness::new(&job, &map, &parameters, &key, source).unwrap();
            scheduler = scheduler.with_witness(key, witness);
        }
        let (train, test) = toy::data();
        let make = {
            let (job, map, names) = (Arc::clone(&job), map.clone(), names.clone());
            move |index, lie| Worker {
                core: WorkerCore::new(
                    index,
                    job.tree(),
                    map.clone(),
                    names.clone(),
                    (job.first_step(), Plan::new(&job).steps()),
                    heartbeat,
                )
                .with_codecs(job.codecs),
                compute: ShardCompute::new(
                    Arc::clone(&job),
                    Arc::new(map.clone()),
                    liar::perhaps(job.build_model().unwrap(), lie),
                    Arc::clone(&train),
                    Arc::clone(&test),
                    Box::new(toy::NoSink),
                )
                .unwrap(),
                restored: None,
                writing: None,
                work: VecDeque::new(),
                events: VecDeque::new(),
                alive: true,
                life: 0,
            }
        };
        let workers = (0..job.workers).map(|index| make(index, lie(index))).collect();
        let mut simulation = Simulation {
            choice: Choice(seed),
            clock: Time::default(),
            scheduler,
            servers,
            workers,
            make: Box::new(move |index| make(index, None)),
            moves: 0,
            idle: 0,
            links: BTreeMap::new(),
            duplicate: false,
            frozen: Vec::new(),
            steps: Vec::new(),
            notices: Vec::new(),
            refused: Vec::new(),
            turned_away: Vec::new(),
            carried: Vec::new(),
            foreign_residuals: None,
            answers: Vec::new(),
            parts: BTreeMap::new(),
            residuals: BTreeMap::new(),
            commits: Vec::new(),
            evaluations: Vec::new(),
            hashes: Vec::new(),
            restored,
            feeds_back: job.codecs.push.feeds_back(),
            outcome: None,
        };
        for index in 0..job.servers {
            simulation.join(Member { role: MemberRole::Server, index }, 0);
        }
        for index in 0..job.workers {
            simulation.join(Member { role: MemberRole::Worker, index }, 0);
        }
        simulation
    }

    /// The same, whose workers begin with these residuals.
    #[must_use]
    pub fn with_residuals(mut self, restored: &[ResidualSnapshot]) -> Simulation {
        for worker in &mut self.workers {
            worker.restored = Some(restored.to_vec());
        }
        self
    }

    /// What is kept of a checkpoint that was committed: servers' parts, and workers'.
    ///
    /// # Panics
    /// When there is no such checkpoint.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> (Vec<Snapshot>, Vec<ResidualSnapshot>) {
        let commit = self.commits.iter().find(|commit| commit.step == step).expect("it was committed");
        let residuals = commit.residuals.iter().map(|part| self.residuals[&step][&part.worker].1.clone());
        (self.parts[&step].values().cloned().collect(), residuals.collect())
    }

    fn post(&mut self, link: String, wire: Wire) {
        self.links.entry(link).or_default().push_back(wire);
    }

    /// Runs until the run is over.
    ///
    /// # Panics
    /// When nothing is left to do before that.
    pub fn run(&mut self) -> Outcome {
        self.run_until(|_| false);
        self.outcome.clone().expect("the run is over")
    }

    /// Runs until the run is over or `stop` says so; returns whether it did.
    pub fn run_until(&mut self, stop: impl Fn(&Simulation) -> bool) -> bool {
        self.idle = 0;
        while self.outcome.is_none() {
            if stop(self) {
                return true;
            }
            if self.step() {
                self.idle = 0;
            } else {
                // Nothing can move: only time can help.
                self.idle += 1;
                assert!(self.idle < 500, "the cluster stands still; notices: {:?}", self.notices);
                self.clock = self.clock.after(Duration::from_millis(100));
                self.tick();
            }
        }
        false
    }

    /// The figures of a run that must end in order.
    pub fn finish(&mut self) -> Finished {
        match self.run() {
            Outcome::Finished(finished) => finished,
            Outcome::Failed(reason) | Outcome::ServerLost(reason) => panic!("the run failed: {reason}"),
        }
    }

    /// Stops the run as an operator would.
    pub fn stop(&mut self) {
        let _ = self.command(Command::Stop);
    }

    /// Commands something as an operator would; the answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn command(&mut self, command: Command) -> Result<String, String> {
        let connection = (Member { role: MemberRole::Worker, index: u32::MAX }, 0);
        let input = SchedulerInput::Command { connection, request: 0, command };
        self.scheduler.handle(self.clock, input);
        self.drain_scheduler();
        self.answers.pop().expect("every command is answered")
    }

    /// Moves one thing; false when nothing can move.
    fn step(&mut self) -> bool {
        let mut options: Vec<Move> = self
            .links
            .iter()
            .filter(|(name, queue)| !queue.is_empty() && !self.frozen.contains(name))
            .map(|(name, _)| Move::Deliver(name.clone()))
            .collect();
        for (i, server) in self.servers.iter().enumerate() {
            let has_orders =
                !(server.orders.is_empty() && server.hash_orders.is_empty() && server.weights.is_empty());
            if server.initialise || !server.work.is_empty() || has_orders {
                options.push(Move::ServerWork(i));
            }
            if server.writing.is_some() {
                options.push(Move::ServerWritten(i));
            }
        }
        for (i, worker) in self.workers.iter().enumerate().filter(|(_, w)| w.alive) {
            if !worker.work.is_empty() && worker.events.is_empty() {
                options.push(Move::WorkerWork(i));
            }
            if !worker.events.is_empty() {
                options.push(Move::WorkerEvent(i));
            }
            if worker.writing.is_some() {
                options.push(Move::WorkerWritten(i));
            }
        }
        if options.is_empty() {
            return false;
        }
        self.clock = self.clock.after(Duration::from_micros(50));
        self.moves += 1;
        let at = self.choice.below(options.len());
        match options.swap_remove(at) {
            Move::Deliver(link) => {
                if let Some(wire) = self.links.get_mut(&link).and_then(VecDeque::pop_front) {
                    self.deliver(wire);
                }
            }
            Move::ServerWork(i) => self.server_work(i),
            Move::ServerWritten(i) => self.server_written(i),
            Move::WorkerWork(i) => self.worker_work(i),
            Move::WorkerWritten(i) => self.worker_written(i),
            Move::WorkerEvent(i) => {
                let event = self.workers[i].events.pop_front().unwrap();
                self.worker_input(i, event);
            }
        }
        true
    }

    fn tick(&mut self) {
        self.scheduler.handle(self.clock, SchedulerInput::Tick);
        self.drain_scheduler();
        for i in 0..self.servers.len() {
            self.servers[i].core.handle(self.clock, ServerInput::Tick);
            self.drain_server(i);
        }
        for i in 0..self.workers.len() {
            if self.workers[i].alive {
                self.worker_input(i, WorkerInput::Tick);
            }
        }
    }

    fn drain_scheduler(&mut self) {
        while let Some(effect) = self.scheduler.poll() {
            match effect {
                SchedulerEffect::Send { connection: (member, life), message, .. } => {
                    let wire = match member.role {
                        MemberRole::Server => Wire::ToServerMember(member.index, message),
                        MemberRole::Worker => Wire::ToWorkerMember((member.index, life), message),
                    };
                    self.post(format!("scheduler>{}", name(member, life)), wire);
                }
                SchedulerEffect::Answer { result, .. } => self.answers.push(result),
                SchedulerEffect::Step(summary) => self.steps.push(summary),
                SchedulerEffect::Evaluated(found) => self.evaluations.push(found),
                SchedulerEffect::Parameters { version, params_blake3 } => {
                    self.hashes.push((version, params_blake3));
                }
                SchedulerEffect::Commit(commit) => {
                    let step = commit.step;
                    for part in &commit.residuals {
                        let (number, stored) = &self.residuals[&step][&part.worker];
                        assert_eq!(part.receipt.bytes, *number, "what is committed was written over");
                        assert!(stored.shards.iter().map(|s| s.shard).eq(part.shards.iter().copied()));
                    }
                    self.commits.push(commit);
                    let result = Ok(Committed { step, manifest_blake3: [0; 32], deleted: Vec::new() });
                    let input = SchedulerInput::Committed { step, result };
                    self.post("ledger>scheduler".into(), Wire::ToScheduler(input));
                }
                SchedulerEffect::Checkpoint(_) | SchedulerEffect::Finding(_) => {}
                SchedulerEffect::Notice(text) => self.notices.push(text),
                SchedulerEffect::Over(outcome) => self.outcome = Some(outcome),
                SchedulerEffect::Refuse { connection: (member, life), refused } => {
                    self.turn_away(member, life, refused)
                }
                SchedulerEffect::Welcome { .. }
                | SchedulerEffect::Disconnect { .. }
                | SchedulerEffect::Fault { .. } => {}
            }
        }
    }

    fn heartbeat(&mut self, role: MemberRole, i: usize, heartbeat: Heartbeat) {
        let member = Member { role, index: i as u32 };
        let beat = SchedulerInput::Heartbeat { member, heartbeat };
        match role {
            MemberRole::Server => self.post(format!("{member}>scheduler"), Wire::ToScheduler(beat)),
            MemberRole::Worker => self.say(i as u32, beat),
        }
    }

    /// A worker says something to the scheduler.
    fn say(&mut self, worker: u32, input: SchedulerInput<Connection>) {
        let Some(life) = self.workers.get(worker as usize).map(|w| w.life) else { return };
        let member = Member { role: MemberRole::Worker, index: worker };
        let wire = Wire::FromWorker((member, life), input);
        self.post(format!("{}>scheduler", name(member, life)), wire);
    }
}

enum Move {
    Deliver(String),
    ServerWork(usize),
    ServerWritten(usize),
    WorkerWork(usize),
    WorkerWritten(usize),
    WorkerEvent(usize),
}

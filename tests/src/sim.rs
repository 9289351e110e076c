//! A whole cluster of pure cores in one thread, stepped by a seed.
//!
//! Every link keeps its order, as a stream does; which link delivers next, when arithmetic runs, and when a node crashes
//! are the seed's choice. A failing run is a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use testudo_actors::checkpoint::{Commit, Committed, PartSource, RestoredSlice, Snapshot};
use testudo_actors::message::{
    Body, CheckpointPart, Finished, Given, Heartbeat, Join, Member, MemberRole, NodeDone, Outcome,
    PartOutcome, Pull, PullRefusal, Push, PushRefusal, SliceVersion, Testimony, Witnessed,
};
use testudo_actors::placement::{Slice, SliceId, SliceMap};
use testudo_actors::plan::Plan;
use testudo_actors::scheduler::{
    Command, Effect as SchedulerEffect, Input as SchedulerInput, SchedulerCore, ToMember,
};
use testudo_actors::server::{
    Contribution, Effect as ServerEffect, Input as ServerInput, MathError, PushInput, ServerCore, SliceMath,
    SnapshotEvent, Store, SumOrder,
};
use testudo_actors::witness::{Key, Witness};
use testudo_actors::worker::{Effect as WorkerEffect, Event, Input as WorkerInput, ShardCompute, WorkerCore};
use testudo_actors::{CheckpointError, JobSpec, Time};

use crate::toy;

/// A worker's values in the simulator: little-endian bytes.
pub type Values = bytes::Bytes;

/// The scheduler's handle of a member: who, and which incarnation of the simulator.
type Connection = Member;

/// Where a server's reply goes: which worker, and what it was about.
#[derive(Clone, Debug, PartialEq)]
struct Reply {
    worker: u32,
    about: About,
}

#[derive(Clone, Debug, PartialEq)]
enum About {
    Push(Push),
    Pull(Pull),
}

/// A message under way.
#[derive(Debug)]
#[allow(clippy::enum_variant_names, reason = "the names say where a message goes")]
enum Wire {
    ToScheduler(SchedulerInput<Connection>),
    ToServer(u32, ServerInput<Reply, Values>),
    ToServerMember(u32, ToMember),
    ToWorker(u32, WorkerInput<Values>),
    ToWorkerMember(u32, ToMember),
}

struct Server {
    core: ServerCore<Reply, Values>,
    math: SliceMath,
    store: Arc<Store>,
    work: VecDeque<(SliceId, u64, testudo_actors::tree::Node, Values)>,
    initialise: bool,
    /// Checkpoints that the scheduler ordered, and the snapshot that is being written.
    orders: VecDeque<u64>,
    hash_orders: VecDeque<u64>,
    writing: Option<Snapshot>,
}

struct Worker {
    core: WorkerCore<Values>,
    compute: ShardCompute,
    work: VecDeque<Work>,
    events: VecDeque<WorkerInput<Values>>,
    alive: bool,
}

enum Work {
    Install(SliceId, Values),
    Adopt(u64),
    Witness(Key),
    Compute(u64, Vec<testudo_actors::tree::Node>),
    Evaluate(testudo_actors::message::Evaluate),
    Export(testudo_actors::message::Export),
}

/// SplitMix64: the simulator's own random source.
#[derive(Debug)]
pub struct Choice(pub u64);

impl Choice {
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// A simulated cluster.
pub struct Simulation {
    choice: Choice,
    clock: Time,
    scheduler: SchedulerCore<Connection>,
    servers: Vec<Server>,
    workers: Vec<Worker>,
    links: BTreeMap<String, VecDeque<Wire>>,
    /// Deliver every message to a server twice.
    pub duplicate: bool,
    /// Links that deliver nothing.
    pub frozen: Vec<String>,
    /// Completed steps, as the scheduler summarised them.
    pub steps: Vec<testudo_actors::scheduler::StepSummary>,
    /// What the scheduler noticed.
    pub notices: Vec<String>,
    /// Pushes refused, with the reason.
    pub refused: Vec<(u32, PushRefusal)>,
    /// Every message with values that was sent, gradients and parameters: its kind, its body, its payload.
    pub carried: Vec<(u8, Vec<u8>, Values)>,
    answers: Vec<Result<String, String>>,
    /// Checkpoints: by version, what each server wrote.
    pub parts: BTreeMap<u64, BTreeMap<u32, Snapshot>>,
    /// Those that were committed, in order.
    pub commits: Vec<Commit>,
    /// The parameters' hashes that were formed, with their versions.
    pub hashes: Vec<(u64, [u8; 32])>,
    /// What a resumed cluster begins with.
    restored: Vec<Snapshot>,
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
        job.validate().unwrap();
        let job = Arc::new(job);
        let parameters = job.model.parameters().unwrap();
        let names: Vec<String> = parameters.iter().map(|p| p.name.clone()).collect();
        let elements: Vec<usize> = parameters.iter().map(|p| p.shape.elements()).collect();
        let server_indices: Vec<u32> = (0..job.servers).collect();
        let map = SliceMap::new(&elements, job.slice_bytes, &server_indices).unwrap();
        let heartbeat = Duration::from_millis(job.heartbeat_ms);
        let servers = server_indices
            .iter()
            .map(|index| {
                let store = Arc::new(Store::default());
                let mine: Vec<_> = map.of_server(*index).copied().collect();
                Server {
                    core: ServerCore::new(*index, job.tree(), map.clone(), job.first_step(), heartbeat),
                    math: SliceMath::new(
                        *index,
                        Arc::clone(&job),
                        parameters.clone(),
                        mine,
                        Arc::clone(&store),
                        order,
                    ),
                    store,
                    work: VecDeque::new(),
                    initialise: false,
                    orders: VecDeque::new(),
                    hash_orders: VecDeque::new(),
                    writing: None,
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
        let workers = (0..job.workers)
            .map(|index| Worker {
                core: WorkerCore::new(
                    index,
                    map.clone(),
                    names.clone(),
                    (job.first_step(), Plan::new(&job).steps()),
                    heartbeat,
                ),
                compute: ShardCompute::new(
                    Arc::clone(&job),
                    Arc::new(map.clone()),
                    job.model.build(ShardCompute::largest_batch(&job)).unwrap(),
                    Arc::clone(&train),
                    Arc::clone(&test),
                    Box::new(toy::NoSink),
                )
                .unwrap(),
                work: VecDeque::new(),
                events: VecDeque::new(),
                alive: true,
            })
            .collect();
        let mut simulation = Simulation {
            choice: Choice(seed),
            clock: Time::default(),
            scheduler,
            servers,
            workers,
            links: BTreeMap::new(),
            duplicate: false,
            frozen: Vec::new(),
            steps: Vec::new(),
            notices: Vec::new(),
            refused: Vec::new(),
            carried: Vec::new(),
            answers: Vec::new(),
            parts: BTreeMap::new(),
            commits: Vec::new(),
            hashes: Vec::new(),
            restored,
            outcome: None,
        };
        for index in 0..job.servers {
            simulation.join(Member { role: MemberRole::Server, index });
        }
        for index in 0..job.workers {
            simulation.join(Member { role: MemberRole::Worker, index });
        }
        simulation
    }

    fn join(&mut self, member: Member) {
        let address =
            (member.role == MemberRole::Server).then(|| format!("127.0.0.1:{}", 1000 + member.index));
        let join = Join { release: "1".into(), fingerprint: "sim".into(), address, commitment: [0; 32] };
        let wire = Wire::ToScheduler(SchedulerInput::Join { member, connection: member, join });
        self.post(format!("{member}>scheduler"), wire);
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
        let mut idle = 0;
        while self.outcome.is_none() {
            if stop(self) {
                return true;
            }
            if self.step() {
                idle = 0;
            } else {
                // Nothing can move: only time can help.
                idle += 1;
                assert!(idle < 500, "the cluster stands still; notices: {:?}", self.notices);
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
            Outcome::Failed(reason) => panic!("the run failed: {reason}"),
        }
    }

    /// Whether a worker has pushes under way that no server has seen.
    #[must_use]
    pub fn pushes_under_way(&self, worker: u32) -> usize {
        self.links
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("worker/{worker}>server")))
            .flat_map(|(_, queue)| queue)
            .filter(|wire| matches!(wire, Wire::ToServer(_, ServerInput::Push(_))))
            .count()
    }

    /// Kills a worker: what it has sent may still arrive up to a point of the seed's choosing on each link.
    pub fn kill(&mut self, worker: u32) {
        let node = &mut self.workers[worker as usize];
        node.alive = false;
        node.work.clear();
        node.events.clear();
        let names: Vec<String> =
            self.links.keys().filter(|n| n.starts_with(&format!("worker/{worker}>"))).cloned().collect();
        for name in names {
            let len = self.links[&name].len();
            let kept = self.choice.below(len + 1);
            self.links.get_mut(&name).unwrap().truncate(kept);
        }
        let member = Member { role: MemberRole::Worker, index: worker };
        let gone = SchedulerInput::Gone { member, connection: member, reason: "killed".into() };
        self.post(format!("{member}>scheduler"), Wire::ToScheduler(gone));
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
        let connection = Member { role: MemberRole::Worker, index: u32::MAX };
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
            let has_orders = !server.orders.is_empty() || !server.hash_orders.is_empty();
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
        }
        if options.is_empty() {
            return false;
        }
        self.clock = self.clock.after(Duration::from_micros(50));
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

    fn deliver(&mut self, wire: Wire) {
        match wire {
            Wire::ToScheduler(input) => {
                self.scheduler.handle(self.clock, input);
                self.drain_scheduler();
            }
            Wire::ToServer(i, input) => {
                let again = match (&input, self.duplicate) {
                    (ServerInput::Push(p), true) => Some(PushInput {
                        worker: p.worker,
                        reply: Reply { worker: u32::MAX, ..p.reply.clone() },
                        push: p.push.clone(),
                        values: p.values.clone(),
                        bytes: p.bytes,
                        digest: p.digest,
                    }),
                    _ => None,
                };
                self.servers[i as usize].core.handle(self.clock, input);
                if let Some(again) = again {
                    self.servers[i as usize].core.handle(self.clock, ServerInput::Push(again));
                }
                self.drain_server(i as usize);
            }
            Wire::ToServerMember(i, message) => match message {
                ToMember::Membership(membership) => {
                    self.servers[i as usize].core.handle(self.clock, ServerInput::Membership(membership));
                    self.drain_server(i as usize);
                }
                ToMember::Checkpoint(order) => self.servers[i as usize].orders.push_back(order.version),
                ToMember::Hash(order) => self.servers[i as usize].hash_orders.push_back(order.version),
                _ => {}
            },
            Wire::ToWorker(i, input) => self.worker_input(i as usize, input),
            Wire::ToWorkerMember(i, message) => {
                let input = match message {
                    ToMember::Membership(m) => WorkerInput::Membership(m),
                    ToMember::Extended(e) => WorkerInput::Extended { epoch: e.epoch, until: e.until },
                    ToMember::Evaluate(e) => WorkerInput::Evaluate(e),
                    ToMember::Export(e) => WorkerInput::Export(e),
                    ToMember::Witnessed(Witnessed { key }) => {
                        self.workers[i as usize].work.push_back(Work::Witness(key));
                        return;
                    }
                    ToMember::Checkpoint(order) => panic!("a worker is ordered to write {order:?}"),
                    ToMember::Hash(order) => panic!("a worker is ordered to hash {order:?}"),
                    ToMember::Shutdown(_) => {
                        let member = Member { role: MemberRole::Worker, index: i };
                        self.workers[i as usize].alive = false;
                        let gone = SchedulerInput::Gone { member, connection: member, reason: "left".into() };
                        self.post(format!("{member}>scheduler"), Wire::ToScheduler(gone));
                        return;
                    }
                };
                self.worker_input(i as usize, input);
            }
        }
    }

    fn drain_scheduler(&mut self) {
        while let Some(effect) = self.scheduler.poll() {
            match effect {
                SchedulerEffect::Send { member, message, .. } => {
                    let wire = match member.role {
                        MemberRole::Server => Wire::ToServerMember(member.index, message),
                        MemberRole::Worker => Wire::ToWorkerMember(member.index, message),
                    };
                    self.post(format!("scheduler>{member}"), wire);
                }
                SchedulerEffect::Answer { result, .. } => self.answers.push(result),
                SchedulerEffect::Step(summary) => self.steps.push(summary),
                SchedulerEffect::Parameters { version, params_blake3 } => {
                    self.hashes.push((version, params_blake3));
                }
                SchedulerEffect::Commit(commit) => {
                    let step = commit.step;
                    self.commits.push(commit);
                    let result = Ok(Committed { step, manifest_blake3: [0; 32], deleted: Vec::new() });
                    let input = SchedulerInput::Committed { step, result };
                    self.post("ledger>scheduler".into(), Wire::ToScheduler(input));
                }
                SchedulerEffect::Checkpoint(_) => {}
                SchedulerEffect::Notice(text) => self.notices.push(text),
                SchedulerEffect::Over(outcome) => self.outcome = Some(outcome),
                SchedulerEffect::Refuse { reason, .. } => panic!("a member was refused: {reason}"),
                SchedulerEffect::Welcome { .. } | SchedulerEffect::Disconnect { .. } => {}
            }
        }
    }

    fn drain_server(&mut self, i: usize) {
        while let Some(effect) = self.servers[i].core.poll() {
            match effect {
                ServerEffect::Initialise => self.servers[i].initialise = true,
                ServerEffect::Store { slice, step, node, values } => {
                    self.servers[i].work.push_back((slice, step, node, values));
                }
                ServerEffect::Accept { reply, .. } => self.reply(i, reply, Ok(None)),
                ServerEffect::RefusePush { reply, worker, reason } => {
                    self.refused.push((worker, reason.clone()));
                    self.reply(i, reply, Err(reason));
                }
                ServerEffect::Answer { reply, slice, version } => {
                    let (bytes, _) = self.servers[i].store.read(slice, version).unwrap();
                    let body = SliceVersion { slice, version, codec: 0 }.encode();
                    self.carried.push((SliceVersion::KIND, body, bytes.clone()));
                    self.reply(i, reply, Ok(Some(bytes)));
                }
                ServerEffect::RefusePull { reply, reason } => self.refuse_pull(i, reply, reason),
                ServerEffect::Ready { epoch } => {
                    let ready = SchedulerInput::Ready { server: i as u32, epoch };
                    self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(ready));
                }
                ServerEffect::Heartbeat(heartbeat) => self.heartbeat(MemberRole::Server, i, heartbeat),
            }
        }
    }

    fn heartbeat(&mut self, role: MemberRole, i: usize, heartbeat: Heartbeat) {
        let member = Member { role, index: i as u32 };
        let beat = SchedulerInput::Heartbeat { member, heartbeat };
        self.post(format!("{member}>scheduler"), Wire::ToScheduler(beat));
    }

    fn reply(&mut self, server: usize, reply: Reply, answer: Result<Option<Values>, PushRefusal>) {
        if self.workers.get(reply.worker as usize).is_none_or(|w| !w.alive) {
            return;
        }
        let input = match (reply.about, answer) {
            (About::Push(Push { step, node, slice, .. }), Ok(_)) => {
                WorkerInput::Accepted { step, node, slice }
            }
            (About::Push(Push { step, node, slice, .. }), Err(reason)) => {
                WorkerInput::Refused { step, node, slice, reason }
            }
            (About::Pull(Pull { slice, version }), Ok(Some(values))) => {
                WorkerInput::Slice { slice, version, codec: 0, bytes: values.len() as u64, values }
            }
            (about, answer) => panic!("{answer:?} is no answer to {about:?}"),
        };
        self.post(format!("server/{server}>worker/{}", reply.worker), Wire::ToWorker(reply.worker, input));
    }

    fn refuse_pull(&mut self, server: usize, reply: Reply, reason: PullRefusal) {
        if let About::Pull(Pull { slice, version }) = reply.about
            && self.workers.get(reply.worker as usize).is_some_and(|w| w.alive)
        {
            let input = WorkerInput::PullRefused { slice, version, reason };
            self.post(
                format!("server/{server}>worker/{}", reply.worker),
                Wire::ToWorker(reply.worker, input),
            );
        }
    }

    fn worker_input(&mut self, i: usize, input: WorkerInput<Values>) {
        if !self.workers[i].alive {
            return;
        }
        self.workers[i].core.handle(self.clock, input).expect("no worker is refused");
        while let Some(effect) = self.workers[i].core.poll() {
            let worker = i as u32;
            match effect {
                WorkerEffect::Connect(_) => self.workers[i].events.push_back(WorkerInput::Connected),
                WorkerEffect::Push { server, push, values } => {
                    self.carried.push((Push::KIND, push.encode(), values.clone()));
                    let lane = push.slice.parameter % 3;
                    let input = ServerInput::Push(PushInput {
                        worker,
                        reply: Reply { worker, about: About::Push(push.clone()) },
                        push,
                        bytes: values.len() as u64,
                        digest: *blake3::hash(&values).as_bytes(),
                        values,
                    });
                    self.post(format!("worker/{i}>server/{server}/{lane}"), Wire::ToServer(server, input));
                }
                WorkerEffect::Pull { server, pull } => {
                    let lane = pull.slice.parameter % 3;
                    let reply = Reply { worker, about: About::Pull(pull.clone()) };
                    let input = ServerInput::Pull { worker, reply, pull };
                    self.post(format!("worker/{i}>server/{server}/{lane}"), Wire::ToServer(server, input));
                }
                WorkerEffect::Install { slice, values } => {
                    self.workers[i].work.push_back(Work::Install(slice, values));
                }
                WorkerEffect::Adopt { version } => self.workers[i].work.push_back(Work::Adopt(version)),
                WorkerEffect::Compute { step, nodes } => {
                    self.workers[i].work.push_back(Work::Compute(step, nodes));
                }
                WorkerEffect::Evaluate(order) => self.workers[i].work.push_back(Work::Evaluate(order)),
                WorkerEffect::Export(order) => self.workers[i].work.push_back(Work::Export(order)),
                WorkerEffect::Report(done) => self.report(worker, done),
                WorkerEffect::Result(result) => {
                    let input = SchedulerInput::Evaluated { worker, result };
                    self.post(format!("worker/{i}>scheduler"), Wire::ToScheduler(input));
                }
                WorkerEffect::Heartbeat(heartbeat) => self.heartbeat(MemberRole::Worker, i, heartbeat),
            }
        }
    }

    fn report(&mut self, worker: u32, done: NodeDone) {
        let input = SchedulerInput::NodeDone { worker, done };
        self.post(format!("worker/{worker}>scheduler"), Wire::ToScheduler(input));
    }

    fn worker_work(&mut self, i: usize) {
        let Some(work) = self.workers[i].work.pop_front() else { return };
        let worker = &mut self.workers[i];
        match work {
            Work::Install(slice, values) => {
                let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&values[..]);
                worker.compute.install(slice, &floats);
            }
            Work::Adopt(version) => {
                worker.compute.adopt();
                if let Some(values) = worker.compute.given() {
                    let given = Given { version };
                    let input = SchedulerInput::Given { worker: i as u32, given, values };
                    self.post(format!("worker/{i}>scheduler"), Wire::ToScheduler(input));
                }
            }
            Work::Witness(key) => worker.compute.witness(&key),
            Work::Compute(step, nodes) => {
                let (events, mut told) = (&mut worker.events, Vec::new());
                let emit = |event| {
                    events.push_back(match event {
                        Event::Testimony { step, node, values } => {
                            let testimony = Testimony { step, node };
                            told.push(SchedulerInput::Testimony { worker: i as u32, testimony, values });
                            return;
                        }
                        Event::Gradient { step, node, slice, values } => {
                            WorkerInput::Gradient { step, node, slice, values }
                        }
                        Event::Computed { step, loss, compute_us } => {
                            WorkerInput::Computed { step, loss, compute_us }
                        }
                    });
                };
                worker.compute.compute(step, &nodes, emit).unwrap();
                for input in told {
                    self.post(format!("worker/{i}>scheduler"), Wire::ToScheduler(input));
                }
            }
            Work::Evaluate(order) => {
                let result = worker.compute.evaluate(&order).unwrap();
                worker.events.push_back(WorkerInput::Evaluated(result));
            }
            Work::Export(order) => {
                let exported = worker.compute.export(&order).unwrap();
                let input = SchedulerInput::Exported { worker: i as u32, exported };
                self.post(format!("worker/{i}>scheduler"), Wire::ToScheduler(input));
            }
        }
    }

    fn server_work(&mut self, i: usize) {
        let server = &mut self.servers[i];
        if server.work.is_empty()
            && let Some(version) = server.orders.pop_front()
        {
            server.math.order_snapshot(version).unwrap();
            return self.snapshots(i);
        }
        if server.work.is_empty()
            && let Some(version) = server.hash_orders.pop_front()
        {
            server.math.order_hash(version).unwrap();
            return self.pieces(i);
        }
        let input = if std::mem::take(&mut server.initialise) {
            if self.restored.is_empty() {
                server.math.initialise();
            } else {
                server.math.restore(restored(&self.restored, &server.math.slices())).unwrap();
            }
            ServerInput::Initialised
        } else {
            // Any contribution may be summed next: their order is the seed's choice.
            let at = self.choice.below(server.work.len());
            let (slice, step, node, values) = server.work.remove(at).unwrap();
            let values = bytemuck::pod_collect_to_vec(&values[..]);
            match server.math.contribute(Contribution { slice, step, node, values }) {
                Ok(version) => ServerInput::Stored { slice, step, node, version },
                Err(MathError::NotFinite(element)) => ServerInput::NotFinite { slice, step, node, element },
                Err(error) => panic!("{error}"),
            }
        };
        server.core.handle(self.clock, input);
        self.drain_server(i);
        self.snapshots(i);
        self.pieces(i);
    }

    /// What a server tells of its parameters.
    fn pieces(&mut self, i: usize) {
        while let Some(told) = self.servers[i].math.poll_pieces() {
            let input = SchedulerInput::Pieces { server: i as u32, told };
            self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(input));
        }
    }

    /// Snapshots that have become whole go to the writer; what was skipped is said.
    fn snapshots(&mut self, i: usize) {
        while let Some(event) = self.servers[i].math.poll_snapshot() {
            match event {
                SnapshotEvent::Ready(snapshot) => {
                    assert!(self.servers[i].writing.replace(snapshot).is_none(), "two snapshots at once");
                }
                SnapshotEvent::Skipped(version) => self.say_part(i, version, PartOutcome::Skipped),
            }
        }
    }

    fn server_written(&mut self, i: usize) {
        let Some(snapshot) = self.servers[i].writing.take() else { return };
        self.servers[i].math.snapshot_written();
        let (version, slices) = (snapshot.version, snapshot.slices.len() as u32);
        self.parts.entry(version).or_default().insert(i as u32, snapshot);
        self.say_part(i, version, PartOutcome::Written { bytes: 0, blake3: [0; 32], slices });
        self.snapshots(i);
    }

    fn say_part(&mut self, i: usize, version: u64, outcome: PartOutcome) {
        let part = CheckpointPart { version, outcome };
        let input = SchedulerInput::CheckpointPart { server: i as u32, part };
        self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(input));
    }
}

/// What servers kept at one step, as a source.
#[derive(Clone, Debug)]
pub struct Kept(pub Vec<Snapshot>);

impl PartSource for Kept {
    fn load(&mut self, _: &JobSpec, wanted: &[Slice]) -> Result<Vec<RestoredSlice>, CheckpointError> {
        Ok(restored(&self.0, wanted))
    }
}

/// The slices in `wanted` out of snapshots whose slices may be cut and placed in any other way.
fn restored(snapshots: &[Snapshot], wanted: &[Slice]) -> Vec<RestoredSlice> {
    let cut = |slice: &Slice| {
        let state_tensors = snapshots.iter().flat_map(|s| &s.slices).next().map_or(0, |s| s.state.len());
        let mut restored = RestoredSlice {
            id: slice.id,
            weights: vec![f32::NAN; slice.elements],
            state: vec![vec![f32::NAN; slice.elements]; state_tensors],
        };
        for kept in snapshots.iter().flat_map(|s| &s.slices) {
            if kept.slice.id.parameter != slice.id.parameter {
                continue;
            }
            for at in slice.first..slice.first + slice.elements {
                if let Some(from) =
                    at.checked_sub(kept.slice.first).filter(|from| *from < kept.slice.elements)
                {
                    restored.weights[at - slice.first] = kept.weights[from];
                    for (state, kept) in restored.state.iter_mut().zip(&kept.state) {
                        state[at - slice.first] = kept[from];
                    }
                }
            }
        }
        restored
    };
    wanted.iter().map(cut).collect()
}

enum Move {
    Deliver(String),
    ServerWork(usize),
    ServerWritten(usize),
    WorkerWork(usize),
    WorkerEvent(usize),
}

//! The simulator's workers: a core, its arithmetic, and what it sends.

use std::collections::VecDeque;

use testudo_actors::checkpoint::ResidualSnapshot;
use testudo_actors::message::{
    Body, Evaluate, Export, Given, Member, MemberRole, NodeDone, PartOutcome, Push, ResidualPart, Testimony,
};
use testudo_actors::placement::SliceId;
use testudo_actors::scheduler::Input as SchedulerInput;
use testudo_actors::server::{Input as ServerInput, PushInput};
use testudo_actors::tree::Node;
use testudo_actors::witness::Key;
use testudo_actors::worker::{
    Effect as WorkerEffect, Event, Input as WorkerInput, ResidualEvent, ShardCompute, WorkerCore,
};
use testudo_kernels::Codec;

use super::{About, KeptResiduals, Reply, Simulation, Values, Wire};

pub(super) struct Worker {
    pub(super) core: WorkerCore<Values>,
    pub(super) compute: ShardCompute,
    /// What a resumed worker begins with.
    pub(super) restored: Option<Vec<ResidualSnapshot>>,
    /// Residuals on their way to disk.
    pub(super) writing: Option<ResidualSnapshot>,
    pub(super) work: VecDeque<Work>,
    pub(super) events: VecDeque<WorkerInput<Values>>,
    pub(super) alive: bool,
    /// How often it was started again.
    pub(super) life: u64,
}

pub(super) enum Work {
    Install(SliceId, Codec, Values),
    InstallExact(SliceId, Values),
    Adopt(u64),
    Witness(Key),
    Compute(u64, Vec<Node>),
    Evaluate(Evaluate),
    Export(Export),
    Residuals(u64, Vec<u32>),
}

impl Simulation {
    pub(super) fn worker_input(&mut self, i: usize, input: WorkerInput<Values>) {
        if !self.workers[i].alive {
            return;
        }
        let life = self.workers[i].life;
        let name = super::name(Member { role: MemberRole::Worker, index: i as u32 }, life);
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
                        reply: Reply { worker, life, about: About::Push(push.clone()) },
                        push,
                        bytes: values.len() as u64,
                        digest: *blake3::hash(&values).as_bytes(),
                        values,
                    });
                    self.post(format!("{name}>server/{server}/{lane}"), Wire::ToServer(server, input));
                }
                WorkerEffect::Pull { server, pull } => {
                    let lane = pull.slice.parameter % 3;
                    let reply = Reply { worker, life, about: About::Pull(pull.clone()) };
                    let input = ServerInput::Pull { worker, reply, pull };
                    self.post(format!("{name}>server/{server}/{lane}"), Wire::ToServer(server, input));
                }
                WorkerEffect::Install { slice, codec, values } => {
                    self.workers[i].work.push_back(Work::Install(slice, codec, values));
                }
                WorkerEffect::InstallExact { slice, values } => {
                    self.workers[i].work.push_back(Work::InstallExact(slice, values));
                }
                WorkerEffect::Adopt { version } => self.workers[i].work.push_back(Work::Adopt(version)),
                WorkerEffect::Compute { step, nodes } => {
                    self.workers[i].work.push_back(Work::Compute(step, nodes));
                }
                WorkerEffect::Evaluate(order) => self.workers[i].work.push_back(Work::Evaluate(order)),
                WorkerEffect::Export(order) => self.workers[i].work.push_back(Work::Export(order)),
                // Equal arithmetic computes equal gradients; an heir without the residuals does not encode them alike.
                WorkerEffect::Differs { .. } => assert!(self.feeds_back, "equal gradients differ"),
                WorkerEffect::Report(done) => self.report(worker, done),
                WorkerEffect::Result(result) => {
                    let input = SchedulerInput::Evaluated { worker, result };
                    self.say(i as u32, input);
                }
                WorkerEffect::Heartbeat(heartbeat) => self.heartbeat(MemberRole::Worker, i, heartbeat),
            }
        }
    }

    pub(super) fn report(&mut self, worker: u32, done: NodeDone) {
        let input = SchedulerInput::NodeDone { worker, done };
        self.say(worker, input);
    }

    pub(super) fn worker_work(&mut self, i: usize) {
        let Some(work) = self.workers[i].work.pop_front() else { return };
        let worker = &mut self.workers[i];
        match work {
            Work::Install(slice, codec, values) => {
                worker.compute.install_encoded(slice, codec, &values).unwrap();
            }
            Work::InstallExact(slice, values) => {
                let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&values[..]);
                worker.compute.install_exact(slice, &floats);
            }
            Work::Adopt(version) => {
                worker.compute.adopt();
                if let Some(values) = worker.compute.given() {
                    let given = Given { version };
                    let input = SchedulerInput::Given { worker: i as u32, given, values };
                    self.say(i as u32, input);
                }
            }
            Work::Witness(key) => worker.compute.witness(&key),
            Work::Residuals(version, shards) => worker.compute.order_residuals(version, shards),
            Work::Compute(step, nodes) => {
                if let Some(residuals) = worker.restored.take() {
                    let mut source = KeptResiduals(Vec::new(), residuals);
                    worker.compute.restore_for(step, &mut source, &nodes).unwrap();
                }
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
                        Event::Computed { step, loss, compute_us, pushed } => {
                            WorkerInput::Computed { step, loss, compute_us, pushed }
                        }
                    });
                };
                worker.compute.compute(step, &nodes, emit).unwrap();
                for input in told {
                    self.say(i as u32, input);
                }
            }
            Work::Evaluate(order) => {
                let result = worker.compute.evaluate(&order).unwrap();
                worker.events.push_back(WorkerInput::Evaluated(result));
            }
            Work::Export(order) => {
                let exported = worker.compute.export(&order).unwrap();
                let input = SchedulerInput::Exported { worker: i as u32, exported };
                self.say(i as u32, input);
            }
        }
        self.keep_residuals(i);
    }

    /// Residuals that are to be kept go to the writer; what was skipped is said.
    fn keep_residuals(&mut self, i: usize) {
        while let Some(event) = self.workers[i].compute.poll_residuals() {
            match event {
                ResidualEvent::Ready(snapshot) => {
                    assert!(self.workers[i].writing.replace(snapshot).is_none(), "two snapshots at once");
                }
                ResidualEvent::Skipped(version) => {
                    let part = ResidualPart { version, shards: Vec::new(), outcome: PartOutcome::Skipped };
                    self.say_residuals(i, part);
                }
            }
        }
    }

    pub(super) fn worker_written(&mut self, i: usize) {
        let Some(snapshot) = self.workers[i].writing.take() else { return };
        self.workers[i].compute.residuals_written();
        let (version, shards) = (snapshot.version, snapshot.shards.iter().map(|s| s.shard).collect());
        let number =
            1 + self.residuals.values().flat_map(|of| of.values()).map(|(n, _)| *n).max().unwrap_or(0);
        self.residuals.entry(version).or_default().insert(i as u32, (number, snapshot));
        let outcome = PartOutcome::Written { bytes: number, blake3: [0; 32], slices: 0 };
        self.say_residuals(i, ResidualPart { version, shards, outcome });
        self.keep_residuals(i);
    }

    fn say_residuals(&mut self, i: usize, part: ResidualPart) {
        let lies = self.foreign_residuals == Some(i as u32);
        let part = if lies { ResidualPart { shards: vec![0, 5], ..part } } else { part };
        self.say(i as u32, SchedulerInput::ResidualPart { worker: i as u32, part });
    }
}

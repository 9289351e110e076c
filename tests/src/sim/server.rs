//! The simulator's servers: a core, its arithmetic, and the order in which the seed lets it work.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use testudo_actors::checkpoint::Snapshot;
use testudo_actors::message::{
    Body, CheckpointPart, GradientWeights, Member, MemberRole, PartOutcome, Pull, PullRefusal, Push,
    PushRefusal, SliceVersion,
};
use testudo_actors::placement::SliceId;
use testudo_actors::scheduler::Input as SchedulerInput;
use testudo_actors::server::{
    Contribution, Effect as ServerEffect, Input as ServerInput, MathError, ServerCore, SliceMath,
    SnapshotEvent, Store,
};
use testudo_actors::tree::Node;
use testudo_actors::worker::Input as WorkerInput;
use testudo_kernels::Codec;
use testudo_kernels::robust::weigh::Weights;
use testudo_transport::Payload;

use super::kept::restored;
use super::{About, Reply, Simulation, Values, Wire};

pub(super) struct Server {
    pub(super) core: ServerCore<Reply, Values>,
    pub(super) math: SliceMath,
    pub(super) store: Arc<Store>,
    pub(super) work: VecDeque<(SliceId, u64, Node, Values)>,
    pub(super) initialise: bool,
    /// Checkpoints that the scheduler ordered, and the snapshot that is being written.
    pub(super) orders: VecDeque<u64>,
    pub(super) hash_orders: VecDeque<u64>,
    /// Weights that the scheduler sent.
    pub(super) weights: VecDeque<GradientWeights>,
    pub(super) writing: Option<Snapshot>,
    /// By worker, the life that takes part.
    pub(super) live: BTreeMap<u32, u64>,
}

impl Simulation {
    pub(super) fn drain_server(&mut self, i: usize) {
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
                    let (store, exact) = (&self.servers[i].store, reply.wants_exact());
                    let (bytes, codec) = match exact {
                        true => (store.read_exact(slice, version).unwrap().0, Codec::F32),
                        false => (store.read(slice, version).unwrap().0, store.codec()),
                    };
                    let body = SliceVersion { slice, version, codec: codec.id() }.encode();
                    self.carried.push((SliceVersion::KIND, body, bytes.clone()));
                    self.reply(i, reply, Ok(Some(bytes)));
                }
                ServerEffect::RefusePull { reply, reason } => self.refuse_pull(i, reply, reason),
                ServerEffect::Ready { epoch, version } => {
                    let ready = SchedulerInput::Ready { server: i as u32, epoch, version };
                    self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(ready));
                }
                ServerEffect::Heartbeat(heartbeat) => self.heartbeat(MemberRole::Server, i, heartbeat),
            }
        }
    }

    pub(super) fn reply(&mut self, server: usize, reply: Reply, answer: Result<Option<Values>, PushRefusal>) {
        let (worker, life) = (reply.worker, reply.life);
        if self.workers.get(worker as usize).is_none_or(|w| !w.alive || w.life != life) {
            return;
        }
        let input = match (reply.about, answer) {
            (About::Push(Push { step, node, slice, .. }), Ok(_)) => {
                WorkerInput::Accepted { step, node, slice }
            }
            (About::Push(Push { step, node, slice, .. }), Err(reason)) => {
                WorkerInput::Refused { step, node, slice, reason }
            }
            (About::Pull(Pull { slice, version, exact }), Ok(Some(values))) => {
                let codec = if exact { 0 } else { self.servers[server].store.codec().id() };
                WorkerInput::Slice { slice, version, codec, bytes: values.len() as u64, values }
            }
            (about, answer) => panic!("{answer:?} is no answer to {about:?}"),
        };
        let name = super::name(Member { role: MemberRole::Worker, index: worker }, life);
        self.post(format!("server/{server}>{name}"), Wire::ToWorker((worker, life), input));
    }

    pub(super) fn refuse_pull(&mut self, server: usize, reply: Reply, reason: PullRefusal) {
        if let About::Pull(Pull { slice, version, .. }) = reply.about
            && self.workers.get(reply.worker as usize).is_some_and(|w| w.alive && w.life == reply.life)
        {
            let (worker, life) = (reply.worker, reply.life);
            let input = WorkerInput::PullRefused { slice, version, reason };
            let name = super::name(Member { role: MemberRole::Worker, index: worker }, life);
            self.post(format!("server/{server}>{name}"), Wire::ToWorker((worker, life), input));
        }
    }

    pub(super) fn server_work(&mut self, i: usize) {
        let server = &mut self.servers[i];
        // Orders of the version that they make come behind them.
        if let Some(GradientWeights { step, weights, clip }) = server.weights.pop_front() {
            let updated = server.math.combine(step, &Weights { of: weights, clip }).unwrap();
            server.core.handle(self.clock, ServerInput::Combined { updated });
            self.drain_server(i);
            self.snapshots(i);
            return self.pieces(i);
        }
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
                server.math.initialise().unwrap();
            } else {
                server.math.restore(restored(&self.restored, &server.math.slices())).unwrap();
            }
            ServerInput::Initialised
        } else {
            // Any contribution may be summed next: their order is the seed's choice.
            let at = self.choice.below(server.work.len());
            let (slice, step, node, values) = server.work.remove(at).unwrap();
            let values = server.math.decode(slice, Payload::copy_from(&values));
            let unusable = |reason| ServerInput::Unusable { slice, step, node, reason };
            match values.and_then(|values| server.math.contribute(Contribution { slice, step, node, values }))
            {
                Ok(updated) => ServerInput::Stored { slice, step, node, updated },
                Err(MathError::Codec(_)) => unusable(PushRefusal::Malformed),
                Err(MathError::NotFinite(element)) => unusable(PushRefusal::NotFinite { element }),
                Err(error) => panic!("{error}"),
            }
        };
        server.core.handle(self.clock, input);
        if let Some((step, products)) = self.servers[i].math.poll_products() {
            let bytes = products.to_bytes();
            let input = SchedulerInput::Products { server: i as u32, step, bytes };
            self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(input));
        }
        self.drain_server(i);
        self.snapshots(i);
        self.pieces(i);
    }

    /// What a server tells of its parameters.
    pub(super) fn pieces(&mut self, i: usize) {
        while let Some(told) = self.servers[i].math.poll_pieces() {
            let input = SchedulerInput::Pieces { server: i as u32, told };
            self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(input));
        }
    }

    /// Snapshots that have become whole go to the writer; what was skipped is said.
    pub(super) fn snapshots(&mut self, i: usize) {
        while let Some(event) = self.servers[i].math.poll_snapshot() {
            match event {
                SnapshotEvent::Ready(snapshot) => {
                    assert!(self.servers[i].writing.replace(snapshot).is_none(), "two snapshots at once");
                }
                SnapshotEvent::Skipped(version) => self.say_part(i, version, PartOutcome::Skipped),
            }
        }
    }

    pub(super) fn server_written(&mut self, i: usize) {
        let Some(snapshot) = self.servers[i].writing.take() else { return };
        self.servers[i].math.snapshot_written().unwrap();
        let (version, slices) = (snapshot.version, snapshot.slices.len() as u32);
        self.parts.entry(version).or_default().insert(i as u32, snapshot);
        self.say_part(i, version, PartOutcome::Written { bytes: 0, blake3: [0; 32], slices });
        self.snapshots(i);
    }

    pub(super) fn say_part(&mut self, i: usize, version: u64, outcome: PartOutcome) {
        let part = CheckpointPart { version, outcome };
        let input = SchedulerInput::CheckpointPart { server: i as u32, part };
        self.post(format!("server/{i}>scheduler"), Wire::ToScheduler(input));
    }
}

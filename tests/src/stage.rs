//! A stage on which a test plays every worker of a job by hand, at a real scheduler and real servers over QUIC.

use std::sync::Arc;
use std::time::Duration;

use testudo_actors::JobSpec;
use testudo_actors::checkpoint::{NamedTensor, params_blake3};
use testudo_actors::contributions::{Digest, Pushed, signed_bytes};
use testudo_actors::link::Network;
use testudo_actors::message::{
    Contributions, MemberRole, Membership, NodeDone, NodeLoss, Outcome, Pull, Push, StepTimes,
};
use testudo_actors::placement::{SliceId, SliceMap};
use testudo_actors::tree::Node;
use testudo_kernels::OptimizerSpec;
use testudo_transport::{Identity, Role};

use crate::cluster::{Cluster, Links, Site, Wiring};
use crate::member::{Answer, GIVEN_UP, Lane, Member, give_up, placement};
use crate::toy;

/// Far longer than any act takes: many answers, each of which has a minute.
const LONGEST: Duration = Duration::from_secs(300);

/// Examples of a step of [`job`].
pub const BATCH: u32 = 8;

/// Every worker of a job, in the test's hands, at a real scheduler and real servers.
pub struct Stage {
    /// The job.
    pub job: JobSpec,
    /// An operator's network, and where the scheduler is.
    pub operator: (Network, String),
    /// By worker: what it dials with.
    pub networks: Vec<Network>,
    /// By worker: who it is.
    pub identities: Vec<Arc<Identity>>,
    /// By server: where it is.
    pub servers: Vec<String>,
    /// By worker: its line to the scheduler.
    pub members: Vec<Member>,
    /// By worker: one lane to each server.
    pub lanes: Vec<Vec<Lane>>,
    /// The membership epoch that they were told of.
    pub epoch: u64,
    /// By worker: its first node.
    pub nodes: Vec<Node>,
    /// Where slices lie.
    pub map: SliceMap,
}

/// A job whose steps change parameters by known amounts: with plain descent at a rate of 1 and a batch of [`BATCH`]
/// examples, a sum of gradients moves a value by sum / [`BATCH`].
#[must_use]
pub fn job(workers: u32, servers: u32, shards: u32) -> JobSpec {
    JobSpec {
        optimizer: OptimizerSpec::shipped("sgd").unwrap(),
        learning_rate: 1.0,
        batch_size: BATCH,
        heartbeat_timeout_ms: 600_000,
        ..toy::job(workers, servers, shards, 3)
    }
}

impl Stage {
    /// All members of the job have joined, and workers are connected.
    async fn set(site: &Site, scheduler: String) -> Stage {
        let job = site.job.clone();
        let operator = (site.network(&site.identity(Role::Operator, "0")), scheduler.clone());
        let of = |index: u32| site.identity(Role::Worker, &index.to_string());
        let identities: Vec<Arc<Identity>> = (0..job.workers).map(of).collect();
        let networks: Vec<Network> = identities.iter().map(|identity| site.network(identity)).collect();
        let mut members = Vec::new();
        for network in &networks {
            members.push(Member::join(network, &scheduler, MemberRole::Worker).await.unwrap());
        }
        let map = placement(&job);
        let (lanes, nodes, at) = (Vec::new(), Vec::new(), Vec::new());
        let mut stage =
            Stage { job, operator, networks, identities, servers: at, members, lanes, epoch: 0, nodes, map };
        for index in 0..stage.members.len() {
            let Membership { epoch, leases, servers, .. } = stage.members[index].membership().await;
            stage.epoch = epoch;
            stage.nodes.push(leases.iter().find(|l| l.worker as usize == index).unwrap().node);
            let mut lanes = Vec::new();
            stage.servers = servers.iter().map(|s| s.address.clone()).collect();
            for server in servers {
                let id = stage.job.member(Role::Server, server.index).unwrap();
                lanes.push(Lane::dial(&stage.networks[index], &server.address, &id).await);
            }
            stage.lanes.push(lanes);
        }
        stage
    }

    /// Worker `worker`'s lane to the server of `slice`.
    pub fn lane(&mut self, worker: usize, slice: SliceId) -> &mut Lane {
        let server = self.map.slice(slice).map_or(0, |s| s.server);
        &mut self.lanes[worker][server as usize]
    }

    /// The push that worker `worker` owes for `slice` in `step`.
    #[must_use]
    pub fn push_of(&self, worker: usize, step: u64, slice: SliceId) -> Push {
        Push { epoch: self.epoch, step, slice, node: self.nodes[worker], codec: 0 }
    }

    /// Worker `worker` pushes `value` for every element of `slice`.
    pub async fn push(&mut self, worker: usize, step: u64, slice: SliceId, value: f32) -> Answer {
        let push = self.push_of(worker, step, slice);
        let values = vec![value; self.map.slice(slice).map_or(1, |s| s.elements)];
        self.lane(worker, slice).pushed(&push, &values).await
    }

    /// Worker `worker` signs that it contributed nothing to `step`.
    ///
    /// # Panics
    /// When it has no key to sign with.
    pub async fn sign(&mut self, worker: usize, step: u64) {
        let Digest { count, blake3 } = Pushed::default().take(step, []);
        let message = signed_bytes(step, &Digest { count, blake3 });
        let signature = self.identities[worker].sign(&message).unwrap();
        self.members[worker].tell(&Contributions { step, count, digest: blake3, signature }).await;
    }

    /// What worker `worker` reports of `step` once it is done.
    #[must_use]
    pub fn done(&self, worker: usize, step: u64) -> NodeDone {
        let loss = NodeLoss { node: self.nodes[worker], loss_sum: 1.0, correct: 1, examples: 4 };
        NodeDone {
            step,
            nodes: vec![loss],
            times: StepTimes::default(),
            bytes_sent: 1,
            bytes_received: 1,
            pushed: Default::default(),
        }
    }

    /// Worker `worker` pulls a version.
    pub async fn pull(&mut self, worker: usize, slice: SliceId, version: u64) -> Answer {
        self.lane(worker, slice).pulled(&Pull { slice, version, exact: false }).await
    }

    /// The hash of every parameter at `version`, as a worker that pulls them all has it.
    ///
    /// # Panics
    /// When the servers give it less than all.
    pub async fn params_blake3(&mut self, worker: usize, version: u64) -> [u8; 32] {
        let parameters = self.job.model.parameters().unwrap();
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); parameters.len()];
        for slice in self.map.clone().slices() {
            let of = usize::try_from(slice.id.parameter).unwrap();
            values[of].extend(self.values(worker, slice.id, version).await);
        }
        let tensors: Vec<NamedTensor<'_>> = parameters
            .iter()
            .zip(&values)
            .map(|(spec, values)| NamedTensor { name: &spec.name, dims: spec.shape.dims(), values })
            .collect();
        params_blake3(&tensors)
    }

    /// The values that worker `worker` gets for a version.
    ///
    /// # Panics
    /// When it gets none.
    pub async fn values(&mut self, worker: usize, slice: SliceId, version: u64) -> Vec<f32> {
        match self.pull(worker, slice, version).await {
            Answer::Values(values) => values,
            other => panic!("version {version} of {slice}: {other:?}"),
        }
    }

    /// Every worker contributes `value` to `slice`, so that it goes to the next version.
    pub async fn complete(&mut self, step: u64, slice: SliceId, value: f32) {
        for worker in 0..self.lanes.len() {
            assert_eq!(self.push(worker, step, slice, value).await, Answer::Accepted(false));
        }
    }

    /// Ends the run: all workers give up.
    async fn end(&mut self) {
        give_up(self.members.iter_mut()).await;
    }
}

/// Plays `act` on a stage of `job`, and then ends the run.
pub fn play(job: JobSpec, act: impl AsyncFnOnce(&mut Stage)) {
    let cluster = play_to_its_end(job, async |stage| {
        act(stage).await;
        stage.end().await;
    });
    assert_eq!(cluster.outcome(), Outcome::Failed(GIVEN_UP.into()));
}

/// Plays `act`, which ends the run itself.
#[must_use]
pub fn play_to_its_end(job: JobSpec, act: impl AsyncFnOnce(&mut Stage)) -> Cluster {
    let absent = (0..job.workers).collect();
    let cluster = Cluster::start_with(Site::new(job, Links::Quic), Wiring { absent, ..Wiring::default() });
    let played = async {
        let mut stage = Stage::set(&cluster.site, cluster.scheduler.to_string()).await;
        act(&mut stage).await;
    };
    let ended = cluster.site.runtime.block_on(async { tokio::time::timeout(LONGEST, played).await });
    assert!(ended.is_ok(), "the act does not end");
    cluster
}

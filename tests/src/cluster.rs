//! A whole cluster of real shells in one process, over memory or over QUIC on loopback.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use testudo::audit::AuditHandle;
use testudo_actors::audit::{Entry, Head};
use testudo_actors::checkpoint::{Ledger, NoCheckpoints, ServerSetup};
use testudo_actors::link::{MemoryHub, Network};
use testudo_actors::message::{Finished, Outcome, StatusReport};
use testudo_actors::node::{WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::operator::Line;
use testudo_actors::scheduler::{Observer, StepSummary};
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{CheckpointSink, Dataset, JobSpec, NodeError, NodeOptions, SignedJob, policy};
use testudo_kernels::cuda::AnyDevice;
use testudo_kernels::{Model, ModelError};
use testudo_transport::pki::WallClock;
use testudo_transport::{
    Endpoint, Identity, JobCa, MemoryOptions, Policy, Rate, Role, SpiffeId, TransportConfig,
};
use tokio::runtime::Runtime;

use crate::liar::{self, Lie};
use crate::toy;

/// How the nodes of a cluster are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Through memory; messages are moved.
    Memory,
    /// Through memory, with full sessions and MACs.
    SecuredMemory,
    /// Over QUIC on loopback.
    Quic,
}

/// Long enough for any certificate of a test.
pub const VALIDITY: Duration = Duration::from_secs(3600);

/// The certificate authority, the identities and the network of a test's cluster.
pub struct Site {
    /// The job.
    pub job: JobSpec,
    /// Its certificate authority.
    pub ca: JobCa,
    /// How nodes are connected.
    pub links: Links,
    /// The role table.
    pub policy: Arc<Policy>,
    /// The nodes' transport, if they are connected by QUIC.
    pub transport: TransportConfig,
    /// Where connections' tasks run.
    pub runtime: Runtime,
    /// Every identity that was given out.
    pub given: Mutex<Vec<Arc<Identity>>>,
    clock: Option<Arc<dyn WallClock>>,
    hub: MemoryHub,
}

/// Wraps a worker's arithmetic before it runs.
pub type Adapt = Box<dyn FnMut(ShardCompute) -> ShardCompute + Send>;

impl Site {
    /// A site for `job`. What its nodes log is printed if `TESTUDO_LOG` asks for it.
    #[must_use]
    pub fn new(job: JobSpec, links: Links) -> Site {
        if let Ok(filter) = std::env::var("TESTUDO_LOG") {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let ca = JobCa::create(&job.trust_domain, &job.name, 1000 * VALIDITY).unwrap();
        let policy = Arc::new(policy::policy_with(job.slice_bytes, job.codecs.push).unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (given, hub) = Default::default();
        Site { job, ca, links, policy, transport: unhurried(), runtime, given, clock: None, hub }
    }

    /// The same, with nodes that tell the time of day by this clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn WallClock>) -> Site {
        self.clock = Some(clock);
        self
    }

    /// The identity of one node.
    #[must_use]
    pub fn identity(&self, role: Role, name: &str) -> Arc<Identity> {
        let id = SpiffeId::new(&self.job.trust_domain, &self.job.name, role, name).unwrap();
        let issued = self.ca.issue(&id, VALIDITY).unwrap();
        let identity = Arc::new(match &self.clock {
            Some(clock) => issued.with_clock(Arc::clone(clock)),
            None => issued,
        });
        self.given.lock().unwrap().push(Arc::clone(&identity));
        identity
    }

    /// The network of one node.
    #[must_use]
    pub fn network(&self, identity: &Identity) -> Network {
        self.network_with(identity, &self.transport)
    }

    /// The network of one node, with that configuration if it is QUIC.
    #[must_use]
    pub fn network_with(&self, identity: &Identity, config: &TransportConfig) -> Network {
        let memory = |secured| {
            let options = MemoryOptions { secured, ..MemoryOptions::default() };
            self.hub.join(identity.id().clone(), Arc::clone(&self.policy), options)
        };
        match self.links {
            Links::Memory => memory(false),
            Links::SecuredMemory => memory(true),
            Links::Quic => {
                let _inside = self.runtime.enter();
                Network::Quic(Endpoint::bind(config, identity.clone(), Arc::clone(&self.policy)).unwrap())
            }
        }
    }

    /// The job, signed by an operator.
    #[must_use]
    pub fn signed(&self) -> SignedJob {
        SignedJob::sign(&self.job, &self.identity(Role::Operator, "test")).unwrap()
    }

    /// Starts the scheduler alone, for tests that play or start the others: where it is, and how its run ends.
    #[must_use]
    pub fn scheduler(&self) -> (String, JoinHandle<Result<Outcome, NodeError>>) {
        let identity = self.identity(Role::Scheduler, "0");
        let network = self.network(&identity);
        let address = network.local_addr().to_string();
        let (signed, runtime) = (self.signed(), self.runtime.handle().clone());
        let observer = Box::new(Steps::default());
        (address, std::thread::spawn(move || run_scheduler(&identity, network, signed, observer, runtime)))
    }
}

/// The transport's defaults, without rates at the door: a test tries more in a second than nodes do in a day, all from one address. And
/// with time for a handshake, however busy the machine is.
#[must_use]
pub fn unhurried() -> TransportConfig {
    let any = Rate { per_second: 1 << 20, burst: 1 << 20 };
    TransportConfig {
        handshakes: any,
        handshakes_per_address: any,
        handshakes_per_peer: any,
        handshake_timeout: Duration::from_secs(60),
        ..TransportConfig::default()
    }
}

/// Collects the completed steps, and what the audit log is told.
#[derive(Clone, Debug, Default)]
pub struct Steps(pub Arc<Mutex<Vec<StepSummary>>>, pub Arc<Mutex<Vec<Entry>>>);

impl Observer for Steps {
    fn step(&mut self, summary: &StepSummary) {
        self.0.lock().unwrap().push(summary.clone());
    }

    fn audit(&mut self, entry: Entry) {
        self.1.lock().unwrap().push(entry);
    }
}

/// The scheduler's observer in a cluster.
struct Watching {
    steps: Steps,
    ledger: Option<Box<dyn Ledger>>,
    log: Option<AuditHandle>,
}

impl Observer for Watching {
    fn step(&mut self, summary: &StepSummary) {
        self.steps.step(summary);
    }

    fn audit(&mut self, entry: Entry) {
        self.log.iter().for_each(|log| log.tell(entry.clone()));
        self.steps.audit(entry);
    }

    fn audit_head(&mut self) -> Option<Head> {
        self.log.as_ref()?.head()
    }

    fn ledger(&mut self) -> Option<Box<dyn Ledger>> {
        self.ledger.take()
    }
}

/// A worker's set-up on the toy data.
pub struct ToySetup {
    adapt: Option<Adapt>,
    lie: Option<Lie>,
    device: Option<AnyDevice>,
}

impl ToySetup {
    /// As a job has it.
    #[must_use]
    pub fn plain() -> ToySetup {
        ToySetup { adapt: None, lie: None, device: None }
    }

    /// With arithmetic that `adapt` wraps.
    #[must_use]
    pub fn adapted(adapt: Adapt) -> ToySetup {
        ToySetup { adapt: Some(adapt), lie: None, device: None }
    }
}

impl WorkerSetup for ToySetup {
    fn data(&mut self, _: &JobSpec) -> Result<(Arc<dyn Dataset>, Arc<dyn Dataset>), String> {
        Ok(toy::data())
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        let model = match self.device.take() {
            Some(device) => job.build_model_on(device)?,
            None => job.build_model()?,
        };
        Ok(liar::perhaps(model, self.lie))
    }

    fn sink(&mut self, _: &JobSpec) -> Box<dyn CheckpointSink> {
        Box::new(toy::NoSink)
    }

    fn adapt(&mut self, compute: ShardCompute) -> ShardCompute {
        match &mut self.adapt {
            Some(adapt) => adapt(compute),
            None => compute,
        }
    }
}

/// What is unusual about a cluster.
pub struct Wiring {
    /// The order in which each server sums, by index.
    pub order: Box<dyn FnMut(u32) -> SumOrder>,
    /// May wrap a worker's arithmetic, by index.
    pub adapt: Box<dyn FnMut(u32) -> Option<Adapt>>,
    /// May have a worker lie about its gradients, by index.
    pub lie: Box<dyn FnMut(u32) -> Option<Lie>>,
    /// May put something between the scheduler or a server and whoever dials it, given its role, its index and where it is
    /// bound: they dial the answer.
    pub advertise: Box<dyn FnMut(Role, u32, SocketAddr) -> SocketAddr>,
    /// Workers that are not started: the test plays them itself.
    pub absent: Vec<u32>,
    /// Where each server writes its parts of checkpoints, by index.
    pub checkpoints: Box<dyn FnMut(u32) -> Box<dyn ServerSetup>>,
    /// What a worker computes on, by index, if not on the CPU.
    pub devices: Box<dyn FnMut(u32) -> Option<AnyDevice>>,
    /// What makes checkpoints whole.
    pub ledger: Option<Box<dyn Ledger>>,
    /// Is shown every node's network. What keeps one keeps its connections, beyond the node's end.
    pub networks: Box<dyn FnMut(&Network)>,
    /// The audit log that the scheduler keeps.
    pub audit: Option<AuditHandle>,
}

impl Default for Wiring {
    /// Nothing unusual.
    fn default() -> Wiring {
        Wiring {
            order: Box::new(|_| SumOrder::Canonical),
            adapt: Box::new(|_| None),
            lie: Box::new(|_| None),
            advertise: Box::new(|_, _, address| address),
            absent: Vec::new(),
            checkpoints: Box::new(|_| Box::new(NoCheckpoints)),
            devices: Box::new(|_| None),
            ledger: None,
            networks: Box::new(|_| {}),
            audit: None,
        }
    }
}

/// A cluster under way.
pub struct Cluster {
    /// The site it runs on.
    pub site: Site,
    /// Where the scheduler is.
    pub scheduler: SocketAddr,
    /// Where the servers are.
    pub servers: Vec<SocketAddr>,
    /// The steps completed so far.
    pub steps: Steps,
    outcome: JoinHandle<Result<Outcome, NodeError>>,
    nodes: Vec<(SpiffeId, JoinHandle<Result<(), NodeError>>)>,
}

impl Cluster {
    /// Starts every node of `job`, each on a thread of its own.
    #[must_use]
    pub fn start(job: JobSpec, links: Links) -> Cluster {
        Cluster::start_with(Site::new(job, links), Wiring::default())
    }

    /// Follows the run as an operator, and hands every report to `see`.
    pub fn follow(&self, mut see: impl FnMut(StatusReport) + Send + 'static) {
        let network = self.site.network(&self.site.identity(Role::Operator, "0"));
        let (address, scheduler) =
            (self.scheduler.to_string(), self.site.job.member(Role::Scheduler, 0).unwrap());
        self.site.runtime.spawn(async move {
            let line = Line::dial(&network, &address, &scheduler).await.unwrap();
            let (_commands, mut reports) = line.follow(50, true).await.unwrap();
            while let Ok(report) = reports.next().await {
                see(report);
            }
        });
    }

    /// Starts the nodes on `site`, but for those that the test plays itself.
    #[must_use]
    pub fn start_with(site: Site, mut wiring: Wiring) -> Cluster {
        let signed = site.signed();
        let identity = site.identity(Role::Scheduler, "0");
        let network = site.network(&identity);
        let scheduler = network.local_addr();
        (wiring.networks)(&network);
        let dialled = (wiring.advertise)(Role::Scheduler, 0, scheduler).to_string();
        let steps = Steps::default();
        let runtime = site.runtime.handle().clone();
        let (ledger, log) = (wiring.ledger.take(), wiring.audit.take());
        let observer = Box::new(Watching { steps: steps.clone(), ledger, log });
        let outcome =
            std::thread::spawn(move || run_scheduler(&identity, network, signed, observer, runtime));
        let mut nodes = Vec::new();
        let mut servers = Vec::new();
        for index in 0..site.job.servers {
            let identity = site.identity(Role::Server, &index.to_string());
            let network = site.network(&identity);
            servers.push(network.local_addr());
            (wiring.networks)(&network);
            let advertise = Some((wiring.advertise)(Role::Server, index, network.local_addr()).to_string());
            let runtime = site.runtime.handle().clone();
            let id = identity.id().clone();
            let options = NodeOptions {
                identity,
                network,
                scheduler: dialled.clone(),
                advertise,
                lanes: 3,
                runtime,
                codecs: None,
            };
            let order = (wiring.order)(index);
            let mut setup = (wiring.checkpoints)(index);
            nodes.push((id, std::thread::spawn(move || run_server(options, order, setup.as_mut()))));
        }
        let dialling = TransportConfig { accepts: false, ..site.transport.clone() };
        for index in (0..site.job.workers).filter(|index| !wiring.absent.contains(index)) {
            let identity = site.identity(Role::Worker, &index.to_string());
            let network = site.network_with(&identity, &dialling);
            (wiring.networks)(&network);
            let device = (wiring.devices)(index);
            let mut setup = ToySetup { adapt: (wiring.adapt)(index), lie: (wiring.lie)(index), device };
            let runtime = site.runtime.handle().clone();
            let id = identity.id().clone();
            let options = NodeOptions {
                identity,
                network,
                scheduler: dialled.clone(),
                advertise: None,
                lanes: 3,
                runtime,
                codecs: None,
            };
            nodes.push((id, std::thread::spawn(move || run_worker(options, &mut setup))));
        }
        Cluster { site, scheduler, servers, steps, outcome, nodes }
    }

    /// Waits for the end, which must be in order for every node.
    pub fn finish(self) -> (Finished, Vec<StepSummary>) {
        self.finish_with(|_| true)
    }

    /// Waits for the end, which must be in order for every node of whom `in_order` says so.
    pub fn finish_with(self, in_order: impl Fn(&SpiffeId) -> bool) -> (Finished, Vec<StepSummary>) {
        let outcome = self.outcome.join().unwrap().unwrap();
        for (id, node) in self.nodes {
            let ended = node.join().unwrap();
            assert!(ended.is_ok() || !in_order(&id), "{id}: {ended:?}");
        }
        match outcome {
            Outcome::Finished(finished) => (finished, self.steps.0.lock().unwrap().clone()),
            Outcome::Failed(reason) | Outcome::ServerLost(reason) => panic!("the run failed: {reason}"),
        }
    }

    /// Waits for the end, however it comes.
    pub fn outcome(self) -> Outcome {
        let outcome = self.outcome.join().unwrap().unwrap();
        for (_, node) in self.nodes {
            let _ = node.join().unwrap();
        }
        outcome
    }
}

/// Waits for `value` from a channel, with a bound that only a hang reaches.
///
/// # Panics
/// When nothing comes within two minutes.
pub fn wait_for<T>(channel: &mpsc::Receiver<T>) -> T {
    channel.recv_timeout(Duration::from_secs(120)).expect("it comes within two minutes")
}

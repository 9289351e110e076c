//! Running one node to its end: join the job, check it, start the actor, wait.
//!
//! Each function blocks its thread, which becomes the actor's; connections' tasks run on the tokio runtime that is handed
//! in, and arithmetic on a thread of its own.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, System};
use testudo_kernels::{Model, ModelError};
use testudo_transport::{Class, Connection, Identity, Outgoing, Receiver, Role, Sender, SpiffeId};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::checkpoint::{CheckpointSink, PartSource, PartWriter, ServerSetup};
use crate::dataset::TrainAndTest;
use crate::incarnation::Secret;
use crate::job::{Codecs, JobError, JobSpec, SignedJob};
use crate::link::Network;
use crate::message::{Body, Join, JoinRefused, Outcome, Shutdown, Welcome};
use crate::outbox::{Budget, Outbox};
use crate::placement::{PlacementError, SliceMap};
use crate::plan::Plan;
use crate::scheduler::actor::SchedulerActor;
use crate::scheduler::{Observer, SchedulerCore};
use crate::server::actor::{ServerActor, ServerParts};
use crate::server::{ServerCore, SliceMath, Store, SumOrder, fits};
use crate::witness::{Key, Witness};
use crate::worker::actor::{WorkerActor, WorkerParts};
use crate::worker::{ComputeError, ShardCompute, WorkerCore};

/// The release that nodes of one job must share.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Messages to the scheduler that may wait: reports and heartbeats, which it reads as they come.
const MAX_REPORTS: usize = 1024;

/// The scheduler's stream overtakes every other.
const CONTROL_PRIORITY: i32 = 100;

/// What every node needs.
#[derive(Debug)]
pub struct NodeOptions {
    /// Who it is, and whom it trusts.
    pub identity: Arc<Identity>,
    /// What it dials with and is dialled on.
    pub network: Network,
    /// Where the scheduler is, `host:port`.
    pub scheduler: String,
    /// Where others can dial this node, `host:port`, if it is not where it is bound.
    pub advertise: Option<String>,
    /// Streams that a worker opens to each server, by priority; at least 1.
    pub lanes: u32,
    /// Where connections' tasks run.
    pub runtime: Handle,
    /// How values travel by what this node was configured with, if it was: a signed job that says otherwise is not taken up.
    pub codecs: Option<Codecs>,
}

/// Why a node ended other than in order, by blame.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The scheduler could not be reached.
    #[error("the scheduler at {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why.
        reason: String,
    },
    /// The scheduler turned this node away.
    #[error("the scheduler turned this node away: {}", .0.reason)]
    TurnedAway(JoinRefused),
    /// Others trust this node no longer: its certificate is revoked, or has ended, or a flood came under its name.
    #[error("this node is trusted no longer: {0}")]
    Untrusted(String),
    /// The connection to the scheduler ended before the run did.
    #[error("the connection to the scheduler was lost: {0}")]
    SchedulerLost(String),
    /// The run is over without having ended in order, and the job may go on from a checkpoint.
    #[error(
        "the run is over: {0}; the job may go on from a checkpoint, and this node may be started again for it"
    )]
    RunLost(String),
    /// The scheduler said what makes no sense.
    #[error("the scheduler misbehaved: {0}")]
    Scheduler(String),
    /// The job does not hold.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The model does not hold.
    #[error("the job's model: {0}")]
    Model(#[from] ModelError),
    /// The parameters cannot be placed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Model, data and job do not fit.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// This node's configuration is not that of the job.
    #[error(
        "this node is configured with transport.push_codec {} and transport.pull_codec {}, and the signed job says {} and {}, or \
         with other parameters: every node needs what the operator has",
        configured.push, configured.pull, signed.push, signed.pull
    )]
    Codecs {
        /// What the node was configured with.
        configured: Codecs,
        /// What the operator signed.
        signed: Codecs,
    },
    /// This machine refused something.
    #[error("{0}")]
    Environment(String),
    /// A bug in Testudo.
    #[error("a bug in Testudo: {0}; please report it")]
    Bug(String),
}

/// Gives a worker its data and its sink once the job is known and checked.
pub trait WorkerSetup: Send {
    /// Called before the worker joins: what takes long, reading the data above all, belongs here, because from its join on a
    /// worker must be heard.
    ///
    /// # Errors
    /// The text is for the operator.
    fn prepare(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// What is said of this worker's arithmetic: under strict determinism, only nodes that say the same are in one job.
    fn fingerprint(&self) -> String {
        testudo_kernels::fingerprint()
    }

    /// The training set and the test set of `job`; their content is the implementation's to check.
    ///
    /// # Errors
    /// The text is for the operator.
    fn data(&mut self, job: &JobSpec) -> Result<TrainAndTest, String>;

    /// The model; the job's own, unless the job names one that only this program has.
    ///
    /// # Errors
    /// When it cannot be built.
    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        job.build_model()
    }

    /// Where the final model goes.
    fn sink(&mut self, job: &JobSpec) -> Box<dyn CheckpointSink>;

    /// Called when the scheduler has admitted the worker, with what it shows to servers and its line to the scheduler: a test may
    /// say more under its name than it does itself.
    fn joined(&mut self, _secret: &Secret, _scheduler: &Outbox) {}

    /// Where parts of checkpoints are written and read. Asked for only if the job has residuals to keep, or begins with some.
    fn checkpoints(&mut self) -> Option<&mut dyn ServerSetup> {
        None
    }

    /// The arithmetic, just built; a test may watch it.
    fn adapt(&mut self, compute: ShardCompute) -> ShardCompute {
        compute
    }
}

/// What a job's nodes derive from it alike.
struct Derived {
    job: Arc<JobSpec>,
    map: SliceMap,
    names: Vec<String>,
    parameters: Vec<testudo_kernels::ParameterSpec>,
}

fn derive(job: JobSpec, configured: Option<Codecs>) -> Result<Derived, NodeError> {
    if let Some(configured) = configured.filter(|codecs| *codecs != job.codecs) {
        return Err(NodeError::Codecs { configured, signed: job.codecs });
    }
    let parameters = job.model.parameters()?;
    let map = SliceMap::of(&job, &parameters)?;
    let names = parameters.iter().map(|p| p.name.clone()).collect();
    Ok(Derived { job: Arc::new(job), map, names, parameters })
}

/// Runs the scheduler of `signed` until the run is over.
///
/// # Errors
/// [`NodeError`] when it could not begin; how the run itself went is in the [`Outcome`].
pub fn run_scheduler(
    identity: &Identity,
    network: Network,
    signed: SignedJob,
    mut observer: Box<dyn Observer>,
    runtime: Handle,
) -> Result<Outcome, NodeError> {
    let Derived { job, map, names, parameters } = derive(signed.open(identity)?, None)?;
    let witness = witness(&job, &map, &parameters, observer.as_mut())?;
    System::new().block_on(async move {
        let (over, outcome) = oneshot::channel();
        let core = SchedulerCore::new(job, RELEASE.to_owned(), names);
        let core = match witness {
            Some((key, witness)) => core.with_witness(key, witness),
            None => core,
        };
        let actor = SchedulerActor::new(core, signed, network.clone(), runtime, observer, over)
            .with_parameters(&parameters, &map);
        let _address = actor.start();
        let outcome =
            outcome.await.map_err(|_| NodeError::Bug("the scheduler ended without an outcome".into()));
        network.close("the run is over").await;
        outcome
    })
}

/// What the scheduler of `job` witnesses, if anything. A resumed run whose checkpoint it cannot read is not witnessed.
fn witness(
    job: &Arc<JobSpec>,
    map: &SliceMap,
    parameters: &[testudo_kernels::ParameterSpec],
    observer: &mut dyn Observer,
) -> Result<Option<(Key, Witness)>, NodeError> {
    if job.witness_rate == 0.0 {
        return Ok(None);
    }
    let key = Key::new().map_err(NodeError::Environment)?;
    let source = job.resume.as_ref().map(|resume| observer.source(job, resume)).transpose();
    let witness = source.and_then(|mut source| {
        let source = source.as_mut().map(|source| source.as_mut() as &mut dyn PartSource);
        Witness::new(job, map, parameters, &key, source)
    });
    match witness {
        Ok(witness) => {
            tracing::info!(values = witness.elements(), "updates are witnessed");
            Ok(Some((key, witness)))
        }
        Err(reason) => {
            tracing::warn!(reason, "no update of this run is witnessed");
            Ok(None)
        }
    }
}

/// Runs a server until the scheduler dismisses it.
///
/// # Errors
/// [`NodeError`] when it ended other than in order.
pub fn run_server(
    options: NodeOptions,
    order: SumOrder,
    setup: &mut dyn ServerSetup,
) -> Result<(), NodeError> {
    System::new().block_on(async {
        let index = own_index(&options)?;
        let advertise = options.advertise.clone().unwrap_or_else(|| options.network.local_addr().to_string());
        let joined = join(&options, Some(advertise), testudo_kernels::fingerprint()).await?;
        let Joined { signed, scheduler, from_scheduler, .. } = joined;
        let Derived { job, map, parameters, .. } = derive(signed.open(&options.identity)?, options.codecs)?;
        let writer = job.checkpoints.wanted().then(|| setup.writer(&job, index)).transpose();
        let source = job.resume.as_ref().map(|resume| setup.source(&job, resume)).transpose();
        let (writer, source) =
            (writer.map_err(NodeError::Environment)?, source.map_err(NodeError::Environment)?);
        let rule = job.aggregation.own().map(|own| setup.rule(own.name)).transpose();
        let rule = rule.and_then(|rule| match rule {
            Some(rule) => fits(&job, rule.as_ref()).map(|()| Some(rule)),
            None => Ok(None),
        });
        let rule = rule.map_err(NodeError::Environment)?;
        let store = Arc::new(Store::new(job.codecs.pull));
        setup.stored(&store);
        let mine: Vec<_> = map.of_server(index).copied().collect();
        let heartbeat = Duration::from_millis(job.heartbeat_ms);
        let (slices, bytes) = (mine.len(), mine.iter().map(|s| s.elements * 4).sum());
        let mut math = SliceMath::new(index, Arc::clone(&job), parameters, mine, Arc::clone(&store), order)
            .map_err(|error| NodeError::Bug(error.to_string()))?
            .with_rule(rule)
            .with_histograms(setup.histogram_every());
        if let Some(device) = setup.device() {
            math = match setup.or_cpu() {
                true => math.with_device_or_cpu(device),
                false => math.with_device(device).map_err(|e| NodeError::Environment(e.to_string()))?,
            };
        }
        let parts = ServerParts {
            core: ServerCore::new(index, job.tree(), map, job.first_step(), heartbeat)
                .with_codec(job.codecs.push),
            math,
            job,
            source,
            writer,
            store,
            slices,
            bytes,
            network: options.network.clone(),
            identity: Arc::clone(&options.identity),
            scheduler,
            from_scheduler,
            runtime: options.runtime.clone(),
        };
        let (over, result) = oneshot::channel();
        let _address = ServerActor::new(parts, over).start();
        finish(&options.network, result).await
    })
}

/// Runs a worker until the scheduler dismisses it.
///
/// # Errors
/// [`NodeError`] when it ended other than in order.
pub fn run_worker(options: NodeOptions, setup: &mut dyn WorkerSetup) -> Result<(), NodeError> {
    System::new().block_on(async {
        let index = own_index(&options)?;
        setup.prepare().map_err(NodeError::Environment)?;
        let Joined { signed, scheduler, from_scheduler, secret } =
            join(&options, None, setup.fingerprint()).await?;
        setup.joined(&secret, &scheduler);
        let Derived { job, map, names, parameters } =
            derive(signed.open(&options.identity)?, options.codecs)?;
        let (train, test) = setup.data(&job).map_err(NodeError::Environment)?;
        let plan = Plan::new(&job);
        let heartbeat = Duration::from_millis(job.heartbeat_ms);
        let shared = Arc::new(map.clone());
        let compute =
            ShardCompute::new(Arc::clone(&job), shared, setup.model(&job)?, train, test, setup.sink(&job))?;
        let (source, writer) = residuals(&job, index, setup).map_err(NodeError::Environment)?;
        let parts = WorkerParts {
            index,
            compute: setup.adapt(compute),
            source,
            writer,
            slices: map.slices().len(),
            core: WorkerCore::new(index, job.tree(), map, names, (job.first_step(), plan.steps()), heartbeat)
                .with_codecs(job.codecs),
            job,
            parameters: parameters.len(),
            lanes: options.lanes.max(1),
            network: options.network.clone(),
            identity: Arc::clone(&options.identity),
            secret,
            scheduler,
            from_scheduler,
            runtime: options.runtime.clone(),
        };
        let (over, result) = oneshot::channel();
        let _address = WorkerActor::new(parts, over).start();
        finish(&options.network, result).await
    })
}

type Residuals = (Option<Box<dyn PartSource>>, Option<Box<dyn PartWriter>>);

/// Where a worker's residuals come from, and where they go.
fn residuals(job: &JobSpec, index: u32, setup: &mut dyn WorkerSetup) -> Result<Residuals, String> {
    let resume = job.resume.as_ref().filter(|_| job.codecs.push.feeds_back());
    if resume.is_none() && !job.keeps_residuals() {
        return Ok((None, None));
    }
    let places = setup.checkpoints();
    let places =
        places.ok_or("this worker has no place for checkpoints, and the job has residuals in them")?;
    let source = resume.map(|resume| places.source(job, resume)).transpose()?;
    let writer = job.keeps_residuals().then(|| places.writer(job, index)).transpose()?;
    Ok((source, writer))
}

/// How a member ends that the scheduler has dismissed.
pub(crate) fn dismissed(Shutdown { reason, may_go_on }: Shutdown) -> Result<(), NodeError> {
    tracing::info!(reason, "leaving");
    if may_go_on { Err(NodeError::RunLost(reason)) } else { Ok(()) }
}

async fn finish(
    network: &Network,
    result: oneshot::Receiver<Result<(), NodeError>>,
) -> Result<(), NodeError> {
    let result =
        result.await.unwrap_or_else(|_| Err(NodeError::Bug("the actor ended without a result".into())));
    network.close("left").await;
    result
}

fn own_index(options: &NodeOptions) -> Result<u32, NodeError> {
    let id = options.identity.id();
    id.index().ok_or_else(|| {
        NodeError::Environment(format!("{id} names no numbered node: a server or worker identity is needed"))
    })
}

/// A node's place in the job.
struct Joined {
    signed: SignedJob,
    scheduler: Outbox,
    from_scheduler: Receiver,
    secret: Secret,
}

/// Joins the job: says who this node is and gets the signed job.
async fn join(
    options: &NodeOptions,
    address: Option<String>,
    fingerprint: String,
) -> Result<Joined, NodeError> {
    let secret = Secret::new().map_err(NodeError::Environment)?;
    let id = options.identity.id();
    let at = options.scheduler.clone();
    let scheduler = SpiffeId::new(id.trust_domain(), id.job(), Role::Scheduler, "0")
        .map_err(|e| NodeError::Environment(e.to_string()))?;
    // On the connections' runtime, so that the connection's own tasks run there and not on the actor's thread.
    let dialled = options.runtime.spawn(dial_scheduler(options.network.clone(), at.clone(), scheduler)).await;
    let (connection, sender, mut receiver) = dialled
        .map_err(|e| NodeError::Bug(e.to_string()))?
        .map_err(|reason| NodeError::Unreachable { address: at, reason })?;
    let outbox = Outbox::new(connection, sender, Budget::messages(MAX_REPORTS), &options.runtime);
    let join = Join { release: RELEASE.to_owned(), fingerprint, address, commitment: secret.commitment() };
    tracing::info_span!("join").in_scope(|| outbox.post(Outgoing::new(Join::KIND, 1, join.encode())));
    let message = match receiver.recv().await {
        Ok(Some(message)) => message,
        Ok(None) => return Err(NodeError::SchedulerLost("it closed the stream".into())),
        Err(error) => return Err(NodeError::SchedulerLost(error.to_string())),
    };
    let misbehaved = |e: testudo_transport::WireError| NodeError::Scheduler(e.to_string());
    match message.kind {
        Welcome::KIND => {
            let welcome = Welcome::decode(&message.body).map_err(misbehaved)?;
            tracing::info!(incarnation = welcome.incarnation, "joined");
            Ok(Joined { signed: welcome.job, scheduler: outbox, from_scheduler: receiver, secret })
        }
        JoinRefused::KIND => {
            Err(NodeError::TurnedAway(JoinRefused::decode(&message.body).map_err(misbehaved)?))
        }
        other => Err(NodeError::Scheduler(format!("kind {other} is no answer to a join"))),
    }
}

async fn dial_scheduler(
    network: Network,
    at: String,
    scheduler: SpiffeId,
) -> Result<(Connection, Sender, Receiver), String> {
    let connection = network.connect_patiently(&at, &scheduler).await?;
    let (sender, receiver) =
        connection.open(Class::Control, CONTROL_PRIORITY).await.map_err(|e| e.to_string())?;
    Ok((connection, sender, receiver))
}

//! Starting the nodes of a cluster, each on a thread of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use testudo_actors::checkpoint::{NoCheckpoints, PartSource, PartWriter, ServerSetup};
use testudo_actors::link::Network;
use testudo_actors::message::Outcome;
use testudo_actors::node::{NodeError, NodeOptions, WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{CheckpointError, CheckpointSink, FinalModel, JobSpec, Resume, SignedJob, TrainAndTest};
use testudo_kernels::{Aggregator, Model, ModelError, OwnName};
use testudo_transport::{Identity, Role, SpiffeId};

use super::EmbeddedError;
use super::builder::{ModelSetup, Models};
use super::ending::Ending;
use super::reports::{Board, Reporting};
use super::running::Parameter;
use super::site::Site;
use crate::report::tensorboard::Events;

/// Streams that a worker opens to each server: what the cluster file's default is.
const LANES: u32 = 3;

/// What the nodes of a job are made of.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) models: Option<Models>,
    /// By worker.
    pub(super) sets: Vec<TrainAndTest>,
    pub(super) rule: Option<Arc<dyn Aggregator>>,
    /// Of which versions servers count how values are spread; 0 for none.
    pub(super) histogram_every: u64,
}

/// The final model, once a worker has exported it.
pub(super) type Exported = Arc<Mutex<Option<Vec<Parameter>>>>;

/// A node under way.
pub(super) struct Node {
    pub(super) id: SpiffeId,
    pub(super) thread: JoinHandle<Result<(), NodeError>>,
}

/// A cluster under way.
pub(super) struct Nodes {
    pub(super) scheduler: (SpiffeId, String),
    pub(super) outcome: JoinHandle<Result<Outcome, NodeError>>,
    pub(super) others: Vec<Node>,
    pub(super) exported: Exported,
}

/// Starts the nodes of `job` on `site`; the scheduler writes what TensorBoard shows into the folder `events`. Those that were started before one cannot be are left in `under_way`.
pub(super) fn start(
    site: &Arc<Site>,
    job: &JobSpec,
    parts: &Parts,
    (board, events): (&Board, Option<&Path>),
    under_way: &mut Option<Nodes>,
) -> Result<(), EmbeddedError> {
    let signed = SignedJob::sign(job, site.identity(Role::Operator, "0")?.as_ref())?;
    let (identity, network) = node(site, Role::Scheduler, 0)?;
    let at = network.local_addr().to_string();
    let scheduler = (identity.id().clone(), at.clone());
    // Every node's network is there before a thread is, so that what is missing is missed before anything runs.
    let mut servers = Vec::new();
    for index in 0..job.servers {
        servers.push(node(site, Role::Server, index)?);
    }
    let mut workers = Vec::new();
    for index in 0..job.workers {
        workers.push(node(site, Role::Worker, index)?);
    }
    let options = |identity: Arc<Identity>, network: Network| NodeOptions {
        identity,
        network,
        scheduler: at.clone(),
        advertise: None,
        lanes: LANES,
        runtime: site.runtime().clone(),
        codecs: None,
    };
    // Only now: a job that cannot be started leaves no empty run in the folder.
    let events = events.map(|folder| {
        let begun = Events::begin(folder, SystemTime::now());
        begun.map_err(|source| EmbeddedError::Events { folder: folder.to_owned(), source })
    });
    let events = events.transpose()?;
    let outcome = {
        let (board, runtime) = (board.clone(), site.runtime().clone());
        spawn(&scheduler.0, move || {
            let observer = Box::new(Reporting { board: board.clone(), events });
            let _over = OnEnd(board);
            run_scheduler(&identity, network, signed, observer, runtime)
        })?
    };
    let exported = Exported::default();
    let begun = Nodes { scheduler, outcome, others: Vec::new(), exported: Arc::clone(&exported) };
    let Nodes { scheduler, others, .. } = under_way.insert(begun);
    for (identity, network) in servers {
        let id = identity.id().clone();
        let mut setup = Server { rule: parts.rule.clone(), histogram_every: parts.histogram_every };
        let options = options(identity, network);
        let thread = spawn(&id, move || run_server(options, SumOrder::Canonical, &mut setup))?;
        others.push(Node { id, thread });
    }
    for (index, (identity, network)) in workers.into_iter().enumerate() {
        let id = identity.id().clone();
        let (options, exported) = (options(identity, network), Arc::clone(&exported));
        let mut setup = Worker { index: index as u32, parts: parts.clone(), exported };
        let mut ending = Ending::new(site, scheduler, index as u32);
        let thread = spawn(&id, move || {
            let ended = run_worker(options, &mut setup);
            // Whoever was dismissed has told the scheduler nothing that it does not know.
            let told = |error: &&NodeError| !matches!(error, NodeError::RunLost(_));
            ending.why = ended.as_ref().err().filter(told).map(ToString::to_string);
            drop(ending);
            ended
        })?;
        others.push(Node { id, thread });
    }
    Ok(())
}

fn node(site: &Site, role: Role, index: u32) -> Result<(Arc<Identity>, Network), EmbeddedError> {
    let identity = site.identity(role, &index.to_string())?;
    let network = site.network(&identity)?;
    Ok((identity, network))
}

fn spawn<T: Send + 'static>(
    id: &SpiffeId,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, EmbeddedError> {
    std::thread::Builder::new().name(id.short().to_owned()).spawn(run).map_err(EmbeddedError::Thread)
}

/// Says that no report comes any more, however the scheduler's thread ends.
struct OnEnd(Board);

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A server's set-up: the program's own rule, and no checkpoints.
struct Server {
    rule: Option<Arc<dyn Aggregator>>,
    histogram_every: u64,
}

impl ServerSetup for Server {
    fn writer(&mut self, job: &JobSpec, server: u32) -> Result<Box<dyn PartWriter>, String> {
        NoCheckpoints.writer(job, server)
    }

    fn source(&mut self, job: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String> {
        NoCheckpoints.source(job, resume)
    }

    fn rule(&mut self, name: OwnName) -> Result<Arc<dyn Aggregator>, String> {
        self.rule.clone().map_or_else(|| NoCheckpoints.rule(name), Ok)
    }

    fn histogram_every(&self) -> u64 {
        self.histogram_every
    }
}

/// A worker's set-up: the program's own model and data, and a sink that keeps the model.
struct Worker {
    index: u32,
    parts: Parts,
    exported: Exported,
}

impl WorkerSetup for Worker {
    fn data(&mut self, _: &JobSpec) -> Result<TrainAndTest, String> {
        let own = self.parts.sets.get(self.index as usize).cloned();
        own.ok_or_else(|| format!("there is no data for worker {}", self.index))
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        let Some(models) = &self.parts.models else { return job.build_model() };
        models(ModelSetup { worker: self.index, max_examples: ShardCompute::largest_batch(job) })
    }

    fn sink(&mut self, _: &JobSpec) -> Box<dyn CheckpointSink> {
        Box::new(Keep(Arc::clone(&self.exported)))
    }
}

/// Keeps the final model.
struct Keep(Exported);

impl CheckpointSink for Keep {
    fn export(&mut self, model: &FinalModel<'_>) -> Result<u64, CheckpointError> {
        let kept: Vec<Parameter> = model
            .tensors
            .iter()
            .map(|tensor| Parameter {
                name: tensor.name.to_owned(),
                dims: tensor.dims.to_vec(),
                values: tensor.values.to_vec(),
            })
            .collect();
        let bytes = kept.iter().map(|parameter| parameter.values.len() as u64 * 4).sum();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(bytes)
    }
}

//! `testudo node`: one node of a cluster.

mod environment;
mod inputs;
mod member;
mod nearby;
mod own;
mod scraped;
mod summary;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use testudo_actors::link::MemoryHub;
use testudo_actors::node::WorkerSetup;
use testudo_observability as observability;
use testudo_transport::Role;
use tracing::level_filters::LevelFilter;

use crate::audit::Begun;
use crate::checkpoint::storage::{Disk, Storage as _};
use crate::cli::args::{NodeArguments, NodeRole};
use crate::cli::hosted::Hosting;
use crate::config::{ComputeDevice, Config};
use crate::device;
use crate::error::Failure;
use crate::launch::lease;
use crate::launch::local::end_with_parent;
use crate::process::handing::{self, Handed};
use crate::process::paths::Needs;
use crate::process::{calls, collector, confine, handover, outlive_file_limits};
use crate::rotation::{self, Source};
use crate::rundir::{RunDir, in_words};
use crate::say::say;
use crate::telemetry;
pub(super) use environment::Environment;
use environment::environment;
use inputs::{Inputs, SchedulerInputs, ServerInputs, WorkerInputs, audit_folder};
use member::{Node, bind, run_peer};
use own::Own;

pub(super) use inputs::read_job;
pub(super) use member::heed_crl;
pub(super) use scraped::ports;

/// Threads for a node's connections: cryptography and system calls for one connection keep one thread busy, and small
/// machines have few.
const NETWORK_THREADS: usize = 1;

/// Runs the node; a worker gets its data from `setup`, or from the cluster file.
pub(super) fn node(arguments: &NodeArguments, setup: Option<Box<dyn WorkerSetup>>) -> Result<(), Failure> {
    run(arguments, environment(arguments.role), None, setup)
}

/// The same, where the environment is read already, and for a node that a launcher on another machine has started.
pub(super) fn run(
    arguments: &NodeArguments,
    environment: Environment,
    hosting: Option<Hosting>,
    setup: Option<Box<dyn WorkerSetup>>,
) -> Result<(), Failure> {
    let index = arguments.index.or(environment.index).unwrap_or(0);
    let handed = match arguments.with_parent {
        true => handing::take(std::io::stdin())
            .map_err(|e| Failure::failed(format!("nothing came from the launcher: {e}")))?,
        false => Handed::default(),
    };
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| folder_of(&arguments.config));
    let run_dir = match (&hosting, handed.run_dir) {
        (Some(hosting), _) => hosting.run_dir.clone(),
        (None, Some(held)) => RunDir::of_descriptor(&run_dir, held),
        (None, None) => RunDir::open(&run_dir).map_err(Failure::misconfigured)?,
    };
    let file = run_dir.reach(&arguments.config);
    let mut config = Config::load(&file, &environment.overrides).map_err(Failure::misconfigured)?;
    let scheduler = nearby::scheduler(arguments, &environment, &config);
    if arguments.listen_by_scheduler {
        let scheduler = scheduler.as_ref().ok_or_else(nearby::where_is_it)?;
        let here = nearby::overrides(arguments.role, scheduler, &config)?;
        let all = [environment.overrides.clone(), here].concat();
        config = Config::load(&file, &all).map_err(Failure::misconfigured)?;
    }
    let user = super::user(&config, arguments.allow_root)?;
    let own = Own::all(arguments, &config, &run_dir, index)?;
    let Some(first) = own.first() else { return Err(Failure::misconfigured("this process is no node")) };
    let run_dir = match &user {
        Some(user) if run_dir.descriptor().is_none() => {
            run_dir.hold_checkpoints(user).map_err(Failure::misconfigured)?
        }
        _ => run_dir,
    };
    // Everything that the user this goes on as might not be able to open is open from here on.
    let inputs = Inputs::open(arguments, &config, &run_dir, &first.identity, handed.data, handed.key, setup)?;
    let log = open_log(arguments.log.as_deref().map(|log| run_dir.reach(log)))?;
    if let (Some(hosting), Some(user)) = (&hosting, &user) {
        hosting.folder.hand_over(user).map_err(Failure::misconfigured)?;
    }
    let told =
        collector::take(config.telemetry.environment(), handed.collector).map_err(Failure::misconfigured)?;
    super::settle(&run_dir, user.as_ref(), None)?;
    let door = scraped::open(&told, &config, (arguments.role, index), &run_dir)?;
    let mut needs =
        needs(arguments.role, &run_dir, &config, told.exports(), own.iter().map(|own| &own.source));
    if arguments.role == NodeRole::Scheduler {
        needs.read.extend(audit_folder(arguments, &run_dir).map(|folder| folder.as_path().into()));
    }
    // Renewed certificates are put there.
    let own_folder = hosting.as_ref().map(|hosting| hosting.folder.reach(hosting.folder.path()));
    needs.write.extend(own_folder.as_deref().map(Into::into));
    confine(calls::Role::Node, needs);
    let role = arguments.role.word();
    let options = observability::Options::new(format!("{role}/{index}"))
        .with_log_writer(log)
        .with_stderr(LevelFilter::OFF);
    let guard = observability::init_with(options, &told).map_err(Failure::misconfigured)?;
    if let (Some(door), Some(registry)) = (door, guard.registry()) {
        tracing::info!(address = %door.address(), "metrics for Prometheus");
        door.serve(registry).map_err(|e| Failure::failed(format!("no thread could be started: {e}")))?;
    }
    if arguments.with_parent {
        end_with_parent();
    }
    if let Some(folder) = own_folder {
        lease::follow(folder);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
    runtime.block_on(async { outlive_file_limits() });
    let beside = (own.len() > 1).then(MemoryHub::default);
    let (mut nodes, mut accounts) = (Vec::new(), Vec::new());
    let meter = guard.meter();
    for Own { role, identity, source } in own {
        let listen = match role {
            Role::Scheduler => config.network.scheduler_listen(),
            Role::Server => config.network.server_listen(index),
            _ => SocketAddr::new(config.network.listen.ip(), 0),
        };
        let data = if role == Role::Worker { inputs.data_bytes() } else { 0 };
        let network = bind(&config, &identity, (role, data), listen, beside.as_ref(), runtime.handle())?;
        accounts.extend(network.account());
        runtime.spawn(rotation::follow(identity.clone(), source));
        nodes.push(Node {
            identity: Arc::new(identity),
            network,
            config: config.clone(),
            runtime: runtime.handle().clone(),
            run_dir: run_dir.clone(),
            index,
            scheduler: scheduler.clone(),
            meter: meter.clone(),
        });
    }
    telemetry::node(&meter, accounts);
    let mut nodes = nodes.into_iter();
    let Some(node) = nodes.next() else { return Err(Failure::misconfigured("this process is no node")) };
    let address = node.network.local_addr();
    say!("listening {address}");
    tracing::info!(%address, release = testudo_actors::node::RELEASE, "{role}/{index} is up");
    tracing::info!("{}", crate::process::Protections::read());
    tracing::info!(instructions = testudo_kernels::instruction_set(), "arithmetic");
    let result = match inputs {
        Inputs::Scheduler(inputs) => {
            let SchedulerInputs { job, metrics, without_curves, key, audit, audit_key, summary, lock: _lock } =
                *inputs;
            without_curves.iter().for_each(|why| tracing::warn!("{why}"));
            if let Some((key, source)) = audit_key {
                runtime.spawn(rotation::follow(key, source));
            }
            node.scheduler(job, metrics, key, audit.map(Begun::start).transpose(), summary)
        }
        Inputs::Server(ServerInputs { key }) => node.server(key),
        Inputs::Worker(WorkerInputs { setup, key, .. }) => node.worker(setup, key, Arc::default()),
        Inputs::Peer(ServerInputs { key }, WorkerInputs { setup, .. }) => match nodes.next() {
            Some(worker) => run_peer((node, key), (worker, setup)),
            None => Err(Failure::misconfigured("a peer is two nodes")),
        },
    };
    if let Err(failure) = &result {
        tracing::error!("{}", in_words(&failure.message));
    }
    result
}

/// What a node of that role still opens. A worker writes the model alone, unless error feedback gives it a part in checkpoints.
fn needs<'a>(
    role: NodeRole,
    run_dir: &RunDir,
    config: &Config,
    tcp: bool,
    sources: impl Iterator<Item = &'a Source>,
) -> Needs {
    let folders = match role {
        NodeRole::Worker if crate::job::codecs(&config.transport).push.feeds_back() => {
            vec![run_dir.checkpoints(), run_dir.checkpoint_final()]
        }
        NodeRole::Worker => vec![run_dir.checkpoint_final()],
        NodeRole::Scheduler | NodeRole::Server => vec![run_dir.checkpoints()],
        NodeRole::Peer => vec![run_dir.checkpoints(), run_dir.checkpoint_final()],
    };
    // A folder that is not there cannot be allowed; one that cannot be made will be told when it is written to.
    for folder in &folders {
        let _ = Disk.create_dir(folder);
    }
    let device = match role {
        NodeRole::Scheduler => ComputeDevice::Cpu,
        NodeRole::Server => config.servers.device,
        NodeRole::Worker => config.worker_device(),
        // What either uses.
        NodeRole::Peer if config.servers.device == ComputeDevice::Cpu => config.worker_device(),
        NodeRole::Peer => config.servers.device,
    };
    // The list of revoked certificates is replaced, so its folder is what is read.
    let crl = config.security.crl.as_deref().map(|file| folder_of(file).as_path().into());
    // So are the files of the identities, when they are renewed.
    let identities = sources.flat_map(Source::folders).map(|folder| folder.as_path().into());
    Needs {
        read: crl.into_iter().chain(identities).collect(),
        write: folders.iter().map(|folder| folder.as_path().into()).collect(),
        devices: device::files(device),
        tcp,
        ..Needs::default()
    }
}

fn open_log(path: Option<PathBuf>) -> Result<Box<dyn Write + Send>, Failure> {
    let Some(path) = path else { return Ok(Box::new(std::io::stderr())) };
    let file = handover::append(&path);
    let why = |e| format!("cannot open the log file {}: {e}; check that its folder exists", path.display());
    Ok(Box::new(file.map_err(|e| Failure::misconfigured(why(e)))?))
}

impl NodeRole {
    fn word(self) -> &'static str {
        match self {
            NodeRole::Scheduler => Role::Scheduler.as_str(),
            NodeRole::Server => Role::Server.as_str(),
            NodeRole::Worker => Role::Worker.as_str(),
            NodeRole::Peer => Role::Peer.as_str(),
        }
    }
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

//! `testudo node`: one node of a cluster.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use testudo_actors::link::Network;
use testudo_actors::message::Outcome;
use testudo_actors::node::{NodeOptions, WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::server::SumOrder;
use testudo_actors::{NodeError, SignedJob};
use testudo_observability as observability;
use testudo_transport::pki::read_crl;
use testudo_transport::{Endpoint, Identity, PkiError, Role};
use tracing::level_filters::LevelFilter;

use crate::audit::AuditLog;
use crate::checkpoint::ledger::RunLedger;
use crate::checkpoint::retention::Retention;
use crate::checkpoint::storage::Disk;
use crate::checkpoint::{Layout, keys, writer};
use crate::cli::args::{NodeArguments, NodeRole};
use crate::config::Config;
use crate::error::Failure;
use crate::launch::local::end_with_parent;
use crate::node::{Metrics, Setup, transport};
use crate::rundir::RunDir;

/// Threads for a node's connections: cryptography and system calls for one connection keep one thread busy, and small
/// machines have few.
const NETWORK_THREADS: usize = 1;

/// What MXNet's, ps-lite's and BytePS's launchers set, so that they can start this node.
struct Environment {
    scheduler: Option<String>,
    overrides: Vec<String>,
    index: Option<u32>,
}

fn environment(role: NodeRole) -> Environment {
    let var = |name: &str| std::env::var(name).ok();
    let scheduler = var("DMLC_PS_ROOT_URI").zip(var("DMLC_PS_ROOT_PORT")).map(|(host, port)| match host {
        host if host.contains(':') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    });
    let counts = [("DMLC_NUM_WORKER", "cluster.workers"), ("DMLC_NUM_SERVER", "cluster.servers")];
    let overrides = counts.iter().filter_map(|(name, key)| Some(format!("{key}={}", var(name)?))).collect();
    let index = match role {
        NodeRole::Worker => var("DMLC_WORKER_ID"),
        NodeRole::Server => var("DMLC_SERVER_ID"),
        NodeRole::Scheduler => None,
    };
    Environment { scheduler, overrides, index: index.and_then(|i| i.parse().ok()) }
}

/// Runs the node; a worker gets its data from `setup`, or from the cluster file.
pub(super) fn node(arguments: &NodeArguments, setup: Option<Box<dyn WorkerSetup>>) -> Result<(), Failure> {
    let environment = environment(arguments.role);
    let index = arguments.index.or(environment.index).unwrap_or(0);
    let config = Config::load(&arguments.config, &environment.overrides).map_err(Failure::misconfigured)?;
    let identity = load_identity(arguments.identity.as_deref(), &config)?;
    check_identity(&identity, arguments.role, index)?;
    let role = arguments.role.role();
    let options = observability::Options::new(format!("{role}/{index}"));
    let options = match &arguments.log {
        Some(log) => options.with_log_file(log).with_stderr(LevelFilter::OFF),
        None => options.with_log_writer(std::io::stderr()).with_stderr(LevelFilter::OFF),
    };
    let _guard = observability::init(options).map_err(Failure::misconfigured)?;
    if arguments.with_parent {
        end_with_parent();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
    let listen = match arguments.role {
        NodeRole::Scheduler => config.network.scheduler_listen(),
        NodeRole::Server => config.network.server_listen(index),
        NodeRole::Worker => SocketAddr::new(config.network.listen.ip(), 0),
    };
    let network = bind(&config, &identity, listen, runtime.handle())?;
    println!("listening {}", network.local_addr());
    tracing::info!(address = %network.local_addr(), release = testudo_actors::node::RELEASE, "{role}/{index} is up");
    tracing::info!("{}", crate::process::Protections::read());
    tracing::info!(instructions = testudo_kernels::instruction_set(), "arithmetic");
    let run_dir = match &arguments.run_dir {
        Some(dir) => dir.clone(),
        None => folder_of(&arguments.config),
    };
    let run_dir = RunDir::open(&run_dir).map_err(Failure::misconfigured)?;
    let node = Node {
        identity: Arc::new(identity),
        network,
        config,
        runtime: runtime.handle().clone(),
        run_dir,
        index,
        scheduler: arguments.scheduler.clone().or(environment.scheduler),
        identity_file: arguments.identity_file.clone(),
        audit_identity: arguments.audit_identity.clone(),
    };
    let result = match arguments.role {
        NodeRole::Scheduler => {
            let job = arguments.job.clone().unwrap_or_else(|| arguments.config.with_extension("job"));
            node.scheduler(&job)
        }
        NodeRole::Server => node.server(),
        NodeRole::Worker => node.worker(setup),
    };
    if let Err(failure) = &result {
        tracing::error!("{}", failure.message);
    }
    result
}

impl NodeRole {
    fn role(self) -> Role {
        match self {
            NodeRole::Scheduler => Role::Scheduler,
            NodeRole::Server => Role::Server,
            NodeRole::Worker => Role::Worker,
        }
    }
}

/// The identity in `dir`, or the one whose three files the cluster file names.
fn load_identity(dir: Option<&Path>, config: &Config) -> Result<Identity, Failure> {
    match (dir, &config.security.files) {
        (Some(dir), _) => Identity::load(dir),
        (None, Some(files)) => Identity::load_files(&files.ca, &files.cert, &files.key),
        (None, None) => {
            return Err(Failure::misconfigured(
                "who is this node? give its folder with --identity, or set security.ca, security.cert and security.key",
            ));
        }
    }
    .map_err(Failure::misconfigured)
}

fn check_identity(identity: &Identity, role: NodeRole, index: u32) -> Result<(), Failure> {
    let id = identity.id();
    if id.role() == role.role() && id.index() == Some(index) {
        return Ok(());
    }
    Err(Failure::misconfigured(format!(
        "the identity given is that of {}, not of {}/{index}: give that node's own with --identity",
        id.short(),
        role.role()
    )))
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

fn bind(
    config: &Config,
    identity: &Identity,
    listen: SocketAddr,
    runtime: &tokio::runtime::Handle,
) -> Result<Network, Failure> {
    let policy = testudo_actors::policy::policy(config.transport.slice_bytes).map_err(Failure::failed)?;
    let _inside = runtime.enter();
    heed_crl(config, identity)?;
    let endpoint = Endpoint::bind(&transport(config, listen), identity.clone(), Arc::new(policy))
        .map_err(Failure::misconfigured)?;
    if let Some(path) = &config.security.crl {
        endpoint.follow_crl(path).map_err(|e| crl_refused(path, &e))?;
    }
    Ok(Network::Quic(endpoint))
}

/// Puts the list of revoked certificates that `config` names in force for `identity`, before it knows anybody.
pub(super) fn heed_crl(config: &Config, identity: &Identity) -> Result<(), Failure> {
    let Some(path) = &config.security.crl else { return Ok(()) };
    let installed = read_crl(path).and_then(|bytes| identity.trust().install_crl(&bytes));
    let installed = installed.map_err(|e| crl_refused(path, &e))?;
    tracing::info!(number = %installed.number, revoked = installed.revoked, "list of revoked certificates");
    Ok(())
}

fn crl_refused(path: &Path, why: &PkiError) -> Failure {
    Failure::misconfigured(format!("security.crl, {}: {why}", path.display()))
}

struct Node {
    identity: Arc<Identity>,
    network: Network,
    config: Config,
    runtime: tokio::runtime::Handle,
    run_dir: RunDir,
    index: u32,
    scheduler: Option<String>,
    identity_file: Option<PathBuf>,
    audit_identity: Option<PathBuf>,
}

impl Node {
    fn options(&self) -> Result<NodeOptions, Failure> {
        let told =
            self.config.cluster.scheduler.as_ref().or(self.config.network.scheduler.advertise.as_ref());
        let scheduler = self.scheduler.clone().or_else(|| told.cloned());
        let scheduler = scheduler.ok_or_else(|| {
            Failure::misconfigured(
                "where is the scheduler? set cluster.scheduler in the cluster file, or give --scheduler",
            )
        })?;
        Ok(NodeOptions {
            identity: Arc::clone(&self.identity),
            network: self.network.clone(),
            scheduler,
            advertise: self.config.network.server_advertise(self.index).map(str::to_owned),
            lanes: u32::from(self.config.transport.lanes),
            runtime: self.runtime.clone(),
        })
    }

    fn scheduler(self, job: &Path) -> Result<(), Failure> {
        let bytes = std::fs::read(job).map_err(|e| {
            Failure::misconfigured(format!(
                "{}: the signed job cannot be read: {e}; an operator makes it with `testudo job`",
                job.display()
            ))
        })?;
        let signed = SignedJob::from_bytes(&bytes)
            .map_err(|e| Failure::misconfigured(format!("{}: {e}", job.display())))?;
        let metrics = self.run_dir.metrics();
        let mut observer =
            Metrics::open(&metrics).map_err(|e| Failure::file(&metrics, "cannot be written", e))?;
        if let Some(ledger) = self.ledger(&signed)? {
            observer = observer.with_ledger(Box::new(ledger));
        }
        let audit = self.audit(&signed)?;
        if let Some(audit) = &audit {
            observer = observer.with_audit(audit.handle());
        }
        let outcome = run_scheduler(&self.identity, self.network, signed, Box::new(observer), self.runtime)
            .map_err(failure);
        // However the run went, what is known of it is signed.
        let closed = audit.map(AuditLog::close).transpose();
        let outcome = outcome?;
        if let Some(head) = closed.map_err(Failure::failed)? {
            tracing::info!(%head, "the audit log is complete");
        }
        match outcome {
            Outcome::Finished(_) => Ok(()),
            Outcome::Failed(reason) => Err(Failure::failed(reason)),
        }
    }

    /// The audit log, if there is a key for it.
    fn audit(&self, signed: &SignedJob) -> Result<Option<AuditLog>, Failure> {
        let folder = self.audit_identity.clone().unwrap_or_else(|| self.run_dir.audit_identity());
        if self.audit_identity.is_none() && !folder.exists() {
            tracing::warn!(
                "no audit log is kept: issue its key with `testudo pki issue --role actor --name audit`, and give the folder \
                 with --audit-identity"
            );
            return Ok(None);
        }
        let identity = Identity::load(&folder).map_err(Failure::misconfigured)?;
        let (spec, operator) =
            signed.check(self.identity.trust(), SystemTime::now()).map_err(Failure::misconfigured)?;
        let expected = spec.audit_key().map_err(Failure::misconfigured)?;
        if *identity.id() != expected || identity.trust().ca_der() != self.identity.trust().ca_der() {
            return Err(Failure::misconfigured(format!(
                "{}: the audit log is signed by {expected}, certified by this node's CA; this is {}",
                folder.display(),
                identity.id()
            )));
        }
        let path = self.run_dir.audit_log();
        let log = AuditLog::open(&path, &identity, &spec, signed, operator.short());
        log.map(Some).map_err(Failure::misconfigured)
    }

    fn ledger(&self, signed: &SignedJob) -> Result<Option<RunLedger>, Failure> {
        let spec = signed.open(&self.identity).map_err(Failure::misconfigured)?;
        if !spec.checkpoints.wanted() {
            return Ok(None);
        }
        let layout = Layout::new(&self.run_dir.checkpoints());
        let checkpoint = &self.config.checkpoint;
        let recipients =
            keys::recipients(&checkpoint.recipients, &layout, &Disk).map_err(Failure::misconfigured)?;
        let ledger = RunLedger::open(
            layout,
            Arc::new(Disk),
            Arc::clone(&self.identity),
            signed,
            &spec,
            recipients.iter().map(ToString::to_string).collect(),
            Retention::new(checkpoint),
        );
        ledger.map(Some).map_err(Failure::misconfigured)
    }

    fn server(self) -> Result<(), Failure> {
        let layout = Layout::new(&self.run_dir.checkpoints());
        let recipients = self.config.checkpoint.recipients.clone();
        let mut setup = writer::Setup::new(layout, recipients, self.identity_file.clone());
        run_server(self.options()?, SumOrder::Canonical, &mut setup).map_err(failure)
    }

    fn worker(self, setup: Option<Box<dyn WorkerSetup>>) -> Result<(), Failure> {
        let from_file =
            || Box::new(Setup::new(self.config.clone(), self.run_dir.model())) as Box<dyn WorkerSetup>;
        let mut setup = setup.unwrap_or_else(from_file);
        run_worker(self.options()?, setup.as_mut()).map_err(failure)
    }
}

fn failure(error: NodeError) -> Failure {
    match error {
        NodeError::Job(_) | NodeError::TurnedAway(_) => Failure::misconfigured(error),
        other => Failure::failed(other),
    }
}

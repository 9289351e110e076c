//! `testudo node`: one node of a cluster.

mod environment;

use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use testudo_actors::job::MAX_SIGNED_JOB;
use testudo_actors::link::Network;
use testudo_actors::message::Outcome;
use testudo_actors::node::{NodeOptions, WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::server::SumOrder;
use testudo_actors::{NodeError, SignedJob};
use testudo_observability::{self as observability, Meter};
use testudo_transport::pki::{RevocationPolicy, read_crl};
use testudo_transport::{Endpoint, Expected, Identity, PkiError, Role};
use tracing::level_filters::LevelFilter;

use crate::audit::{AuditLog, AuditLogError, Begun};
use crate::checkpoint::keys::KeyFile;
use crate::checkpoint::ledger::RunLedger;
use crate::checkpoint::retention::{Retention, read_deletions};
use crate::checkpoint::storage::{Disk, Storage as _};
use crate::checkpoint::{Layout, keys, writer};
use crate::cli::args::{NodeArguments, NodeRole};
use crate::config::{self, Config};
use crate::data::mnist::Files;
use crate::error::Failure;
use crate::launch::local::end_with_parent;
use crate::node::{Metrics, Setup, data_files, transport};
use crate::process::handing::{self, Handed};
use crate::process::paths::Needs;
use crate::process::{calls, confine, handover, outlive_file_limits};
use crate::rotation::{self, Source};
use crate::rundir::{RunDir, in_words};
use crate::say::say;
use crate::telemetry::{self, Parts, Timed};
use environment::environment;

/// Threads for a node's connections: cryptography and system calls for one connection keep one thread busy, and small
/// machines have few.
const NETWORK_THREADS: usize = 1;

/// Runs the node; a worker gets its data from `setup`, or from the cluster file.
pub(super) fn node(arguments: &NodeArguments, setup: Option<Box<dyn WorkerSetup>>) -> Result<(), Failure> {
    let environment = environment(arguments.role);
    let index = arguments.index.or(environment.index).unwrap_or(0);
    let handed = match arguments.with_parent {
        true => handing::take(std::io::stdin())
            .map_err(|e| Failure::failed(format!("nothing came from the launcher: {e}")))?,
        false => Handed::default(),
    };
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| folder_of(&arguments.config));
    let run_dir = match handed.run_dir {
        Some(held) => RunDir::of_descriptor(&run_dir, held),
        None => RunDir::open(&run_dir).map_err(Failure::misconfigured)?,
    };
    let file = run_dir.reach(&arguments.config);
    let config = Config::load(&file, &environment.overrides).map_err(Failure::misconfigured)?;
    let user = super::user(&config, arguments.allow_root)?;
    let identity = arguments.identity.as_deref().map(|dir| run_dir.reach(dir));
    let source = identity_source(identity.as_deref(), &config)?;
    let identity = source.load().map_err(Failure::misconfigured)?;
    check_identity(&identity, arguments.role, index, &config.job)?;
    let run_dir = match &user {
        Some(user) if run_dir.descriptor().is_none() => {
            run_dir.hold_checkpoints(user).map_err(Failure::misconfigured)?
        }
        _ => run_dir,
    };
    // Everything that the user this goes on as might not be able to open is open from here on.
    let inputs = Inputs::open(arguments, &config, &run_dir, &identity, handed.data, handed.key, setup)?;
    let log = open_log(arguments.log.as_deref().map(|log| run_dir.reach(log)))?;
    super::settle(&run_dir, user.as_ref(), None)?;
    let mut needs = needs(arguments.role, &run_dir, &config, &source);
    if arguments.role == NodeRole::Scheduler {
        needs.read.extend(audit_folder(arguments, &run_dir).map(|folder| folder.as_path().into()));
    }
    confine(calls::Role::Node, needs);
    let role = arguments.role.role();
    let options = observability::Options::new(format!("{role}/{index}"))
        .with_log_writer(log)
        .with_stderr(LevelFilter::OFF);
    let guard = observability::init(options).map_err(Failure::misconfigured)?;
    if arguments.with_parent {
        end_with_parent();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("no threads could be started: {e}")))?;
    runtime.block_on(async { outlive_file_limits() });
    let listen = match arguments.role {
        NodeRole::Scheduler => config.network.scheduler_listen(),
        NodeRole::Server => config.network.server_listen(index),
        NodeRole::Worker => SocketAddr::new(config.network.listen.ip(), 0),
    };
    let network = bind(&config, &identity, (role, inputs.data_bytes()), listen, runtime.handle())?;
    let meter = guard.meter();
    if let Some(account) = network.account() {
        telemetry::node(&meter, &account);
    }
    runtime.spawn(rotation::follow(identity.clone(), source));
    say!("listening {}", network.local_addr());
    tracing::info!(address = %network.local_addr(), release = testudo_actors::node::RELEASE, "{role}/{index} is up");
    tracing::info!("{}", crate::process::Protections::read());
    tracing::info!(instructions = testudo_kernels::instruction_set(), "arithmetic");
    let node = Node {
        identity: Arc::new(identity),
        network,
        config,
        runtime: runtime.handle().clone(),
        run_dir,
        index,
        scheduler: arguments.scheduler.clone().or(environment.scheduler),
        meter,
    };
    let result = match inputs {
        Inputs::Scheduler(inputs) => {
            let SchedulerInputs { job, metrics, key, audit, audit_key } = *inputs;
            if let Some((key, source)) = audit_key {
                runtime.spawn(rotation::follow(key, source));
            }
            node.scheduler(job, metrics, key, audit.map(Begun::start).transpose())
        }

        Inputs::Server { key } => node.server(key),
        Inputs::Worker { setup, .. } => node.worker(setup),
    };
    if let Err(failure) = &result {
        tracing::error!("{}", in_words(&failure.message));
    }
    result
}

/// What a node of that role still opens. A worker writes the model alone, and reads no checkpoint.
fn needs(role: NodeRole, run_dir: &RunDir, config: &Config, source: &Source) -> Needs {
    let folder = match role {
        NodeRole::Worker => run_dir.checkpoint_final(),
        NodeRole::Scheduler | NodeRole::Server => run_dir.checkpoints(),
    };
    // A folder that is not there cannot be allowed; one that cannot be made will be told when it is written to.
    let _ = Disk.create_dir(&folder);
    // The list of revoked certificates is replaced, so its folder is what is read.
    let crl = config.security.crl.as_deref().map(|file| folder_of(file).as_path().into());
    // So are the files of the identity, when it is renewed.
    let identity = source.folders().into_iter().map(|folder| folder.as_path().into());
    Needs {
        read: crl.into_iter().chain(identity).collect(),
        write: vec![folder.as_path().into()],
        tcp: observability::exports(),
        start: None,
        listen: None,
    }
}

/// What a node reads or has open before it becomes the user that it goes on as.
enum Inputs {
    Scheduler(Box<SchedulerInputs>),
    Server { key: Option<KeyFile> },
    Worker { setup: Box<dyn WorkerSetup>, data: u64 },
}

struct SchedulerInputs {
    job: SignedJob,
    metrics: Metrics,
    /// What opens the checkpoint that a resumed run begins with, if it is not the run's own key.
    key: Option<KeyFile>,
    audit: Option<Begun>,
    /// The key that signs the audit log, and where renewals of its certificate come from.
    audit_key: Option<(Identity, Source)>,
}

impl Inputs {
    fn open(
        arguments: &NodeArguments,
        config: &Config,
        run_dir: &RunDir,
        identity: &Identity,
        data: Option<[OwnedFd; Files::COUNT]>,
        key: Option<OwnedFd>,
        setup: Option<Box<dyn WorkerSetup>>,
    ) -> Result<Inputs, Failure> {
        let key = match (key, &arguments.identity_file) {
            (Some(handed), _) => {
                Some(KeyFile::read(Path::new("the age identity from the launcher"), handed.into()))
            }
            (None, Some(file)) => Some(KeyFile::open(file)),
            (None, None) => None,
        };
        let key = key.transpose().map_err(Failure::misconfigured)?;
        match arguments.role {
            NodeRole::Scheduler => {
                let job = arguments.job.clone().unwrap_or_else(|| arguments.config.with_extension("job"));
                let job = read_job(&job, &run_dir.reach(&job))?;
                let metrics = run_dir.metrics();
                let metrics =
                    Metrics::open(&metrics).map_err(|e| Failure::file(&metrics, "cannot be written", e))?;
                let (audit, audit_key) = match audit_folder(arguments, run_dir) {
                    Some(folder) => {
                        let (log, key) = begin_audit(&folder, run_dir, identity, &job)?;
                        (Some(log), Some((key, Source::Folder(folder))))
                    }
                    None => (None, None),
                };
                Ok(Inputs::Scheduler(Box::new(SchedulerInputs { job, metrics, key, audit, audit_key })))
            }
            NodeRole::Server => Ok(Inputs::Server { key }),
            NodeRole::Worker => {
                let (setup, data): (Box<dyn WorkerSetup>, u64) = match setup {
                    Some(setup) => (setup, 0),
                    None => {
                        let config::Data::Mnist { path, .. } = &config.data;
                        let files = match data {
                            Some(handed) => Files::of_descriptors(path, handed),
                            None => data_files(config).map_err(Failure::misconfigured)?,
                        };
                        let bytes = files.announced_bytes();
                        (Box::new(Setup::new(config.clone(), run_dir.model()).with_files(files)), bytes)
                    }
                };
                Ok(Inputs::Worker { setup, data })
            }
        }
    }

    /// Bytes of examples that the node will hold.
    fn data_bytes(&self) -> u64 {
        match self {
            Inputs::Worker { data, .. } => *data,
            Inputs::Scheduler(_) | Inputs::Server { .. } => 0,
        }
    }
}

/// Where the key of the audit log is, if there is one.
fn audit_folder(arguments: &NodeArguments, run_dir: &RunDir) -> Option<PathBuf> {
    match &arguments.audit_identity {
        Some(folder) => Some(run_dir.reach(folder)),
        None => Some(run_dir.audit_identity()).filter(|folder| folder.exists()),
    }
}

/// The audit log, and the key that signs it.
fn begin_audit(
    folder: &Path,
    run_dir: &RunDir,
    node: &Identity,
    signed: &SignedJob,
) -> Result<(Begun, Identity), Failure> {
    let identity = Identity::load(folder).map_err(Failure::misconfigured)?;
    let (spec, operator) = signed.check(node.trust(), SystemTime::now()).map_err(Failure::misconfigured)?;
    let expected = spec.audit_key().map_err(Failure::misconfigured)?;
    // Whoever checks the log later goes by the CAs that are beside the key: this node's, too.
    let is_ours = node.trust().verify(identity.certificate_der(), &Expected::Node(expected.clone()));
    if let Err(why) = is_ours {
        return Err(Failure::misconfigured(format!(
            "{}: the audit log is signed by {expected}, certified by this node's CA: {why}",
            folder.display(),
        )));
    }
    let log = AuditLog::begin(&run_dir.audit_log(), &identity, &spec, signed, operator.short());
    log.map(|log| (log, identity)).map_err(Failure::misconfigured)
}

fn read_job(name: &Path, at: &Path) -> Result<SignedJob, Failure> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(at)
        .and_then(|file| file.take(u64::from(MAX_SIGNED_JOB) + 1).read_to_end(&mut bytes));
    read.map_err(|e| {
        Failure::misconfigured(format!(
            "{}: the signed job cannot be read: {e}; an operator makes it with `testudo job`",
            name.display()
        ))
    })?;
    SignedJob::from_bytes(&bytes).map_err(|e| Failure::misconfigured(format!("{}: {e}", name.display())))
}

fn open_log(path: Option<PathBuf>) -> Result<Box<dyn Write + Send>, Failure> {
    let Some(path) = path else { return Ok(Box::new(std::io::stderr())) };
    let file = handover::append(&path);
    let why = |e| format!("cannot open the log file {}: {e}; check that its folder exists", path.display());
    Ok(Box::new(file.map_err(|e| Failure::misconfigured(why(e)))?))
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

/// The identity's folder, or the three files that the cluster file names.
fn identity_source(dir: Option<&Path>, config: &Config) -> Result<Source, Failure> {
    match (dir, &config.security.files) {
        (Some(dir), _) => Ok(Source::Folder(dir.to_owned())),
        (None, Some(files)) => Ok(Source::Files(files.clone())),
        (None, None) => Err(Failure::misconfigured(
            "who is this node? give its folder with --identity, or set security.ca, security.cert and security.key",
        )),
    }
}

fn check_identity(identity: &Identity, role: NodeRole, index: u32, job: &config::Job) -> Result<(), Failure> {
    let id = identity.id();
    // Whoever signs for many jobs would otherwise say which one this is.
    if (id.trust_domain(), id.job()) != (job.trust_domain.as_str(), job.name.as_str()) {
        return Err(Failure::misconfigured(format!(
            "the identity given is {id}, and the cluster file is of job `{}` in `{}`: give one of that job's with --identity, or \
             set job.name and job.trust_domain",
            job.name, job.trust_domain
        )));
    }
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
    (role, data): (Role, u64),
    listen: SocketAddr,
    runtime: &tokio::runtime::Handle,
) -> Result<Network, Failure> {
    if let Some(why) = config.too_little_memory(role, data) {
        return Err(Failure::misconfigured(why));
    }
    let policy = testudo_actors::policy::policy(config.transport.slice_bytes).map_err(Failure::failed)?;
    let _inside = runtime.enter();
    heed_crl(config, identity)?;
    let endpoint = Endpoint::bind(&transport(config, role, listen, data), identity.clone(), Arc::new(policy))
        .map_err(Failure::misconfigured)?;
    if let Some(path) = &config.security.crl {
        endpoint.follow_crl(path).map_err(|e| crl_refused(path, &e))?;
    }
    Ok(Network::Quic(endpoint))
}

/// Puts the lists of revoked certificates that `config` names in force for `identity`, before it knows anybody.
pub(super) fn heed_crl(config: &Config, identity: &Identity) -> Result<(), Failure> {
    identity.trust().set_revocation(match config.security.revocation {
        config::Revocation::Required => RevocationPolicy::Required,
        config::Revocation::ShortLived => RevocationPolicy::ShortLived,
    });
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
    meter: Meter,
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

    fn scheduler(
        self,
        signed: SignedJob,
        mut observer: Metrics,
        key: Option<KeyFile>,
        audit: Result<Option<AuditLog>, AuditLogError>,
    ) -> Result<(), Failure> {
        observer = observer.with_source(Box::new(self.checkpoints(key)));
        if let Some(ledger) = self.ledger(&signed)? {
            observer = observer.with_ledger(Box::new(ledger));
        }
        let audit = audit.map_err(Failure::misconfigured)?;
        match &audit {
            Some(audit) => {
                let layout = Layout::new(&self.run_dir.checkpoints());
                audit.tell_deletions(&read_deletions(&layout).map_err(Failure::misconfigured)?);
                observer = observer.with_audit(audit.handle());
            }
            None => tracing::warn!(
                "no audit log is kept: make its key here with `testudo pki request --role actor/audit`, have that granted with \
                 `testudo pki issue` and installed with `testudo pki install`, and give the folder with --audit-identity"
            ),
        }
        let told = audit.as_ref().map(AuditLog::handle);
        telemetry::scheduler(&self.meter, observer.progress(), told.as_ref());
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

    /// This run's checkpoints, opened with `key` or with the run's own.
    fn checkpoints(&self, key: Option<KeyFile>) -> writer::Setup {
        let layout = Layout::new(&self.run_dir.checkpoints());
        let recipients = self.config.checkpoint.recipients.clone();
        writer::Setup::new(layout, recipients, key.map(|key| key.identities().clone()))
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

    fn server(self, key: Option<KeyFile>) -> Result<(), Failure> {
        let parts = Arc::new(Parts::default());
        telemetry::server(&self.meter, &parts);
        let mut setup = Timed::new(self.checkpoints(key), parts);
        run_server(self.options()?, SumOrder::Canonical, &mut setup).map_err(failure)
    }

    fn worker(self, mut setup: Box<dyn WorkerSetup>) -> Result<(), Failure> {
        run_worker(self.options()?, setup.as_mut()).map_err(failure)
    }
}

fn failure(error: NodeError) -> Failure {
    match error {
        NodeError::Job(_) | NodeError::TurnedAway(_) => Failure::misconfigured(error),
        other => Failure::failed(other),
    }
}

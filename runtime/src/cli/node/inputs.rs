//! What a node reads or opens first: the job, the data, keys and what it writes.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use testudo_actors::audit::Hex;
use testudo_actors::job::MAX_SIGNED_JOB;
use testudo_actors::node::WorkerSetup;
use testudo_actors::{JobSpec, SignedJob};
use testudo_transport::{Expected, Identity};

use crate::audit::{AuditLog, Begun};
use crate::checkpoint::Checkpoints;
use crate::checkpoint::keys::{Identities, KeyFile};
use crate::cli::args::{NodeArguments, NodeRole};
use crate::cli::resume;
use crate::config::Config;
use crate::data::DataFiles;
use crate::error::Failure;
use crate::node::{Metrics, Setup, data_files};
use crate::report::tensorboard::Events;
use crate::rotation::Source;
use crate::rundir::{RunDir, RunDirError, RunLock};

use super::summary::SummaryFile;

/// What a node reads or has open before it becomes the user that it goes on as.
pub(super) enum Inputs {
    Scheduler(Box<SchedulerInputs>),
    Server(ServerInputs),
    Worker(WorkerInputs),
    Peer(ServerInputs, WorkerInputs),
}

pub(super) struct SchedulerInputs {
    pub(super) job: SignedJob,
    pub(super) metrics: Metrics,
    /// Why there is no event file for TensorBoard, to be logged once there is a log.
    pub(super) without_curves: Option<String>,
    /// What opens the checkpoint that a resumed run begins with, if it is not the run's own key.
    pub(super) key: Option<Identities>,
    pub(super) audit: Option<Begun>,
    /// The key that signs the audit log, and where renewals of its certificate come from.
    pub(super) audit_key: Option<(Identity, Source)>,
    /// Where what the run came to is written.
    pub(super) summary: Option<SummaryFile>,
    /// Keeps others from the run directory, to the process's end.
    pub(super) lock: Option<RunLock>,
}

pub(super) struct ServerInputs {
    /// What opens the checkpoint that a resumed run begins with, if it is not the run's own key.
    pub(super) key: Option<Identities>,
}

pub(super) struct WorkerInputs {
    pub(super) setup: Box<dyn WorkerSetup>,
    /// What opens the residuals that it begins with, if it is not the run's own key; a peer's is its server's.
    pub(super) key: Option<Identities>,
    /// Bytes of examples that it will hold.
    pub(super) data: u64,
}

impl WorkerInputs {
    fn open(
        config: &Config,
        run_dir: &RunDir,
        data: Option<Vec<OwnedFd>>,
        setup: Option<Box<dyn WorkerSetup>>,
    ) -> Result<WorkerInputs, Failure> {
        if let Some(setup) = setup {
            return Ok(WorkerInputs { setup, key: None, data: 0 });
        }
        let files = match data {
            Some(handed) => DataFiles::of_descriptors(&config.data, handed)
                .ok_or_else(|| Failure::misconfigured("the launcher handed over the files of other data"))?,
            None => data_files(config).map_err(Failure::misconfigured)?,
        };
        let data = files.announced_bytes();
        let setup = Setup::new(config.clone(), run_dir.model()).with_files(files);
        Ok(WorkerInputs { setup: Box::new(setup), key: None, data })
    }
}

impl Inputs {
    pub(super) fn open(
        arguments: &NodeArguments,
        config: &Config,
        run_dir: &RunDir,
        identity: &Identity,
        data: Option<Vec<OwnedFd>>,
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
        let key = key.map(|file| file.identities().clone());
        match arguments.role {
            NodeRole::Scheduler => scheduler(arguments, config, run_dir, identity, key),
            NodeRole::Server => Ok(Inputs::Server(ServerInputs { key })),
            NodeRole::Worker => {
                let worker = WorkerInputs::open(config, run_dir, data, setup)?;
                Ok(Inputs::Worker(WorkerInputs { key, ..worker }))
            }
            NodeRole::Peer => {
                Ok(Inputs::Peer(ServerInputs { key }, WorkerInputs::open(config, run_dir, data, setup)?))
            }
        }
    }

    /// Bytes of examples that the process will hold.
    pub(super) fn data_bytes(&self) -> u64 {
        match self {
            Inputs::Worker(worker) | Inputs::Peer(_, worker) => worker.data,
            Inputs::Scheduler(_) | Inputs::Server(_) => 0,
        }
    }
}

/// What a scheduler has open. Whatever speaks against the job is found before anything that a former run left is cut: that the run
/// directory is in use, that the checkpoint is not in it, that the audit log cannot be gone on with.
fn scheduler(
    arguments: &NodeArguments,
    config: &Config,
    run_dir: &RunDir,
    identity: &Identity,
    key: Option<Identities>,
) -> Result<Inputs, Failure> {
    let job = arguments.job.clone().unwrap_or_else(|| arguments.config.with_extension("job"));
    let job = read_job(&job, &run_dir.reach(&job))?;
    // A launcher has taken the directory, and has cut what is to be done again.
    let lock = if arguments.with_parent { None } else { run_dir.lock_if_kept().map_err(not_locked)? };
    // Whether the job holds is checked when the scheduler begins.
    let resume = match job.check(identity.trust(), SystemTime::now()) {
        Ok((JobSpec { resume: Some(resume), .. }, _)) if !arguments.with_parent => Some(resume),
        _ => None,
    };
    if let Some(resume) = &resume {
        let signed = Hex::hash(&job.to_bytes());
        Checkpoints::open(&run_dir.checkpoints())
            .and_then(|checkpoints| checkpoints.check_beginning(resume, signed))
            .map_err(Failure::misconfigured)?;
    }
    let summary = match arguments.summary.as_deref() {
        Some(path) => Some(SummaryFile::open(&run_dir.reach(path))?),
        None => None,
    };
    let (audit, audit_key) = match audit_folder(arguments, run_dir) {
        Some(folder) => {
            let (log, key) = begin_audit(&folder, run_dir, identity, &job)?;
            (Some(log), Some((key, Source::Folder(folder))))
        }
        None => (None, None),
    };
    if let Some(summary) = &summary {
        summary.empty()?;
    }
    if let Some(resume) = &resume {
        resume::cut(run_dir, resume)?;
    }
    let mut metrics = Metrics::open(&run_dir.metrics(), &run_dir.evaluations()).map_err(Failure::failed)?;
    let mut without_curves = None;
    if config.telemetry.tensorboard {
        let folder = run_dir.tensorboard();
        // Nothing is lost but curves: `metrics.jsonl` has the numbers.
        match Events::begin(&folder, SystemTime::now()) {
            Ok(events) => metrics = metrics.with_events(events),
            Err(e) => {
                without_curves = Some(format!(
                    "{}: no event file for TensorBoard can be made ({e}), so that there will be none of this process; \
                     telemetry.tensorboard = false asks for none",
                    folder.display()
                ));
            }
        }
    }
    Ok(Inputs::Scheduler(Box::new(SchedulerInputs {
        job,
        metrics,
        without_curves,
        key,
        audit,
        audit_key,
        summary,
        lock,
    })))
}

/// A run directory that another scheduler holds is no misconfiguration: that passes.
fn not_locked(error: RunDirError) -> Failure {
    match error {
        RunDirError::Busy { .. } => Failure::failed(error),
        _ => Failure::misconfigured(error),
    }
}

/// Where the key of the audit log is, if there is one.
pub(super) fn audit_folder(arguments: &NodeArguments, run_dir: &RunDir) -> Option<PathBuf> {
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

pub(in crate::cli) fn read_job(name: &Path, at: &Path) -> Result<SignedJob, Failure> {
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

//! One node of this process: its network, and its run from joining to leaving.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use testudo_actors::incarnation::Secret;
use testudo_actors::link::{MemoryHub, Network};
use testudo_actors::message::Outcome;
use testudo_actors::node::{NodeOptions, WorkerSetup, run_scheduler, run_server, run_worker};
use testudo_actors::outbox::Outbox;
use testudo_actors::server::SumOrder;
use testudo_actors::worker::ShardCompute;
use testudo_actors::{CheckpointSink, JobSpec, NodeError, ServerSetup, SignedJob, TrainAndTest};
use testudo_kernels::{Model, ModelError};
use testudo_observability::Meter;
use testudo_transport::pki::{RevocationPolicy, read_crl};
use testudo_transport::{Endpoint, Identity, MemoryOptions, PkiError, Role};

use super::nearby;
use super::summary::SummaryFile;
use crate::audit::{AuditLog, AuditLogError};
use crate::checkpoint::keys::Identities;
use crate::checkpoint::ledger::RunLedger;
use crate::checkpoint::retention::{Retention, read_deletions};
use crate::checkpoint::storage::Disk;
use crate::checkpoint::{Layout, keys, writer};
use crate::cli::resume::place;
use crate::config::{self, Config, MatrixProducts};
use crate::device::{self, OnDevice};
use crate::error::{Failure, Status};
use crate::node::{Metrics, transport};
use crate::rundir::{RunDir, in_words};
use crate::telemetry::{self, Parts, Timed};

/// Binds what a node of that role is dialled on and dials with; with `beside`, the other node there is reached in memory. `data`
/// is how many bytes of examples it will hold.
pub(super) fn bind(
    config: &Config,
    identity: &Identity,
    (role, data): (Role, u64),
    listen: SocketAddr,
    beside: Option<&MemoryHub>,
    runtime: &tokio::runtime::Handle,
) -> Result<Network, Failure> {
    if let Some(why) = config.too_little_memory(role, data) {
        return Err(Failure::misconfigured(why));
    }
    let policy = testudo_actors::policy::policy_with(
        config.transport.slice_bytes,
        crate::job::codecs(&config.transport).push,
    )
    .map_err(Failure::failed)?;
    let policy = Arc::new(policy);
    let _inside = runtime.enter();
    heed_crl(config, identity)?;
    let settings = transport(config, role, listen, data);
    let endpoint =
        Endpoint::bind(&settings, identity.clone(), Arc::clone(&policy)).map_err(Failure::misconfigured)?;
    if let Some(path) = &config.security.crl {
        endpoint.follow_crl(path).map_err(|e| crl_refused(path, &e))?;
    }
    Ok(match beside {
        None => Network::Quic(endpoint),
        Some(hub) => {
            let options = MemoryOptions {
                control_credit: settings.control_credit,
                data_credit: settings.data_credit,
                stall_timeout: settings.stall_timeout,
                max_streams: settings.max_streams,
                ..MemoryOptions::default()
            };
            hub.join_beside(endpoint, policy, options)
        }
    })
}

/// Puts the lists of revoked certificates that `config` names in force for `identity`, before it knows anybody.
pub(in crate::cli) fn heed_crl(config: &Config, identity: &Identity) -> Result<(), Failure> {
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

pub(super) struct Node {
    pub(super) identity: Arc<Identity>,
    pub(super) network: Network,
    pub(super) config: Config,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) run_dir: RunDir,
    pub(super) index: u32,
    pub(super) scheduler: Option<String>,
    pub(super) meter: Meter,
}

impl Node {
    fn options(&self) -> Result<NodeOptions, Failure> {
        let scheduler = self.scheduler.clone().ok_or_else(nearby::where_is_it)?;
        Ok(NodeOptions {
            identity: Arc::clone(&self.identity),
            network: self.network.clone(),
            scheduler,
            advertise: self.config.network.server_advertise(self.index).map(str::to_owned),
            lanes: u32::from(self.config.transport.lanes),
            runtime: self.runtime.clone(),
            codecs: Some(crate::job::codecs(&self.config.transport)),
        })
    }

    pub(super) fn scheduler(
        self,
        signed: SignedJob,
        mut observer: Metrics,
        key: Option<Identities>,
        audit: Result<Option<AuditLog>, AuditLogError>,
        summary: Option<SummaryFile>,
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
        let job = signed.open(&self.identity).map_err(Failure::misconfigured)?;
        if let Some(resume) = &job.resume {
            tracing::info!("{}", place(resume, &job));
        }
        telemetry::scheduler(&self.meter, &job, observer.progress(), told.as_ref());
        let outcome = run_scheduler(&self.identity, self.network, signed, Box::new(observer), self.runtime)
            .map_err(failure);
        // However the run went, what is known of it is signed.
        let closed = audit.map(AuditLog::close).transpose();
        let outcome = outcome?;
        let head = closed.map_err(Failure::failed)?;
        if let Some(head) = &head {
            tracing::info!(%head, "the audit log is complete");
        }
        match (outcome, summary) {
            (Outcome::Finished(finished), Some(file)) => {
                let head = head.map(|head| head.to_string());
                file.write(&self.config, &job, &self.run_dir, &finished, head)
            }
            (Outcome::Finished(_), None) => Ok(()),
            (Outcome::Failed(reason), _) => Err(Failure::failed(reason)),
            (Outcome::ServerLost(reason), _) => {
                Err(Failure { status: Status::LostServer, ..Failure::failed(reason) })
            }
        }
    }

    /// This run's checkpoints, opened with `key` or with the run's own.
    fn checkpoints(&self, key: Option<Identities>) -> writer::Setup {
        let layout = Layout::new(&self.run_dir.checkpoints());
        let recipients = self.config.checkpoint.recipients.clone();
        writer::Setup::new(layout, recipients, key)
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

    pub(super) fn server(self, key: Option<Identities>) -> Result<(), Failure> {
        let parts = Arc::new(Parts::default());
        telemetry::server(&self.meter, &parts);
        let device = device::open("servers.device", self.config.servers.device, MatrixProducts::Exact)?;
        let setup =
            OnDevice::new(Timed::new(self.checkpoints(key), parts), device, self.config.servers.device);
        let mut setup = setup.with_histograms(self.config.telemetry.counted_every());
        run_server(self.options()?, SumOrder::Canonical, &mut setup).map_err(failure)
    }

    /// `begun` is set when the arithmetic is.
    pub(super) fn worker(
        self,
        inner: Box<dyn WorkerSetup>,
        key: Option<Identities>,
        begun: Arc<AtomicBool>,
    ) -> Result<(), Failure> {
        let checkpoints = self.checkpoints(key);
        let mut setup = Placed { inner, checkpoints, begun };
        run_worker(self.options()?, &mut setup).map_err(failure)
    }
}

/// Ends the process if a worker's thread is over before its arithmetic was begun: the job cannot form without it, and whoever
/// started the process is to know.
struct OrEnd(Arc<AtomicBool>);

impl Drop for OrEnd {
    fn drop(&mut self) {
        if !self.0.load(Ordering::Relaxed) {
            std::process::exit(1);
        }
    }
}

/// Gives the worker the run's checkpoints, and takes note that it begins.
struct Placed {
    inner: Box<dyn WorkerSetup>,
    checkpoints: writer::Setup,
    begun: Arc<AtomicBool>,
}

impl WorkerSetup for Placed {
    fn prepare(&mut self) -> Result<(), String> {
        self.inner.prepare()
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    fn data(&mut self, job: &JobSpec) -> Result<TrainAndTest, String> {
        self.inner.data(job)
    }

    fn model(&mut self, job: &JobSpec) -> Result<Box<dyn Model>, ModelError> {
        self.inner.model(job)
    }

    fn sink(&mut self, job: &JobSpec) -> Box<dyn CheckpointSink> {
        self.inner.sink(job)
    }

    fn checkpoints(&mut self) -> Option<&mut dyn ServerSetup> {
        Some(&mut self.checkpoints)
    }

    fn joined(&mut self, secret: &Secret, scheduler: &Outbox) {
        self.inner.joined(secret, scheduler);
    }

    fn adapt(&mut self, compute: ShardCompute) -> ShardCompute {
        self.begun.store(true, Ordering::Relaxed);
        self.inner.adapt(compute)
    }
}

/// Runs a peer: its server on this thread, its worker on another. What the server keeps is lost with it, so its end is the
/// process's; a worker that fails once it has begun is lost, as any, and its leases move.
pub(super) fn run_peer(
    (server, key): (Node, Option<Identities>),
    (worker, setup): (Node, Box<dyn WorkerSetup>),
) -> Result<(), Failure> {
    let begun = Arc::new(AtomicBool::new(false));
    let opening = key.clone();
    let run = move || {
        let _or_end = OrEnd(Arc::clone(&begun));
        if let Err(failure) = worker.worker(setup, opening, begun) {
            tracing::error!("its worker: {}", in_words(&failure.message));
        }
    };
    let worker = std::thread::Builder::new().name("worker".into()).spawn(run);
    let worker = worker.map_err(|e| Failure::failed(format!("no thread could be started: {e}")))?;
    server.server(key)?;
    // The scheduler dismisses servers when no worker is left.
    worker.join().map_err(|_| Failure::failed("a bug in Testudo: the worker's thread panicked"))
}

fn failure(error: NodeError) -> Failure {
    match error {
        // Whoever supervises this node may start it again.
        NodeError::TurnedAway(ref refused) if refused.transient => Failure::failed(error),
        NodeError::RunLost(_) => Failure { status: Status::RunLost, ..Failure::failed(error) },
        NodeError::Job(_) | NodeError::TurnedAway(_) | NodeError::Codecs { .. } => {
            Failure::misconfigured(error)
        }
        other => Failure::failed(other),
    }
}

#[cfg(test)]
mod tests {
    use testudo_actors::message::JoinRefused;

    use super::*;

    /// A supervisor starts a node again that failed, and not one that was misconfigured.
    #[test]
    fn a_refusal_that_passes_is_no_misconfiguration() {
        let refused = |transient| JoinRefused { reason: String::new(), transient };
        let status = |transient| failure(NodeError::TurnedAway(refused(transient))).status;
        assert_eq!((status(true), status(false)), (Status::Failed, Status::Misconfigured));
        assert_eq!(failure(NodeError::RunLost(String::new())).status, Status::RunLost);
    }
}

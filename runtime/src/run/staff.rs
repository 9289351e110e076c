//! The identities of a local run's nodes: those that it begins with, and those of workers that are started later.
//!
//! 1. Each node has a key of its own, in a folder of its own; all are renewed as long as the run goes on. A worker that is started again
//!    has a new key, in the name that it had, and one whose certificate was revoked is not started.
//! 2. A worker that was never wanted has no identity.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use testudo_actors::JobSpec;
use testudo_transport::{Identity, JobCa, Role};

use crate::authority::RunAuthority;
use crate::error::Failure;
use crate::rotation::{self, Folders};
use crate::rundir::RunDir;

/// How long a run's own CA could issue certificates, if its key were not gone with the run.
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Makes the run's identities: one for each node, one for the audit log and one for the operator; and says in which folders
/// those of nodes and operator are.
pub(super) fn make_identities(
    validity: Duration,
    job: &JobSpec,
    run_dir: &RunDir,
) -> Result<(RunAuthority, Identity, Vec<PathBuf>), Failure> {
    let authority = RunAuthority::make(job, run_dir, CA_VALIDITY)?;
    let ca = authority.ca();
    let mut folders = Vec::new();
    let mut issue = |role: Role, index: u32| {
        let (identity, folder) = issue(ca, job, run_dir, validity, (role, index))?;
        folders.push(folder);
        Ok::<_, Failure>(identity)
    };
    // It is renewed by nobody, signs as long as the run goes on, and deletions after that; no node is ever met under this name.
    let audit = ca.issue(&job.audit_key().map_err(Failure::misconfigured)?, CA_VALIDITY);
    audit.and_then(|key| key.save(&run_dir.audit_identity())).map_err(Failure::failed)?;
    issue(Role::Scheduler, 0)?;
    for index in 0..job.servers {
        issue(Role::Server, index)?;
    }
    for index in 0..job.workers {
        issue(Role::Worker, index)?;
    }
    let operator = issue(Role::Operator, 0)?;
    Ok((authority, operator, folders))
}

/// Makes one node's identity, in a folder of its own.
fn issue(
    ca: &JobCa,
    job: &JobSpec,
    run_dir: &RunDir,
    validity: Duration,
    (role, index): (Role, u32),
) -> Result<(Identity, PathBuf), Failure> {
    let id = job.member(role, index).map_err(Failure::misconfigured)?;
    let identity = ca.issue(&id, validity).map_err(Failure::failed)?;
    let folder = run_dir.create_identity(&role.to_string(), index).map_err(Failure::failed)?;
    identity.save(&folder).map_err(Failure::failed)?;
    Ok((identity, folder))
}

/// What a launcher starts further workers with.
pub(super) struct Staff<'a> {
    pub(super) ca: Arc<JobCa>,
    pub(super) job: &'a JobSpec,
    pub(super) run_dir: &'a RunDir,
    pub(super) validity: Duration,
    pub(super) folders: Folders,
}

impl Staff<'_> {
    /// Makes a worker's identity, or renews the one that it has.
    pub(super) fn hire(&self, worker: u32) -> Result<(), Failure> {
        let folder = self.run_dir.identity(Role::Worker.as_str(), worker);
        if folder.exists() {
            return rotation::renew(&self.ca, &folder, self.validity).map_err(Failure::failed);
        }
        let (_, folder) = issue(&self.ca, self.job, self.run_dir, self.validity, (Role::Worker, worker))?;
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
        Ok(())
    }
}

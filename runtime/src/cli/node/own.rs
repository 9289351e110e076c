//! Who this process is: one node, or a peer's server and worker.

use std::path::Path;

use testudo_transport::{Identity, Role};

use crate::cli::args::{NodeArguments, NodeRole};
use crate::config::{self, Config};
use crate::error::Failure;
use crate::rotation::Source;
use crate::rundir::RunDir;

/// One node of this process.
pub(super) struct Own {
    pub(super) role: Role,
    pub(super) identity: Identity,
    /// Where renewals of its certificate come from.
    pub(super) source: Source,
}

impl Own {
    /// The nodes that this process is, the first of which others are told of.
    ///
    /// # Errors
    /// [`Failure`] when an identity is missing, cannot be read or is another's.
    pub(super) fn all(
        arguments: &NodeArguments,
        config: &Config,
        run_dir: &RunDir,
        index: u32,
    ) -> Result<Vec<Own>, Failure> {
        let first =
            identity_source(arguments.identity.as_deref().map(|dir| run_dir.reach(dir)).as_deref(), config)?;
        let load = |role: Role, source: Source| {
            let identity = source.load().map_err(Failure::misconfigured)?;
            check(&identity, role, index, &config.job)?;
            Ok::<_, Failure>(Own { role, identity, source })
        };
        let role = match arguments.role {
            NodeRole::Scheduler => Role::Scheduler,
            NodeRole::Server => Role::Server,
            NodeRole::Worker => Role::Worker,
            NodeRole::Peer => {
                let folder = arguments.worker_identity.as_deref().ok_or_else(|| {
                    Failure::misconfigured(
                        "a peer is a server and a worker, each with an identity of its own: give the server's folder with \
                         --identity, and the worker's with --worker-identity",
                    )
                })?;
                let worker = Source::Folder(run_dir.reach(folder));
                return Ok(vec![load(Role::Server, first)?, load(Role::Worker, worker)?]);
            }
        };
        Ok(vec![load(role, first)?])
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

fn check(identity: &Identity, role: Role, index: u32, job: &config::Job) -> Result<(), Failure> {
    let id = identity.id();
    // Whoever signs for many jobs would otherwise say which one this is.
    if (id.trust_domain(), id.job()) != (job.trust_domain.as_str(), job.name.as_str()) {
        return Err(Failure::misconfigured(format!(
            "the identity given is {id}, and the cluster file is of job `{}` in `{}`: give one of that job's with --identity, or \
             set job.name and job.trust_domain",
            job.name, job.trust_domain
        )));
    }
    if id.role() == role && id.index() == Some(index) {
        return Ok(());
    }
    Err(Failure::misconfigured(format!(
        "the identity given is that of {}, not of {role}/{index}: give that node's own with {}",
        id.short(),
        if role == Role::Worker { "--identity, or with --worker-identity for a peer" } else { "--identity" },
    )))
}

//! Where the nodes of one process meet: their certificate authority, their links, their threads.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testudo_actors::link::{MemoryHub, Network};
use testudo_actors::own::Grants;
use testudo_actors::{JobSpec, policy};
use testudo_transport::{Endpoint, Identity, JobCa, MemoryOptions, Policy, Role, SpiffeId, TransportConfig};
use tokio::runtime::{Handle, Runtime};

use super::EmbeddedError;

/// How long the identities of a run in this process are good: longer than any run. Their keys are in no file and die with it.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Threads for connections.
const NETWORK_THREADS: usize = 2;

/// How the nodes of a process are connected. No bit depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Through memory, and whole messages are moved. Role table, credit and limits hold; there are no MACs, since all ends share the
    /// process's memory anyway.
    Memory,
    /// Through memory, with full sessions: every message is framed, hashed and carries a MAC.
    #[default]
    Secured,
    /// Over QUIC on loopback, with mutual TLS 1.3, as between machines.
    Quic,
}

/// What nodes of a process share.
pub(super) struct Site {
    trust_domain: String,
    job: String,
    ca: JobCa,
    hub: MemoryHub,
    links: Links,
    policy: Arc<Policy>,
    pub(super) grants: Grants,
    /// Of actors of one's own: those that were given.
    pub(super) names: Mutex<BTreeSet<String>>,
    secret: [u8; 32],
    /// There until this is dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Site {
    /// A site for `job` and for actors to which `grants` say what they may say.
    pub(super) fn new(job: &JobSpec, links: Links, grants: Grants) -> Result<Site, EmbeddedError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(EmbeddedError::Thread)?;
        // What links in memory are keyed by; nobody outside this process ever sees what they protect.
        let mut secret = [0; 32];
        aws_lc_rs::rand::fill(&mut secret)
            .map_err(|_| EmbeddedError::Thread(std::io::Error::other("the system has no randomness")))?;
        Ok(Site {
            trust_domain: job.trust_domain.clone(),
            job: job.name.clone(),
            ca: JobCa::create(&job.trust_domain, &job.name, VALIDITY)?,
            hub: MemoryHub::default(),
            links,
            policy: Arc::new(policy::policy_with_own(job.slice_bytes, job.codecs.push, &grants)?),
            grants,
            names: Mutex::default(),
            secret,
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Where connections' tasks run.
    pub(super) fn runtime(&self) -> &Handle {
        &self.handle
    }

    /// A new identity.
    pub(super) fn identity(&self, role: Role, name: &str) -> Result<Arc<Identity>, EmbeddedError> {
        let id = SpiffeId::new(&self.trust_domain, &self.job, role, name)?;
        Ok(Arc::new(self.ca.issue(&id, VALIDITY)?))
    }

    /// What a node of that identity dials with, and is dialled on if it is one to be dialled.
    pub(super) fn network(&self, identity: &Identity) -> Result<Network, EmbeddedError> {
        let in_memory = |secured| {
            let options = MemoryOptions { secured, secret: self.secret, ..MemoryOptions::default() };
            self.hub.join(identity.id().clone(), Arc::clone(&self.policy), options)
        };
        Ok(match self.links {
            Links::Memory => in_memory(false),
            Links::Secured => in_memory(true),
            Links::Quic => {
                let accepts = !matches!(identity.id().role(), Role::Worker | Role::Operator);
                let config = TransportConfig { accepts, ..TransportConfig::default() };
                let _inside = self.handle.enter();
                Network::Quic(Endpoint::bind(&config, identity.clone(), Arc::clone(&self.policy))?)
            }
        })
    }
}

impl Drop for Site {
    /// In the background, since whoever drops this may be a task of another runtime.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

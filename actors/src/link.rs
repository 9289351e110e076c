//! Connections as actors see them: a network to dial and accept on.
//!
//! Only this file and the transport know whether a message crosses memory or QUIC.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use testudo_transport::pki::Installed;
use testudo_transport::{
    Account, Connection, Crl, Endpoint, Expected, MemoryOptions, PkiError, Policy, Refusals, Role, SpiffeId,
    memory,
};
use tokio::sync::mpsc;

use crate::active::{Method, Side, active};
use crate::audit::Refusal;
use crate::message::{Load, RefusalReport, Refused};

/// Connections that may wait to be accepted on a memory network.
const MEMORY_BACKLOG: usize = 64;

/// How long peers are told of an end at most. By itself that lasts a few round trips, as they were seen last: if this process was
/// stopped meanwhile, as long as that took.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a node keeps trying to reach another that may start after it, or whose name may not be known everywhere yet.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Where a node dials and is dialled.
#[derive(Clone, Debug)]
pub enum Network {
    /// Over QUIC.
    Quic(Endpoint),
    /// Within this process.
    Memory(MemoryNetwork),
    /// Over QUIC, but for the other node of this process, which is reached in memory: a peer's server and worker share every
    /// secret anyway.
    Colocated(Endpoint, MemoryNetwork),
}

impl Network {
    /// Connects to exactly `expect` at `address` (`host:port`; every address of a name is tried in turn).
    ///
    /// # Errors
    /// The text says what failed and what to do.
    pub async fn connect(&self, address: &str, expect: &SpiffeId) -> Result<Connection, String> {
        if let Some(memory) = self.memory()
            && (self.endpoint().is_none() || memory.has(expect))
        {
            return memory.connect(expect).await;
        }
        let Some(endpoint) = self.endpoint() else { return Err(format!("{expect} cannot be reached")) };
        let addresses = tokio::net::lookup_host(address)
            .await
            .map_err(|e| format!("{address} cannot be resolved: {e}"))?;
        let mut last = format!("{address} has no address");
        for address in addresses {
            match endpoint.connect(address, expect).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// As [`Network::connect`], over and over until it succeeds, the name looked up anew each time, for [`PATIENCE`] at least.
    ///
    /// # Errors
    /// What the last try failed of.
    pub async fn connect_patiently(&self, address: &str, expect: &SpiffeId) -> Result<Connection, String> {
        let begun = tokio::time::Instant::now();
        loop {
            match self.connect(address, expect).await {
                Ok(connection) => return Ok(connection),
                Err(reason) if begun.elapsed() > PATIENCE => return Err(reason),
                Err(reason) => tracing::info!(%expect, reason, "not reached yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The next authenticated connection; `None` when the network is closed.
    pub async fn accept(&self) -> Option<Connection> {
        match self {
            Network::Quic(endpoint) => endpoint.accept().await,
            Network::Memory(memory) => memory.accept().await,
            // The endpoint says when it is over; the other node of this process may leave before that.
            Network::Colocated(endpoint, memory) => tokio::select! {
                connection = endpoint.accept() => connection,
                Some(connection) = memory.accept() => Some(connection),
            },
        }
    }

    /// What this node has of QUIC.
    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Network::Quic(endpoint) | Network::Colocated(endpoint, _) => Some(endpoint),
            Network::Memory(_) => None,
        }
    }

    /// What this node has within this process.
    fn memory(&self) -> Option<&MemoryNetwork> {
        match self {
            Network::Quic(_) => None,
            Network::Memory(memory) | Network::Colocated(_, memory) => Some(memory),
        }
    }

    /// Whether `other` is the other node of this process, so that what is sent to it crosses no network.
    #[must_use]
    pub fn is_beside(&self, other: &SpiffeId) -> bool {
        matches!(self, Network::Colocated(_, memory) if memory.has(other))
    }

    /// This node's identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        match self {
            Network::Quic(endpoint) | Network::Colocated(endpoint, _) => endpoint.id(),
            Network::Memory(memory) => &memory.id,
        }
    }

    /// Where this node is bound. A memory network has no addresses; its answer stands for none.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Network::Quic(endpoint) | Network::Colocated(endpoint, _) => endpoint.local_addr(),
            Network::Memory(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// What this node holds for its peers, and what it turned away; nothing on a memory network.
    #[must_use]
    pub fn load(&self) -> Load {
        let Some(endpoint) = self.endpoint() else { return Load::default() };
        let stats = endpoint.stats();
        // Counted over the process, of which a peer has two nodes: each tells of its own side.
        let side = match endpoint.id().role() {
            Role::Server => Some(Side::Server),
            Role::Worker => Some(Side::Worker),
            _ => None,
        };
        let waiting = |method| side.map_or(0, |side| u32::try_from(active(side, method)).unwrap_or(u32::MAX));
        Load {
            held_bytes: stats.held_bytes,
            promised_bytes: stats.promised_bytes,
            budget_bytes: stats.memory,
            connections: u32::try_from(stats.open).unwrap_or(u32::MAX),
            pushes: waiting(Method::Push),
            pulls: waiting(Method::Pull),
            refused: Refused {
                datagrams: stats.sieve.not_allowed + stats.sieve.malformed + stats.sieve.strays,
                knocks: stats.sieve.newcomers,
                handshakes: stats.ignored + stats.over_rate,
                strangers: stats.refused + stats.timed_out,
                full: stats.turned_away + stats.out_of_memory,
                faults: stats.faults,
                shut_out: stats.peers_over_rate,
            },
            // Who computes knows.
            busy_us: 0,
        }
    }

    /// What this node counts, to be read whenever, also when the network is gone; none on a memory network.
    #[must_use]
    pub fn account(&self) -> Option<Arc<Account>> {
        self.endpoint().map(Endpoint::account)
    }

    /// Puts the certificate authority's list of revoked certificates in force at this node, and closes the connections of those
    /// in it.
    ///
    /// # Errors
    /// Why it is not taken; the one before stays in force.
    pub fn install_crl(&self, crl: &[u8]) -> Result<Installed, String> {
        match self.endpoint() {
            Some(endpoint) => endpoint.install_crl(crl).map_err(|e| e.to_string()),
            None => Err("nodes of one process have no certificates to revoke".into()),
        }
    }

    /// Checks a certificate (DER): that it is one of `id`, and good now at this node.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_certificate(&self, certificate: &[u8], id: &SpiffeId) -> Result<(), String> {
        match self.endpoint() {
            Some(endpoint) => {
                let checked = endpoint.trust().verify(certificate, &Expected::Node(id.clone()));
                checked.map(|_| ()).map_err(|e| e.to_string())
            }
            None => Err("nodes of one process have no certificates".into()),
        }
    }

    /// Whether a certificate (DER) of `id` is in a list of revoked ones that is in force at this node.
    #[must_use]
    pub fn is_revoked(&self, certificate: &[u8], id: &SpiffeId) -> bool {
        let checked = self.endpoint().map(|e| e.trust().verify(certificate, &Expected::Node(id.clone())));
        matches!(checked, Some(Err(PkiError::Revoked { .. })))
    }

    /// The lists of revoked certificates in force; none where nodes have no certificates.
    #[must_use]
    pub fn crls(&self) -> Vec<Arc<Crl>> {
        self.endpoint().map(Endpoint::crls).unwrap_or_default()
    }

    /// Whom this node refused; its actors count theirs here too.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        match self {
            Network::Quic(endpoint) | Network::Colocated(endpoint, _) => endpoint.refusals(),
            Network::Memory(memory) => &memory.refusals,
        }
    }

    /// What was refused since the last call, to tell the scheduler; `None` if nothing was.
    #[must_use]
    pub fn refusal_report(&self) -> Option<RefusalReport> {
        let line = |r: testudo_transport::Refused| Refusal {
            cause: r.cause.to_string(),
            who: r.who.to_string(),
            count: r.count,
        };
        let refused: Vec<Refusal> = self.refusals().drain().into_iter().map(line).collect();
        (!refused.is_empty()).then_some(RefusalReport { refused })
    }

    /// Closes every connection in order and waits until peers have been told, or until there is no more to expect of that.
    pub async fn close(&self, reason: &str) {
        if let Some(endpoint) = self.endpoint() {
            endpoint.close(0, reason);
            let _ = tokio::time::timeout(DRAIN, endpoint.wait_idle()).await;
        }
    }
}

/// The nodes of one process, by identity.
#[derive(Clone, Debug, Default)]
pub struct MemoryHub {
    nodes: Arc<Mutex<HashMap<SpiffeId, mpsc::Sender<Connection>>>>,
}

impl MemoryHub {
    /// The network of a node that is called `id` on this hub; whoever joined under that name before is reached no more. `secured` runs full sessions, MACs included, over memory.
    #[must_use]
    pub fn join(&self, id: SpiffeId, policy: Arc<Policy>, options: MemoryOptions) -> Network {
        Network::Memory(self.place(id, policy, options))
    }

    /// The network of a node of this hub that also has an endpoint, under that endpoint's identity: nodes of this hub are reached
    /// in memory, all others over QUIC.
    #[must_use]
    pub fn join_beside(&self, endpoint: Endpoint, policy: Arc<Policy>, options: MemoryOptions) -> Network {
        let memory = self.place(endpoint.id().clone(), policy, options);
        Network::Colocated(endpoint, memory)
    }

    fn place(&self, id: SpiffeId, policy: Arc<Policy>, options: MemoryOptions) -> MemoryNetwork {
        let (sender, receiver) = mpsc::channel(MEMORY_BACKLOG);
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sender);
        let incoming = Arc::new(tokio::sync::Mutex::new(receiver));
        let refusals = Refusals::default();
        MemoryNetwork { id, hub: self.clone(), policy, options, incoming, refusals }
    }
}

/// One node's place on a [`MemoryHub`].
#[derive(Clone, Debug)]
pub struct MemoryNetwork {
    id: SpiffeId,
    hub: MemoryHub,
    policy: Arc<Policy>,
    options: MemoryOptions,
    incoming: Arc<tokio::sync::Mutex<mpsc::Receiver<Connection>>>,
    refusals: Refusals,
}

impl MemoryNetwork {
    fn has(&self, id: &SpiffeId) -> bool {
        self.hub.nodes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    async fn accept(&self) -> Option<Connection> {
        self.incoming.lock().await.recv().await
    }

    async fn connect(&self, expect: &SpiffeId) -> Result<Connection, String> {
        let node = self.hub.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(expect).cloned();
        let node = node.ok_or_else(|| format!("{expect} is not in this process"))?;
        let (ours, theirs) = memory::pair(&self.id, expect, Arc::clone(&self.policy), self.options.clone());
        node.send(theirs).await.map_err(|_| format!("{expect} has left this process"))?;
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use testudo_transport::Role;

    use super::*;

    /// The first try fails, and a later one does not.
    #[tokio::test]
    async fn a_node_that_comes_late_is_reached() {
        let id = |role| SpiffeId::new("example.org", "job", role, "0").unwrap();
        let (hub, policy) = (MemoryHub::default(), Arc::new(crate::policy::policy(1 << 20).unwrap()));
        let join = |role| hub.join(id(role), Arc::clone(&policy), MemoryOptions::default());
        let worker = join(Role::Worker);
        assert!(worker.connect("", &id(Role::Server)).await.is_err());
        let server_id = id(Role::Server);
        let dialling = worker.connect_patiently("", &server_id);
        tokio::pin!(dialling);
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut dialling).await.is_err(), "it tries on");
        let server = join(Role::Server);
        let (dialled, came) = tokio::join!(dialling, server.accept());
        assert!(dialled.is_ok());
        assert_eq!(came.unwrap().peer(), &id(Role::Worker));
    }
}

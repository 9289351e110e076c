//! Connections as actors see them: a network to dial and accept on, and an outbox that never blocks an actor.
//!
//! Only this file and the transport know whether a message crosses memory or QUIC.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use testudo_transport::{
    Connection, Endpoint, Error, MemoryOptions, Outgoing, Policy, Sender, SpiffeId, memory,
};
use tokio::sync::mpsc;

/// Connections that may wait to be accepted on a memory network.
const MEMORY_BACKLOG: usize = 64;

/// Where a node dials and is dialled.
#[derive(Clone, Debug)]
pub enum Network {
    /// Over QUIC.
    Quic(Endpoint),
    /// Within this process.
    Memory(MemoryNetwork),
}

impl Network {
    /// Connects to exactly `expect` at `address` (`host:port`; every address of a name is tried in turn).
    ///
    /// # Errors
    /// The text says what failed and what to do.
    pub async fn connect(&self, address: &str, expect: &SpiffeId) -> Result<Connection, String> {
        let endpoint = match self {
            Network::Quic(endpoint) => endpoint,
            Network::Memory(memory) => return memory.connect(expect).await,
        };
        let addresses =
            tokio::net::lookup_host(address).await.map_err(|e| format!("{address} cannot be resolved: {e}"))?;
        let mut last = format!("{address} has no address");
        for address in addresses {
            match endpoint.connect(address, expect).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// The next authenticated connection; `None` when the network is closed.
    pub async fn accept(&self) -> Option<Connection> {
        match self {
            Network::Quic(endpoint) => endpoint.accept().await,
            Network::Memory(memory) => memory.incoming.lock().await.recv().await,
        }
    }

    /// This node's identity.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        match self {
            Network::Quic(endpoint) => endpoint.id(),
            Network::Memory(memory) => &memory.id,
        }
    }

    /// Where this node is bound. A memory network has no addresses; its answer stands for none.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Network::Quic(endpoint) => endpoint.local_addr(),
            Network::Memory(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        }
    }

    /// Closes every connection in order and waits until peers have been told.
    pub async fn close(&self, reason: &str) {
        if let Network::Quic(endpoint) = self {
            endpoint.close(0, reason);
            endpoint.wait_idle().await;
        }
    }
}

/// The nodes of one process, by identity.
#[derive(Clone, Debug, Default)]
pub struct MemoryHub {
    nodes: Arc<Mutex<HashMap<SpiffeId, mpsc::Sender<Connection>>>>,
}

impl MemoryHub {
    /// The network of a node that is called `id` on this hub. `secured` runs full sessions, MACs included, over memory.
    #[must_use]
    pub fn join(&self, id: SpiffeId, policy: Arc<Policy>, options: MemoryOptions) -> Network {
        let (sender, receiver) = mpsc::channel(MEMORY_BACKLOG);
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sender);
        let incoming = Arc::new(tokio::sync::Mutex::new(receiver));
        Network::Memory(MemoryNetwork { id, hub: self.clone(), policy, options, incoming })
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
}

impl MemoryNetwork {
    async fn connect(&self, expect: &SpiffeId) -> Result<Connection, String> {
        let node = self.hub.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(expect).cloned();
        let node = node.ok_or_else(|| format!("{expect} is not in this process"))?;
        let (ours, theirs) =
            memory::pair(&self.id, expect, Arc::clone(&self.policy), self.options.clone());
        node.send(theirs).await.map_err(|_| format!("{expect} has left this process"))?;
        Ok(ours)
    }
}

/// Messages on their way to one stream of a peer.
///
/// An actor posts without waiting; a task sends. What waits is bounded in messages and in payload bytes, and a peer for
/// whom more would wait does not read: its connection is closed.
#[derive(Clone, Debug)]
pub struct Outbox {
    queue: mpsc::Sender<Posted>,
    bytes: Arc<AtomicUsize>,
    max_bytes: usize,
    connection: Connection,
}

/// A message with whatever is to be given back once it has been sent.
struct Posted {
    message: Outgoing,
    _held: Option<Box<dyn Send>>,
}

impl std::fmt::Debug for Posted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Posted").field("kind", &self.message.kind).finish_non_exhaustive()
    }
}

impl Outbox {
    /// An outbox for `sender`, a stream of `connection`, whose task runs on the present tokio runtime.
    #[must_use]
    pub fn new(
        connection: Connection,
        sender: Sender,
        max_messages: usize,
        max_bytes: usize,
        runtime: &tokio::runtime::Handle,
    ) -> Outbox {
        let (queue, waiting) = mpsc::channel(max_messages.max(1));
        let bytes = Arc::new(AtomicUsize::new(0));
        runtime.spawn(send_all(connection.clone(), sender, waiting, Arc::clone(&bytes)));
        Outbox { queue, bytes, max_bytes, connection }
    }

    /// Posts a message. A connection that is gone, or whose peer does not read, is closed and swallows it: its
    /// actor learns of that from the connection's end.
    pub fn post(&self, message: Outgoing) {
        self.post_holding(message, None);
    }

    /// Posts a message and drops `held` once it has been handed to the transport.
    pub fn post_holding(&self, message: Outgoing, held: Option<Box<dyn Send>>) {
        let len = message.payload.len();
        let waiting = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        let full = waiting > self.max_bytes.max(len);
        if full || self.queue.try_send(Posted { message, _held: held }).is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            self.connection.close(
                testudo_transport::CloseCode::Stalled.number(),
                "more answers wait than this peer may leave unread",
            );
        }
    }
}

async fn send_all(
    connection: Connection,
    mut sender: Sender,
    mut waiting: mpsc::Receiver<Posted>,
    bytes: Arc<AtomicUsize>,
) {
    while let Some(posted) = waiting.recv().await {
        let len = posted.message.payload.len();
        let sent = sender.send(posted.message).await;
        bytes.fetch_sub(len, Ordering::Relaxed);
        if let Err(error) = sent {
            if !matches!(error, Error::Closed { .. } | Error::Lost { .. }) {
                tracing::warn!(%error, "a message could not be sent");
            }
            connection.close(testudo_transport::CloseCode::Done.number(), "a stream cannot be written");
            return;
        }
    }
    // Whoever posted is gone: what was sent still arrives.
    let _ = sender.finish().await;
}

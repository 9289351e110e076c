//! One UDP socket: dials and accepts connections of one node.
//!
//! Invariants:
//!
//! 1. [`Endpoint::accept`] and [`Endpoint::connect`] give only connections whose peer's certificate was
//!    checked in the handshake; a dialled peer is exactly the one asked for.
//! 2. Before that, a connection may hold 64 KiB and no stream of messages; one that was accepted may hold no more until its
//!    peer has said something that holds up.
//! 3. A handshake that takes longer than its deadline is dropped; each runs in a task of its own, so that
//!    none waits for another.
//! 4. Datagrams pass the sieve (`endpoint/sieve.rs`) first. From `retry_after` handshakes on, newcomers prove their address first; from `max_handshakes` on, and beyond
//!    what the door's rates leave them (`endpoint/door.rs`), they are ignored; beyond `max_connections` refused. What one address
//!    and one identity may have of both: `endpoint/places.rs`.
//! 5. Once a list of revoked certificates is in force, nobody in it is dialled or accepted, and nobody at all when it has
//!    ended; connections that live are closed for the same reasons ([`Endpoint::recheck`]).

mod account;
mod admit;
mod congestion;
mod door;
mod places;
mod sieve;
mod socket;
mod standing;
mod table;
mod transport;

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::VarInt;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::config::{KeyExchange, TransportConfig};
use crate::connection::Connection;
use crate::error::Error;
use crate::identity::SpiffeId;
use crate::pki::{Identity, PkiError, Trust};
use crate::policy::{Class, Policy};
use crate::refusals::Refusals;
use crate::session::{Direction, largest_message};
use crate::tls;

pub use account::Account;
use admit::Admission;
pub use admit::EndpointStats;
use places::Slot;
pub use sieve::SieveStats;
use sieve::{CidKey, Sieve};

/// Connections authenticated and not yet taken by [`Endpoint::accept`]; beyond it, handshakes wait.
const ACCEPT_QUEUE: usize = 64;

/// A node's place on the network. Clones are handles to the same one; dropping the last closes it.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quic: quinn::Endpoint,
    address: SocketAddr,
    admission: Arc<Admission>,
    account: Arc<Account>,
    client_transport: Arc<quinn::TransportConfig>,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    followed: std::sync::Mutex<Option<standing::Followed>>,
}

/// Why an endpoint could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Another process, or another endpoint of this one, has the address.
    #[error(
        "{0} is in use; stop the process that has it (`ss -lunp` names it) or set another `listen` address"
    )]
    InUse(SocketAddr),
    /// The address cannot be bound.
    #[error(
        "cannot bind {address}: {what}; check that this machine has the address and that the port is allowed"
    )]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        what: String,
    },
    /// A setting that cannot be.
    #[error("transport setting: {0}")]
    Config(String),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] PkiError),
    /// Called outside a tokio runtime.
    #[error("an endpoint needs a tokio runtime with I/O and time enabled; bind it inside one")]
    NoRuntime,
}

/// Why a node could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The node there is not the one expected, or shows no valid certificate of this job.
    #[error("node at {address} refused: {why}")]
    Untrusted {
        /// Where.
        address: SocketAddr,
        /// What was wrong.
        why: PkiError,
    },
    /// The node there does not let this one in.
    #[error("{expect} at {address} does not admit this node: {why}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Whom we dialled.
        expect: SpiffeId,
        /// What it, or TLS, says.
        why: String,
    },
    /// Nobody answered in time.
    #[error(
        "{expect} at {address} did not answer within {milliseconds} ms; is it running, and may UDP pass?"
    )]
    Timeout {
        /// Where.
        address: SocketAddr,
        /// Whom we dialled.
        expect: SpiffeId,
        /// How long we waited.
        milliseconds: u64,
    },
    /// This node has all the connections that it may.
    #[error("this node has {0} connections, as many as `max_connections` allows")]
    Full(usize),
    /// This node has promised all the memory that it has for peers.
    #[error(
        "this node's memory for peers is promised: {0} bytes, of which a connection takes {1}; raise `memory` or lower credits"
    )]
    Memory(u64, u64),
    /// The call makes no sense here.
    #[error("cannot dial {address}: {what}")]
    Local {
        /// Where.
        address: SocketAddr,
        /// What is wrong.
        what: String,
    },
}

impl Endpoint {
    /// Binds the address and starts to listen. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        config: &TransportConfig,
        identity: Identity,
        policy: Arc<Policy>,
    ) -> Result<Endpoint, BindError> {
        check(config, &policy)?;
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let address = config.listen;
        let unbound = |why: std::io::Error| match why.kind() {
            ErrorKind::AddrInUse => BindError::InUse(address),
            _ => BindError::Address { address, what: why.to_string() },
        };
        let key = CidKey::new(random()?);
        let sieve = Sieve::new(key, config.allow.clone(), config.accepts, Duration::ZERO);
        let opened = socket::open(address, config.socket_buffer, config.mtu, sieve).map_err(unbound)?;
        // On loopback the receiver's kernel buffer, which is like ours, holds all that is in flight.
        let is_loopback = address.ip().is_loopback();
        let in_flight = if is_loopback { opened.burst } else { config.socket_buffer };
        let transport = Arc::new(transport::quic(config, in_flight.min(config.socket_buffer))?);

        let crypto = tls::quic_server(tls::server_config(&identity, config.key_exchange)?)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::clone(&transport))
            .migration(false)
            .max_incoming(config.max_handshakes)
            .incoming_buffer_size(transport::PENDING_BUFFER)
            .incoming_buffer_size_total(transport::PENDING_BUFFER * config.max_handshakes as u64);
        let (endpoint_config, runtime) = (transport::endpoint(config, key)?, Arc::new(quinn::TokioRuntime));
        let (sieved, socket) = (Arc::clone(&opened.socket), opened.socket);
        let server = config.accepts.then_some(server);
        let quic = quinn::Endpoint::new_with_abstract_socket(endpoint_config, server, socket, runtime)
            .map_err(unbound)?;
        let address = quic.local_addr().map_err(unbound)?;

        let (accepted_tx, accepted) = mpsc::channel(ACCEPT_QUEUE);
        let admission = Arc::new(Admission::new(config.clone(), identity, policy));
        tokio::spawn(socket::reopen(Arc::downgrade(&sieved)));
        if config.accepts {
            tokio::spawn(admit::run(Arc::clone(&admission), quic.clone(), accepted_tx));
        }
        let accepted = Mutex::new(accepted);
        let client_transport = transport;
        let followed = std::sync::Mutex::default();
        let account = Arc::new(Account::new(Arc::clone(&admission), sieved.sieve()));
        let inner =
            Arc::new(Inner { quic, address, admission, account, client_transport, accepted, followed });
        tokio::spawn(standing::keep(Arc::downgrade(&inner)));
        Ok(Endpoint(inner))
    }

    /// Dials `expect` at an address. Returns once each has authenticated and admitted the other.
    ///
    /// # Errors
    /// [`ConnectError`]; a valid certificate of any other node is refused too.
    pub async fn connect(&self, address: SocketAddr, expect: &SpiffeId) -> Result<Connection, ConnectError> {
        let admission = &self.0.admission;
        let limit = admission.config().handshake_timeout;
        let slot = admission.slot().ok_or(ConnectError::Full(admission.config().max_connections))?;
        let needed = admission.config().promise();
        let slot = admission.promised(slot).ok_or(ConnectError::Memory(admission.config().memory, needed))?;
        let dialled = timeout(limit, self.dial(address, expect, slot)).await;
        let result = dialled.unwrap_or_else(|_| {
            let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            Err(ConnectError::Timeout { address, expect: expect.clone(), milliseconds })
        });
        admission.count_dial(result.is_ok());
        result
    }

    async fn dial(
        &self,
        address: SocketAddr,
        expect: &SpiffeId,
        slot: Slot,
    ) -> Result<Connection, ConnectError> {
        let admission = &self.0.admission;
        let place = slot.dialled(expect);
        let local = |what: String| ConnectError::Local { address, what };
        let changes = admission.identity().changes();
        let exchange: KeyExchange = admission.config().key_exchange;
        let (config, pin) = tls::client_config(admission.identity(), exchange, expect)
            .map_err(|why| local(why.to_string()))?;
        let crypto = tls::quic_client(config).map_err(|why| local(why.to_string()))?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::clone(&self.0.client_transport));
        client.token_store(Arc::new(quinn::NoneTokenStore));

        let connecting = self.0.quic.connect_with(client, address, tls::SERVER_NAME);
        let connecting = connecting.map_err(|why| local(why.to_string()))?;
        let refused = |why: String| match pin.take() {
            Some(why) => ConnectError::Untrusted { address, why },
            None => ConnectError::Refused { address, expect: expect.clone(), why },
        };
        let quic = connecting.await.map_err(|why| refused(why.to_string()))?;
        let connection = admission
            .start(quic, expect.clone(), Direction::FromInitiator, place, None, changes)
            .map_err(|why| refused(why.to_string()))?;
        // The peer checks our certificate after our handshake is done: its first grant says that it did.
        match connection.admitted().await {
            Ok(()) => Ok(connection),
            Err(Error::Closed { reason, .. }) => Err(refused(reason.to_string())),
            Err(other) => Err(refused(other.to_string())),
        }
    }

    /// The next connection from a node that authenticated itself; `None` when the endpoint is closed, or accepts nobody.
    pub async fn accept(&self) -> Option<Connection> {
        self.0.accepted.lock().await.recv().await
    }

    /// The address bound, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.address
    }

    /// This node.
    pub fn id(&self) -> &SpiffeId {
        self.0.admission.identity().id()
    }

    /// What this node trusts.
    pub fn trust(&self) -> &Trust {
        self.0.admission.identity().trust()
    }

    /// What the endpoint saw so far.
    pub fn stats(&self) -> EndpointStats {
        self.0.account.stats()
    }

    /// What the endpoint counts, to be read whenever, also when the endpoint is gone.
    pub fn account(&self) -> Arc<Account> {
        Arc::clone(&self.0.account)
    }

    /// Whom this node refused, and why; whoever is let in and misbehaves is counted there too.
    pub fn refusals(&self) -> &Refusals {
        self.0.account.refusals()
    }

    /// Closes every connection and stops listening.
    pub fn close(&self, code: u32, reason: &str) {
        self.0.quic.close(VarInt::from_u32(code), reason.as_bytes());
    }

    /// Waits until peers were told of every close, or the network layer gave up telling them.
    pub async fn wait_idle(&self) {
        self.0.quic.wait_idle().await;
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({} at {})", self.id().short(), self.0.address)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quic.close(VarInt::from_u32(0), b"");
    }
}

fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| PkiError::Crypto("no random numbers"))?;
    Ok(bytes)
}

// Every limit must leave room for what the policy allows, or a message could wait for ever.
fn check(config: &TransportConfig, policy: &Policy) -> Result<(), BindError> {
    let refuse = |what: String| Err(BindError::Config(what));
    for (class, credit) in [(Class::Control, config.control_credit), (Class::Data, config.data_credit)] {
        let needed = policy.largest(class).saturating_add(48);
        let limit = largest_message(credit.bytes);
        if needed > limit {
            return refuse(format!(
                "{class} credit of {} bytes lets messages of {limit} bytes through, but the policy allows {needed}; \
                 raise the credit or lower the policy's limit",
                credit.bytes
            ));
        }
        if credit.messages == 0 {
            return refuse(format!("{class} credit allows no message at all"));
        }
    }
    if !(1200..=65_527).contains(&config.mtu) {
        return refuse(format!("mtu is {}; it may be 1200 to 65527", config.mtu));
    }
    if config.memory < config.promise() {
        let (memory, needed) = (config.memory, config.promise());
        return refuse(format!(
            "memory of {memory} bytes is not enough for one peer, whose credit takes {needed}; raise it or lower credits"
        ));
    }
    if config.keep_alive >= config.idle_timeout {
        return refuse(format!(
            "keep_alive of {:?} is not below idle_timeout of {:?}, so idle connections would be lost",
            config.keep_alive, config.idle_timeout
        ));
    }
    let limits = [
        config.max_connections,
        config.max_connections_per_peer,
        config.max_streams as usize,
        config.max_handshakes,
    ];
    if limits.contains(&0) {
        let names = "max_connections, max_connections_per_peer, max_streams and max_handshakes";
        return refuse(format!("{names} must not be 0"));
    }
    Ok(())
}

//! Every size, count and time of the transport, with its reason.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::budget::Rate;

/// Which key exchanges a handshake may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyExchange {
    /// X25519MLKEM768 and nothing else: a recording of today's traffic stays closed to a quantum computer.
    #[default]
    PqOnly,
    /// X25519MLKEM768 first, X25519 and P-256 for peers that cannot.
    PqFirst,
}

/// How much of one class a peer may have outstanding: sent, and not yet released by the actor. The QUIC
/// windows follow from it: they have room for both classes together, so that a class whose actor does not
/// read never holds up the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditConfig {
    /// Bytes of whole messages. A message may cost three quarters of it at most.
    pub bytes: u64,
    /// Messages.
    pub messages: u64,
}

/// Settings of an endpoint. [`TransportConfig::default`] is right for a machine with a few cores and a job
/// of up to some hundred nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportConfig {
    /// The UDP address to bind; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Whether others may dial this node. One that only dials answers no newcomer, and does nothing for one.
    pub accepts: bool,
    /// Largest UDP payload, in bytes, 1,200 to 65,527. Discovery finds what the path carries, up to this.
    pub mtu: u16,
    /// A connection without any packet for this long is lost.
    pub idle_timeout: Duration,
    /// How often an idle connection proves itself alive; well below `idle_timeout`.
    pub keep_alive: Duration,
    /// Longest handshake, admission included.
    pub handshake_timeout: Duration,
    /// Longest wait for a peer to read or to grant credit; then it is cut off.
    pub stall_timeout: Duration,
    /// Bytes of kernel buffer asked for, each way.
    pub socket_buffer: usize,
    /// Bytes that a connection which was accepted may hold before its peer has said anything that holds up, whatever its credit:
    /// what is sent to a node that turns the sender away is not gathered first.
    pub unheard: u32,
    /// Credit granted to each peer for control messages.
    pub control_credit: CreditConfig,
    /// Credit granted to each peer for data messages.
    pub data_credit: CreditConfig,
    /// Most connections, in both directions together.
    pub max_connections: usize,
    /// Most connections that one peer may have opened to us: what it can hold of our memory is this times its credit.
    pub max_connections_per_peer: usize,
    /// Most streams that a peer may have open at once.
    pub max_streams: u32,
    /// Streams that one identity may open; what it opens faster is taken late.
    pub streams: Rate,
    /// Handshakes in progress from which on a newcomer must first prove its address (a Retry).
    pub retry_after: usize,
    /// Handshakes in progress from which on newcomers are ignored.
    pub max_handshakes: usize,
    /// Networks that newcomers may come from; empty for all. Nothing else is answered.
    pub allow: Vec<IpNet>,
    /// Handshakes that all addresses together may begin; those a node of the job came from before have as many again.
    pub handshakes: Rate,
    /// Handshakes that one address may begin (in IPv6, one /64). A failed one counts ninefold.
    pub handshakes_per_address: Rate,
    /// Connections that one identity may begin.
    pub handshakes_per_peer: Rate,
    /// Bytes that the application lets wait to be sent to one peer, beside what the windows hold.
    pub answers: u64,
    /// Bytes that all peers together may make this node hold, read and unread, by the credit they are granted: see
    /// [`TransportConfig::promise`].
    pub memory: u64,
    /// Which key exchanges are allowed.
    pub key_exchange: KeyExchange,
}

impl TransportConfig {
    /// Loopback carries 64 KiB datagrams and real jumbo networks 8,952 bytes; discovery finds out which.
    pub const DEFAULT_MTU: u16 = 65_000;
    /// Five missed keep-alives; a dead machine is noticed well within a minute.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
    /// See [`TransportConfig::DEFAULT_IDLE_TIMEOUT`].
    pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(3);
    /// Two round trips across the world and the arithmetic on a loaded machine.
    pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
    /// Longer than any step's computation, during which a worker may well not read.
    pub const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(60);
    /// A burst of 64 full batches; the usual default of 208 KiB drops packets.
    pub const DEFAULT_SOCKET_BUFFER: usize = 4 << 20;
    /// Many times a first word; less than a handshake costs.
    pub const DEFAULT_UNHEARD: u32 = 64 << 10;
    /// A thousand heartbeats with room for a membership list of a large job.
    pub const DEFAULT_CONTROL_CREDIT: CreditConfig = CreditConfig { bytes: 4 << 20, messages: 1024 };
    /// Thirty slices of 1 MiB: enough to keep both ends busy, a bound on what a slow server holds per worker.
    pub const DEFAULT_DATA_CREDIT: CreditConfig = CreditConfig { bytes: 32 << 20, messages: 4096 };
    /// One that lives, one that a restarted peer opens before the former has timed out, and as many again to spare.
    pub const DEFAULT_MAX_CONNECTIONS_PER_PEER: usize = 4;
    /// Twice the largest job that one scheduler is meant for.
    pub const DEFAULT_MAX_CONNECTIONS: usize = 1024;
    /// A few lanes per class with room for requests of their own.
    pub const DEFAULT_MAX_STREAMS: u32 = 256;
    /// A few lanes for each connection that an identity may have, with room for requests of their own.
    pub const DEFAULT_STREAMS: Rate = Rate { per_second: 64, burst: 1024 };
    /// A cluster that starts at once stays below it; a flood does not.
    pub const DEFAULT_RETRY_AFTER: usize = 16;
    /// Each costs some 100 KiB and 0.2 ms of CPU.
    pub const DEFAULT_MAX_HANDSHAKES: usize = 256;
    /// The largest job may start at once; from then on, handshakes take a few hundredths of one core.
    pub const DEFAULT_HANDSHAKES: Rate = Rate { per_second: 32, burst: 1024 };
    /// The largest job may start at once from behind one address, and goes on restarting nodes.
    pub const DEFAULT_HANDSHAKES_PER_ADDRESS: Rate = Rate { per_second: 8, burst: 1024 };
    /// A node connects once, and again when it was cut off: far less often than this.
    pub const DEFAULT_HANDSHAKES_PER_PEER: Rate = Rate { per_second: 2, burst: 32 };
    /// A hundred peers with the credit above.
    pub const DEFAULT_MEMORY: u64 = 8 << 30;

    /// A connection itself: its keys, its streams and their tasks, the little that comes before credit, and small answers.
    pub const CONNECTION: u64 = 256 << 10;

    /// Bytes that one connection may occupy: both classes' credit for what comes, as much for what goes and is not read, the
    /// answers that wait, and what a connection takes by itself.
    #[must_use]
    pub fn promise(&self) -> u64 {
        let windows = self.control_credit.bytes.saturating_add(self.data_credit.bytes).saturating_mul(2);
        windows.saturating_add(self.answers).saturating_add(Self::CONNECTION)
    }
}

impl Default for TransportConfig {
    fn default() -> Self {
        TransportConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            accepts: true,
            mtu: Self::DEFAULT_MTU,
            idle_timeout: Self::DEFAULT_IDLE_TIMEOUT,
            keep_alive: Self::DEFAULT_KEEP_ALIVE,
            handshake_timeout: Self::DEFAULT_HANDSHAKE_TIMEOUT,
            stall_timeout: Self::DEFAULT_STALL_TIMEOUT,
            socket_buffer: Self::DEFAULT_SOCKET_BUFFER,
            unheard: Self::DEFAULT_UNHEARD,
            control_credit: Self::DEFAULT_CONTROL_CREDIT,
            data_credit: Self::DEFAULT_DATA_CREDIT,
            max_connections: Self::DEFAULT_MAX_CONNECTIONS,
            max_connections_per_peer: Self::DEFAULT_MAX_CONNECTIONS_PER_PEER,
            max_streams: Self::DEFAULT_MAX_STREAMS,
            streams: Self::DEFAULT_STREAMS,
            retry_after: Self::DEFAULT_RETRY_AFTER,
            max_handshakes: Self::DEFAULT_MAX_HANDSHAKES,
            allow: Vec::new(),
            handshakes: Self::DEFAULT_HANDSHAKES,
            handshakes_per_address: Self::DEFAULT_HANDSHAKES_PER_ADDRESS,
            handshakes_per_peer: Self::DEFAULT_HANDSHAKES_PER_PEER,
            answers: 0,
            memory: Self::DEFAULT_MEMORY,
            key_exchange: KeyExchange::default(),
        }
    }
}

//! Connections inside one process: the same [`Connection`], [`Sender`](crate::Sender) and
//! [`Receiver`](crate::Receiver), over queues.
//!
//! A secured pair runs the whole session (keys, MACs, sequence numbers, framing) over the queues, which is
//! what tests and simulations want. An unsecured pair moves whole messages, for actors that share a process
//! and so share every secret anyway; policy, limits, envelopes and credit are enforced all the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::config::{CreditConfig, TransportConfig};
use crate::connection::{Connection, Link, Paced, Setup};
use crate::identity::SpiffeId;
use crate::message::Envelope;
use crate::policy::Policy;
use crate::refusals::Refusals;
use crate::session::{ConnectionSecret, Direction, Prelude};

mod stream;

pub(crate) use stream::{Rx, Tx};

/// How a pair of connections behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Whether to run the whole session, MACs included.
    pub secured: bool,
    /// The secret of a secured pair, as the TLS exporter would give it. Nothing outside this process ever
    /// sees what it protects.
    pub secret: [u8; 32],
    /// Credit that each end grants for control messages.
    pub control_credit: CreditConfig,
    /// Credit that each end grants for data messages.
    pub data_credit: CreditConfig,
    /// As [`TransportConfig::stall_timeout`].
    pub stall_timeout: Duration,
    /// Most streams that a peer may have opened and not had accepted.
    pub max_streams: u32,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        MemoryOptions {
            secured: false,
            secret: [0; 32],
            control_credit: TransportConfig::DEFAULT_CONTROL_CREDIT,
            data_credit: TransportConfig::DEFAULT_DATA_CREDIT,
            stall_timeout: TransportConfig::DEFAULT_STALL_TIMEOUT,
            max_streams: TransportConfig::DEFAULT_MAX_STREAMS,
        }
    }
}

/// Connects two nodes of this process; the first connection returned is `a`'s, the initiator. Must be called
/// within a tokio runtime, which runs the task beside each connection.
pub fn pair(
    a: &SpiffeId,
    b: &SpiffeId,
    policy: Arc<Policy>,
    options: MemoryOptions,
) -> (Connection, Connection) {
    let (left, right) = ends(options.max_streams);
    let start = |local: &SpiffeId, peer: &SpiffeId, end: End, direction: Direction| {
        let setup = Setup {
            local: local.clone(),
            peer: peer.clone(),
            certificate: None,
            policy: Arc::clone(&policy),
            link: Link::Memory(end),
            secret: options.secured.then(|| ConnectionSecret::new(options.secret)),
            direction,
            control_credit: options.control_credit,
            data_credit: options.data_credit,
            stall_timeout: options.stall_timeout,
            held: Arc::default(),
            on_fault: None,
            refusals: Refusals::default(),
            traffic: Arc::default(),
            pace: Arc::new(Paced::new(TransportConfig::DEFAULT_STREAMS)),
            renewal: None,
        };
        Connection::start(setup, ())
    };
    (start(a, b, left, Direction::FromInitiator), start(b, a, right, Direction::FromAcceptor))
}

/// A message on a link without MACs.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) prelude: Prelude,
    pub(crate) envelope: Envelope,
    pub(crate) body: Vec<u8>,
    pub(crate) payload: Bytes,
    pub(crate) payload_hash: [u8; 32],
}

/// One end of a link in memory.
#[derive(Debug)]
pub(crate) struct End {
    side: Side,
    closing: Arc<watch::Sender<Option<Closing>>>,
    // Held while an id is given out and queued, so that streams arrive in the order of their ids.
    opened: tokio::sync::Mutex<u64>,
    to_peer: mpsc::Sender<(Tx, Rx)>,
    from_peer: tokio::sync::Mutex<mpsc::Receiver<(Tx, Rx)>>,
    credit: Mutex<(Option<Tx>, Option<Rx>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Initiator,
    Acceptor,
}

#[derive(Debug, Clone)]
pub(crate) struct Closing {
    by: Side,
    code: u32,
    reason: Arc<str>,
}

fn ends(max_streams: u32) -> (End, End) {
    let capacity = usize::try_from(max_streams.max(1)).unwrap_or(usize::MAX).min(1 << 16);
    let closing = Arc::new(watch::channel(None).0);
    let (to_right, from_left) = mpsc::channel(capacity);
    let (to_left, from_right) = mpsc::channel(capacity);
    // QUIC's numbers of the first unidirectional stream of each side (RFC 9000, section 2.1).
    let (left_tx, right_rx) = stream::channel(2, &closing, Side::Initiator);
    let (right_tx, left_rx) = stream::channel(3, &closing, Side::Acceptor);
    let end = |side, to_peer, from_peer, tx, rx| End {
        side,
        closing: Arc::clone(&closing),
        opened: tokio::sync::Mutex::new(0),
        to_peer,
        from_peer: tokio::sync::Mutex::new(from_peer),
        credit: Mutex::new((Some(tx), Some(rx))),
    };
    let left = end(Side::Initiator, to_right, from_right, left_tx, left_rx);
    (left, end(Side::Acceptor, to_left, from_left, right_tx, right_rx))
}

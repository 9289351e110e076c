//! Messages as actors see them.

use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::identity::{Address, Role};
use crate::payload::Payload;

/// A W3C trace context: trace id 16 bytes, parent id 8, flags 1. Opaque here.
pub type Traceparent = [u8; 25];

/// What every header starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The actor that sent it; its node is always the connection's authenticated peer.
    pub from: Address,
    /// The actor that it is for; its node is always this one.
    pub to: Address,
    /// The sender's number for the exchange, which a reply repeats. Its meaning is the actors'.
    pub request: u64,
    /// The trace that the sender was in.
    pub traceparent: Option<Traceparent>,
}

/// A message to send. On the wire its header is `postcard(Envelope) ++ body`.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The kind, as the policy numbers it.
    pub kind: u8,
    /// See [`Envelope::request`].
    pub request: u64,
    /// See [`Envelope::traceparent`].
    pub traceparent: Option<Traceparent>,
    /// Which of this node's actors speaks; only a peer has parts, and a peer must name one.
    pub from_part: Option<Role>,
    /// Which of the other node's actors is meant; only a peer has parts, and a peer's must be named.
    pub to_part: Option<Role>,
    /// The kind's own fields, encoded by [`crate::encode`].
    pub body: Vec<u8>,
    /// Raw bytes, sent without a copy.
    pub payload: Bytes,
    /// BLAKE3 of `payload`, when it is known already: one slice that goes to many readers is hashed once.
    /// A wrong hash makes the receiver cut this connection.
    pub payload_hash: Option<[u8; 32]>,
}

impl Outgoing {
    /// A message without payload.
    pub fn new(kind: u8, request: u64, body: Vec<u8>) -> Self {
        Outgoing { kind, request, body, ..Outgoing::default() }
    }

    /// The same message with a payload.
    pub fn with_payload(self, payload: impl Into<Bytes>) -> Self {
        Outgoing { payload: payload.into(), payload_hash: None, ..self }
    }

    /// The same message in a trace.
    pub fn with_traceparent(self, traceparent: Option<Traceparent>) -> Self {
        Outgoing { traceparent, ..self }
    }

    /// The same message between parts of peers.
    pub fn between(self, from_part: Option<Role>, to_part: Option<Role>) -> Self {
        Outgoing { from_part, to_part, ..self }
    }
}

/// A message received: authenticated, allowed by the policy, and charged to its sender's credit until its
/// payload is dropped.
#[derive(Debug)]
pub struct Message {
    /// The kind, as the policy numbers it.
    pub kind: u8,
    /// Who says it to whom.
    pub envelope: Envelope,
    /// The kind's own fields; read them with [`crate::decode_canonical`].
    pub body: Vec<u8>,
    /// The payload, which holds the sender's credit while it lives.
    pub payload: Payload,
    /// BLAKE3 of the payload: one value for duplicate detection, signatures and the audit log.
    pub payload_hash: [u8; 32],
    /// When its first bytes were looked at, so that a trace can say how long it took to come and to be checked; `None` where it
    /// was there at once.
    pub began: Option<Instant>,
}

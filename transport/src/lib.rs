//! Mutually authenticated, MACed and bounded messages between named actors, over QUIC or in memory.
//!
//! What it promises:
//!
//! 1. A [`Connection`] exists only between two nodes that hold certificates of the same job's CA, and each
//!    knows the other's [`SpiffeId`] from that certificate alone.
//! 2. A [`Message`] that [`Receiver::recv`] yields was sent by that peer, on that stream, in that order: its
//!    MAC covers the sequence number, the prelude, the header and the hash of the payload.
//! 3. A message that the [`Policy`] does not allow that peer to send, or larger than the policy allows, is
//!    refused from its first 16 bytes, before anything is allocated for it.
//! 4. Memory held for a peer is bounded by the credit that it was granted and by the QUIC windows; nothing
//!    grows with what a peer merely announces.
//! 5. A peer that breaks the protocol, or does not read, costs itself its connection and nobody else's.
//!
//! What it leaves to others: what a message means, who may take part in a job at all (the job spec), when to
//! reconnect. It does not know what a gradient is.
//!
//! Layers, bottom up: [`identity`] and [`pki`] say who somebody is; [`policy`] says who may say what;
//! [`session`] is the pure state machine of frames, MACs and credit; [`Endpoint`], [`Connection`],
//! [`Sender`] and [`Receiver`] are the thin asynchronous shell; [`memory`] is the same shell without a
//! network.

pub mod bench;
pub mod budget;
pub mod codec;
pub mod config;
mod connection;
mod endpoint;
pub mod error;
pub mod identity;
pub mod join;
pub mod memory;
pub mod message;
pub mod payload;
pub mod pki;
pub mod policy;
mod promises;
pub mod refusals;
pub mod session;
mod subscriber;
mod tls;
mod traffic;

pub use budget::{Bucket, Rate};
pub use codec::{WireError, decode_canonical, encode};
pub use config::{CreditConfig, KeyExchange, TransportConfig};
pub use connection::{Connection, ConnectionStats, PathStats, Receiver, Sender};
pub use endpoint::{Account, BindError, ConnectError, Endpoint, EndpointStats, SieveStats};
pub use error::{CloseCode, Error, Fault, Misuse};
pub use identity::{Address, IdentityError, Role, RoleSet, SpiffeId};
pub use memory::MemoryOptions;
pub use message::{Envelope, Message, Outgoing};
pub use payload::Payload;
pub use pki::{CertificateInfo, Crl, Expected, Identity, JobCa, PkiError, Trust};
pub use policy::{Class, Policy, PolicyError, Rule, Violation};
pub use refusals::{Cause, Refusals, Refused, Who};
pub use session::Grants;
pub use traffic::TrafficStats;

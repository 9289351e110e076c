//! Joining by token: how a node that the operator does not reach by hand gets its first certificate.
//!
//! A process of the operator's own ([`serve`]), on the machine that has the CA, answers nodes that have a [`JoinToken`](crate::pki::JoinToken)
//! ([`join`]). It is no part of a cluster, and knows nothing of one.
//!
//! ```text
//! QUIC, TLS 1.3, ALPN testudo-join/1; the service shows the certificate of operator/enrolment and the CA's.
//! One stream, opened by the node:
//! node -> CA   postcard(Ask { secret, request, mac })                                      and the end
//! CA -> node   postcard(Answer::Granted { certificate } | Answer::Refused { why })         and the end
//! ```
//!
//! Invariants:
//!
//! 1. A node says nothing of its token before the other end has shown that it is the enrolment service of the CA whose hash
//!    stands in the token.
//! 2. What anybody can make the service hold or do is bounded: places and handshakes a second (in total and for each
//!    address, which must be proved), bytes, log lines, and the time until a question is there and answered.
//! 3. One exchange is one question and one answer; the key never leaves the node.
//! 4. A newcomer for whom there is no place is ignored: it asks again by itself, and may then find one.

mod client;
mod places;
mod rates;
mod server;

use serde::{Deserialize, Serialize};

use crate::identity::{IdentityError, Role, SpiffeId};
use crate::pki::{PkiError, TokenSecret};

pub use client::join;
pub use server::{Enrolment, JoinLimits, serve};

/// The application protocol.
pub(crate) const ALPN: &[u8] = b"testudo-join/1";
/// Most bytes of one message: a request has some 300, a certificate some 1,000, an identity up to 2,048.
const MAX_MESSAGE: usize = 16 * 1024;

/// What a node asks.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) secret: TokenSecret,
    pub(crate) request: Vec<u8>,
    pub(crate) mac: [u8; 32],
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Granted { certificate: String },
    Refused { why: String },
}

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Keys, certificates or files.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The service said no.
    #[error("the enrolment service refused: {0}")]
    Refused(String),
    /// Nobody answered, or somebody else.
    #[error("the enrolment service at {address}: {what}")]
    Unreachable {
        /// Where.
        address: std::net::SocketAddr,
        /// What happened.
        what: String,
    },
    /// A socket could not be had.
    #[error("{0}")]
    Local(String),
}

/// Who the enrolment service of a job is.
pub(crate) fn service(trust_domain: &str, job: &str) -> Result<SpiffeId, IdentityError> {
    SpiffeId::new(trust_domain, job, Role::Operator, "enrolment")
}

/// QUIC's settings of both ends: one stream, little memory, no patience.
fn quic() -> quinn::TransportConfig {
    let mut quic = quinn::TransportConfig::default();
    quic.max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .receive_window((MAX_MESSAGE as u32).into())
        .stream_receive_window((MAX_MESSAGE as u32).into())
        .send_window(MAX_MESSAGE as u64)
        .datagram_receive_buffer_size(None);
    quic
}

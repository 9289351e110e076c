//! What can go wrong on a connection, split by whose fault it is.

use std::sync::Arc;

use crate::codec::WireError;
use crate::identity::SpiffeId;
use crate::pki::PkiError;
use crate::policy::{Class, Violation};
use crate::refusals::Cause;
use crate::session::{Overrun, PreludeError};

/// Why an operation on a connection failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer broke the protocol, or does not read. The connection is closed with [`Fault::code`].
    #[error("{peer} is at fault: {fault}; its connection is closed")]
    Peer {
        /// Who.
        peer: SpiffeId,
        /// What it did.
        fault: Fault,
    },
    /// The connection was closed on purpose, by either side.
    #[error("connection with {peer} closed by {}: code {code}, {reason:?}", if *.by_peer { "it" } else { "us" })]
    Closed {
        /// The other node.
        peer: SpiffeId,
        /// Whether the peer closed it.
        by_peer: bool,
        /// The application's or the transport's code: see [`CloseCode`].
        code: u32,
        /// The reason given, in words.
        reason: Arc<str>,
    },
    /// The connection was lost: the network, the peer's process or its machine is gone.
    #[error("connection with {peer} lost: {what}")]
    Lost {
        /// The other node.
        peer: SpiffeId,
        /// What the network layer says.
        what: Arc<str>,
    },
    /// This node asked for something that it may not; the connection goes on.
    #[error("message to {peer} not sent: {misuse}")]
    Misuse {
        /// The other node.
        peer: SpiffeId,
        /// What was wrong.
        misuse: Misuse,
    },
}

impl Error {
    /// The other node.
    pub fn peer(&self) -> &SpiffeId {
        match self {
            Error::Peer { peer, .. }
            | Error::Closed { peer, .. }
            | Error::Lost { peer, .. }
            | Error::Misuse { peer, .. } => peer,
        }
    }
}

/// What a peer did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message of another version, or with flags.
    #[error(transparent)]
    Prelude(#[from] PreludeError),
    /// A message that the policy does not allow.
    #[error(transparent)]
    Policy(#[from] Violation),
    /// More than it was granted.
    #[error(transparent)]
    Credit(#[from] Overrun),
    /// Messages of two classes on one stream.
    #[error("a {found} message on a {expected} stream")]
    MixedClasses {
        /// The class of the stream's first message.
        expected: Class,
        /// The class of this one.
        found: Class,
    },
    /// A message whose MAC does not verify: changed, replayed, reordered, or from another stream.
    #[error("message {sequence} of its stream fails its MAC")]
    Mac {
        /// The sequence number expected.
        sequence: u64,
    },
    /// A header that does not decode, or not canonically.
    #[error("header: {0}")]
    Header(#[from] WireError),
    /// An envelope from somebody else.
    #[error("message that claims to come from {claimed}")]
    From {
        /// The sender named.
        claimed: String,
    },
    /// An envelope for somebody else.
    #[error("message for {claimed}, which is not this node")]
    To {
        /// The receiver named.
        claimed: String,
    },
    /// A stream that ended inside a message.
    #[error("stream ended inside a message")]
    Truncated,
    /// A stream that was reset or stopped, which leaves the credit account open.
    #[error("stream abandoned with code {0}")]
    Abandoned(u64),
    /// The stream that carries credit was misused.
    #[error("credit stream: {0}")]
    CreditStream(&'static str),
    /// A renewed certificate that is none.
    #[error("renewed certificate: {0}")]
    Renewal(PkiError),
    /// A message too large for this machine's address space.
    #[error("message of {bytes} bytes does not fit this machine's address space")]
    TooLargeHere {
        /// Bytes announced.
        bytes: u64,
    },
    /// What only the application can judge: see [`Connection::blame`](crate::Connection::blame).
    #[error("{what}")]
    Application {
        /// What the refusal is counted as.
        cause: Cause,
        /// The code that the connection is closed with.
        code: CloseCode,
        /// What it did.
        what: Arc<str>,
    },
    /// It did not read, or not grant, for too long.
    #[error("{what} for {milliseconds} ms")]
    Stalled {
        /// What it did not do.
        what: &'static str,
        /// How long we waited.
        milliseconds: u64,
    },
}

impl Fault {
    /// The code that the connection is closed with.
    pub fn code(&self) -> CloseCode {
        match self {
            Fault::Prelude(_) | Fault::Header(_) | Fault::Truncated | Fault::Abandoned(_) => {
                CloseCode::Framing
            }
            Fault::Policy(_) | Fault::MixedClasses { .. } | Fault::TooLargeHere { .. } => CloseCode::Policy,
            Fault::From { .. } | Fault::To { .. } => CloseCode::Identity,
            Fault::Credit(_) | Fault::CreditStream(_) => CloseCode::Credit,
            Fault::Mac { .. } => CloseCode::Mac,
            Fault::Renewal(_) => CloseCode::Untrusted,
            Fault::Stalled { .. } => CloseCode::Stalled,
            Fault::Application { code, .. } => *code,
        }
    }
}

/// Codes with which this crate closes connections; applications number theirs from
/// [`CloseCode::FIRST_APPLICATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CloseCode {
    /// The last handle was dropped, or the node is done.
    Done = 0,
    /// Not admitted: too many connections.
    Busy = 1,
    /// Bytes that are not messages.
    Framing = 2,
    /// A message that the policy does not allow.
    Policy = 3,
    /// A message that names somebody else.
    Identity = 4,
    /// More than was granted.
    Credit = 5,
    /// A MAC that does not verify.
    Mac = 6,
    /// No progress for too long.
    Stalled = 7,
    /// A node that was not let in: wrong certificate, job or identity.
    Admission = 8,
    /// A node whose certificate was revoked, or of whom nobody can tell.
    Untrusted = 9,
}

impl CloseCode {
    /// The first code that is the application's.
    pub const FIRST_APPLICATION: u32 = 256;

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// What this node may not ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The policy does not allow it.
    #[error(transparent)]
    Policy(#[from] Violation),
    /// The stream carries the other class.
    #[error("a {found} message on a {expected} stream; open a stream of that class")]
    MixedClasses {
        /// The stream's class.
        expected: Class,
        /// The message's class.
        found: Class,
    },
    /// The message can never get credit.
    #[error(
        "message of {bytes} bytes; this peer grants at most {limit} bytes at once (three quarters of its window)"
    )]
    TooLarge {
        /// What the message costs.
        bytes: u64,
        /// The most it may cost.
        limit: u64,
    },
    /// A part that this node or the peer does not have.
    #[error("{0} has no such part; only peers have parts, `server` and `worker`")]
    Part(String),
    /// The sender was finished before.
    #[error("the stream was finished before")]
    Finished,
}

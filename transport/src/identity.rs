//! Who somebody is: roles, SPIFFE IDs, and the addresses of actors inside a process.
//!
//! Invariants:
//!
//! 1. A [`SpiffeId`] has exactly one spelling: what [`SpiffeId::parse`] accepts, it prints back unchanged.
//! 2. No percent escape, dot segment, empty segment, port, query or fragment is ever accepted.
//! 3. Only a peer's [`Address`] has a part, and the part is `server` or `worker`.
//!
//! Source: SPIFFE-ID specification, <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>.

mod address;
mod role;
mod spiffe;

pub use address::Address;
pub use role::{Role, RoleSet};
pub use spiffe::SpiffeId;

/// Refuses a trust domain or job name that no identity could have.
pub(crate) fn check_scope(trust_domain: &str, job: &str) -> Result<(), IdentityError> {
    spiffe::check_trust_domain(trust_domain)?;
    spiffe::check_job(job)
}

/// Why a name is not an identity of this system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is longer than any identity may be.
    #[error("identity of {found} bytes; at most {limit} are allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not of the form `spiffe://<trust-domain>/job/<job>/<role>/<name>`.
    #[error(
        "`{0}` is not an identity; expected spiffe://<trust-domain>/job/<job>/<role>/<name>, without \
         escapes, empty or dot segments"
    )]
    Malformed(String),
    /// The trust domain has characters that it may not have.
    #[error("`{0}` is not a trust domain; it takes lowercase letters, digits, `.`, `-` and `_`, at most 255")]
    TrustDomain(String),
    /// The job's name has characters that it may not have.
    #[error("`{0}` is not a job name; it takes letters, digits, `.`, `-` and `_`, at most 128")]
    Job(String),
    /// No such role.
    #[error("`{0}` is not a role; the roles are scheduler, server, worker, peer, operator, actor")]
    Role(String),
    /// The name within the role is wrong.
    #[error(
        "`{name}` does not name a {role}; schedulers, servers, workers and peers are numbered from 0 without \
         leading zeros, operators and actors are named by letters, digits, `.`, `-` and `_`, at most 64"
    )]
    Name {
        /// The role.
        role: Role,
        /// What was given.
        name: String,
    },
    /// The part after `#` is not one that this identity has.
    #[error("`{0}` has no such part; only a peer has parts, and they are `#server` and `#worker`")]
    Part(String),
}

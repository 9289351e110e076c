//! Who takes part: members by role and index, as messages name them.

use serde::{Deserialize, Serialize};
use testudo_transport::Role;

/// A server and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMember {
    /// Its index.
    pub index: u32,
    /// Where workers dial it, `host:port`.
    pub address: String,
}

/// A worker and its live incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerMember {
    /// Its index.
    pub index: u32,
    /// Counts the times that this identity has joined, from 1.
    pub incarnation: u64,
    /// What that incarnation committed itself to when it joined.
    pub commitment: [u8; 32],
    /// The version that it begins with, if it has none yet.
    pub start: u64,
}

/// The roles that take part in training beside the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MemberRole {
    /// Keeps parameters.
    Server,
    /// Computes gradients.
    Worker,
}

impl MemberRole {
    /// The role in identities.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            MemberRole::Server => Role::Server,
            MemberRole::Worker => Role::Worker,
        }
    }
}

/// A member of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    /// What it is.
    pub role: MemberRole,
    /// Which one.
    pub index: u32,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.role.role(), self.index)
    }
}

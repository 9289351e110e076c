//! The roles that a node, or an actor inside one, may have.

use std::fmt;
use std::str::FromStr;

use super::IdentityError;

/// What an identity may be in a job. The set is closed: policy tables are written over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Leases work, keeps membership, decides when the job ends.
    Scheduler,
    /// Holds parameters.
    Server,
    /// Computes gradients.
    Worker,
    /// One server and one worker in one process; it may say what either may.
    Peer,
    /// The person, or the command, that runs the job.
    Operator,
    /// An actor of the user's own.
    Actor,
}

impl Role {
    /// All roles, in the order of their discriminants.
    pub const ALL: [Role; 6] =
        [Role::Scheduler, Role::Server, Role::Worker, Role::Peer, Role::Operator, Role::Actor];

    /// The role's word in identities, configuration and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Scheduler => "scheduler",
            Role::Server => "server",
            Role::Worker => "worker",
            Role::Peer => "peer",
            Role::Operator => "operator",
            Role::Actor => "actor",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| IdentityError::Role(text.to_owned()))
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RoleSet(u8);

impl RoleSet {
    /// The set of the given roles.
    pub const fn of(roles: &[Role]) -> RoleSet {
        let (mut bits, mut rest) = (0, roles);
        while let [first, tail @ ..] = rest {
            bits |= first.bit();
            rest = tail;
        }
        RoleSet(bits)
    }

    /// Whether `role` itself is in the set.
    pub const fn contains(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// Whether a node of that role may stand for a member of the set: itself, or, for a peer, the server or
    /// the worker that it holds.
    pub const fn admits(self, role: Role) -> bool {
        match role {
            Role::Peer => {
                self.contains(Role::Peer) || self.contains(Role::Server) || self.contains(Role::Worker)
            }
            other => self.contains(other),
        }
    }

    /// Whether the set has no role.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Role::ALL.into_iter().filter(|role| self.contains(*role))).finish()
    }
}

impl fmt::Display for RoleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Role::ALL.into_iter().filter(|role| self.contains(*role)).map(Role::as_str).collect();
        f.write_str(&names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_reads_back_from_its_own_word() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>(), Ok(role));
        }
        for wrong in ["Worker", "worker ", "", "root", "peer#worker"] {
            assert_eq!(wrong.parse::<Role>(), Err(IdentityError::Role(wrong.to_owned())));
        }
    }

    #[test]
    fn a_peer_stands_for_server_and_worker_and_nothing_else_does() {
        let servers = RoleSet::of(&[Role::Server]);
        assert!(servers.admits(Role::Server) && servers.admits(Role::Peer));
        assert!(!servers.admits(Role::Worker) && !servers.contains(Role::Peer));
        assert!(!RoleSet::of(&[Role::Scheduler, Role::Operator, Role::Actor]).admits(Role::Peer));
        assert!(!RoleSet::of(&[Role::Peer]).admits(Role::Worker));
    }

    #[test]
    fn a_set_holds_exactly_what_it_was_given() {
        let set = RoleSet::of(&[Role::Worker, Role::Actor]);
        let held: Vec<Role> = Role::ALL.into_iter().filter(|role| set.contains(*role)).collect();
        assert_eq!(held, [Role::Worker, Role::Actor]);
        assert_eq!(set.to_string(), "worker, actor");
        assert!(RoleSet::of(&[]).is_empty());
    }
}

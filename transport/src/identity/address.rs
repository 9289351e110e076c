//! An actor's address: the node that it lives in, and for a peer, which of its two actors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::spiffe::TextVisitor;
use super::{IdentityError, Role, SpiffeId};

/// Where a message comes from or goes to: `spiffe://…/peer/3#worker`, or an identity alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The node.
    pub id: SpiffeId,
    /// For a peer: its server or its worker. `None` for every other role.
    pub part: Option<Role>,
}

impl Address {
    /// The address of `part` of `id`.
    ///
    /// # Errors
    /// [`IdentityError::Part`] unless `part` is none, or `id` is a peer and `part` server or worker.
    pub fn new(id: SpiffeId, part: Option<Role>) -> Result<Self, IdentityError> {
        let address = Address { id, part };
        if address.is_valid() { Ok(address) } else { Err(IdentityError::Part(address.to_string())) }
    }

    /// Reads `<identity>` or `<peer identity>#<part>`.
    ///
    /// # Errors
    /// [`IdentityError`] as for [`SpiffeId::parse`] and [`Address::new`].
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        match text.split_once('#') {
            None => Address::new(SpiffeId::parse(text)?, None),
            Some((id, part)) => Address::new(SpiffeId::parse(id)?, Some(part.parse()?)),
        }
    }

    /// The role in which this actor speaks: the part for a peer that names one, the node's own otherwise.
    pub fn role(&self) -> Role {
        self.part.unwrap_or(self.id.role())
    }

    /// Whether the part is one that the node has (the fields are public, so this can be false).
    pub fn is_valid(&self) -> bool {
        match self.part {
            None => true,
            Some(Role::Server | Role::Worker) => self.id.role() == Role::Peer,
            Some(_) => false,
        }
    }
}

impl From<SpiffeId> for Address {
    fn from(id: SpiffeId) -> Self {
        Address { id, part: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            None => write!(f, "{}", self.id),
            Some(part) => write!(f, "{}#{part}", self.id),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Address::parse(text)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(Address::parse))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(role: Role) -> SpiffeId {
        SpiffeId::new("t", "j", role, "3").unwrap()
    }

    #[test]
    fn reads_back_with_and_without_a_part() {
        for address in [
            Address::from(id(Role::Worker)),
            Address::from(id(Role::Peer)),
            Address::new(id(Role::Peer), Some(Role::Worker)).unwrap(),
            Address::new(id(Role::Peer), Some(Role::Server)).unwrap(),
        ] {
            assert_eq!(address.to_string().parse(), Ok(address.clone()));
            let bytes = postcard::to_allocvec(&address).unwrap();
            assert_eq!(postcard::from_bytes::<Address>(&bytes).unwrap(), address);
        }
    }

    /// Invariant 3.
    #[test]
    fn only_a_peer_has_parts() {
        for text in [
            "spiffe://t/job/j/worker/3#worker",
            "spiffe://t/job/j/server/3#server",
            "spiffe://t/job/j/peer/3#peer",
            "spiffe://t/job/j/peer/3#scheduler",
            "spiffe://t/job/j/peer/3#operator",
            "spiffe://t/job/j/peer/3#",
            "spiffe://t/job/j/peer/3#Worker",
            "spiffe://t/job/j/peer/3#worker#server",
            "spiffe://t/job/j/peer/3#worker/",
        ] {
            assert!(Address::parse(text).is_err(), "accepted {text}");
        }
    }

    #[test]
    fn the_part_decides_the_role() {
        assert_eq!(Address::new(id(Role::Peer), Some(Role::Worker)).unwrap().role(), Role::Worker);
        assert_eq!(Address::from(id(Role::Peer)).role(), Role::Peer);
        assert_eq!(Address::from(id(Role::Server)).role(), Role::Server);
    }
}

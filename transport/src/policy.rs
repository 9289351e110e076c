//! Who may say what to whom, and how much of it: a table that the actors' crate writes and the transport
//! enforces from a message's first 16 bytes.
//!
//! Invariants:
//!
//! 1. A kind that is not in the table is refused; kinds 0 and 60 are the transport's own and never in the table.
//! 2. A refusal depends on nothing that the peer wrote but the kind and the two lengths.
//! 3. A peer node may say what a server or a worker may; once its header is read, the part that it speaks
//!    for must itself be allowed.

use crate::budget::Rate;
use crate::identity::{Address, Role, RoleSet, SpiffeId};
use crate::session::{CREDIT_KIND, RENEWAL_KIND};

/// The lanes that messages travel in. Each has credit of its own, and control goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Small messages that must not wait behind tensors: heartbeats, leases, membership.
    Control,
    /// Tensors.
    Data,
}

impl Class {
    /// Both classes.
    pub const ALL: [Class; 2] = [Class::Control, Class::Data];
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Class::Control => "control",
            Class::Data => "data",
        })
    }
}

/// One row of the table: a kind of message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The kind's number on the wire, 1 to 255.
    pub kind: u8,
    /// The kind's name, for logs and errors.
    pub name: &'static str,
    /// Roles that may send it.
    pub from: RoleSet,
    /// Roles that it may be sent to.
    pub to: RoleSet,
    /// Its lane.
    pub class: Class,
    /// Most bytes of header, the envelope (two addresses, about 150 bytes) included.
    pub max_header: u32,
    /// Most bytes of payload.
    pub max_payload: u64,
    /// How often one peer needs to say it: what comes faster is heard late. None where progress sets the pace, not time.
    pub rate: Option<Rate>,
}

/// Why a table is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Kinds 0 and 60 carry the transport's credit and renewed certificates.
    #[error("rule `{0}` has kind 0 or 60, which are the transport's own; give it another")]
    Reserved(&'static str),
    /// Two rules have one kind.
    #[error("rules `{0}` and `{1}` both have kind {2}")]
    Duplicate(&'static str, &'static str, u8),
    /// Nobody may send it, or nobody may receive it.
    #[error("rule `{0}` has no sender or no receiver")]
    Nobody(&'static str),
    /// No envelope fits.
    #[error("rule `{name}` allows {found} bytes of header; an envelope alone may take {least}")]
    HeaderTooSmall {
        /// The rule.
        name: &'static str,
        /// Its limit.
        found: u32,
        /// The least that a limit may be.
        least: u32,
    },
}

/// Why a message may not be sent or taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No rule has this kind.
    #[error("message kind {0} is not in the policy")]
    UnknownKind(u8),
    /// The sender's role may not send it.
    #[error("{from} may not send `{name}`; only {allowed} may")]
    From {
        /// Who sent it.
        from: String,
        /// The rule.
        name: &'static str,
        /// Who may.
        allowed: RoleSet,
    },
    /// The receiver's role may not be sent it.
    #[error("`{name}` may not be sent to {to}; only to {allowed}")]
    To {
        /// Whom it was sent to.
        to: String,
        /// The rule.
        name: &'static str,
        /// To whom it may be.
        allowed: RoleSet,
    },
    /// The header is too long.
    #[error("`{name}` with {found} bytes of header; at most {limit} are allowed")]
    Header {
        /// The rule.
        name: &'static str,
        /// Bytes announced.
        found: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// The payload is too long.
    #[error("`{name}` with {found} bytes of payload; at most {limit} are allowed")]
    Payload {
        /// The rule.
        name: &'static str,
        /// Bytes announced.
        found: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// The least header limit a rule may state: two of the longest usual addresses, request and traceparent.
pub const MIN_HEADER_LIMIT: u32 = 256;

/// The whole table, by kind.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    by_kind: Box<[Option<usize>; 256]>,
}

impl Policy {
    /// Builds the table.
    ///
    /// # Errors
    /// [`PolicyError`] when kinds collide or a rule allows nothing.
    pub fn new(rules: Vec<Rule>) -> Result<Policy, PolicyError> {
        let mut by_kind = Box::new([None; 256]);
        for (place, rule) in rules.iter().enumerate() {
            if [CREDIT_KIND, RENEWAL_KIND].contains(&rule.kind) {
                return Err(PolicyError::Reserved(rule.name));
            }
            if rule.from.is_empty() || rule.to.is_empty() {
                return Err(PolicyError::Nobody(rule.name));
            }
            if rule.max_header < MIN_HEADER_LIMIT {
                let (name, found) = (rule.name, rule.max_header);
                return Err(PolicyError::HeaderTooSmall { name, found, least: MIN_HEADER_LIMIT });
            }
            if let Some(slot) = by_kind.get_mut(usize::from(rule.kind)) {
                if let Some(other) = slot.and_then(|other: usize| rules.get(other)) {
                    return Err(PolicyError::Duplicate(other.name, rule.name, rule.kind));
                }
                *slot = Some(place);
            }
        }
        Ok(Policy { rules, by_kind })
    }

    /// Whether `from` may send `to` a message of this kind and these lengths.
    ///
    /// # Errors
    /// The [`Violation`], naming the rule.
    pub fn check(
        &self,
        kind: u8,
        from: &SpiffeId,
        to: &SpiffeId,
        header_len: u32,
        payload_len: u64,
    ) -> Result<&Rule, Violation> {
        let rule = self.rule(kind).ok_or(Violation::UnknownKind(kind))?;
        let name = rule.name;
        if !rule.from.admits(from.role()) {
            return Err(Violation::From { from: from.short().to_owned(), name, allowed: rule.from });
        }
        if !rule.to.admits(to.role()) {
            return Err(Violation::To { to: to.short().to_owned(), name, allowed: rule.to });
        }
        if header_len > rule.max_header {
            return Err(Violation::Header { name, found: header_len, limit: rule.max_header });
        }
        if payload_len > rule.max_payload {
            return Err(Violation::Payload { name, found: payload_len, limit: rule.max_payload });
        }
        Ok(rule)
    }

    /// Whether the actors that a header names may exchange this kind: for peers, the part decides.
    ///
    /// # Errors
    /// The [`Violation`], naming the rule.
    pub fn check_actors(&self, kind: u8, from: &Address, to: &Address) -> Result<(), Violation> {
        let rule = self.rule(kind).ok_or(Violation::UnknownKind(kind))?;
        let name = rule.name;
        if !rule.from.contains(from.role()) {
            return Err(Violation::From { from: describe(from), name, allowed: rule.from });
        }
        if !rule.to.contains(to.role()) {
            return Err(Violation::To { to: describe(to), name, allowed: rule.to });
        }
        Ok(())
    }

    /// The rule of a kind.
    pub fn rule(&self, kind: u8) -> Option<&Rule> {
        let place = self.by_kind.get(usize::from(kind)).copied().flatten()?;
        self.rules.get(place)
    }

    /// All rules, in the order given.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The longest header and payload of a class together, in bytes; 0 when it has no rule.
    pub fn largest(&self, class: Class) -> u64 {
        let sizes = self.rules.iter().filter(|rule| rule.class == class);
        sizes.map(|rule| rule.max_payload.saturating_add(u64::from(rule.max_header))).max().unwrap_or(0)
    }
}

fn describe(address: &Address) -> String {
    match address.part {
        None if address.id.role() == Role::Peer => format!("{} without a part", address.id.short()),
        None => address.id.short().to_owned(),
        Some(part) => format!("{}#{part}", address.id.short()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: u8, from: &[Role], to: &[Role]) -> Rule {
        let (from, to) = (RoleSet::of(from), RoleSet::of(to));
        Rule {
            kind,
            name: "push",
            from,
            to,
            class: Class::Data,
            max_header: 256,
            max_payload: 1000,
            rate: None,
        }
    }

    fn id(role: Role) -> SpiffeId {
        SpiffeId::new("t", "j", role, "0").unwrap()
    }

    fn policy() -> Policy {
        Policy::new(vec![rule(7, &[Role::Worker], &[Role::Server])]).unwrap()
    }

    #[test]
    fn limits_are_inclusive() {
        let (policy, from, to) = (policy(), id(Role::Worker), id(Role::Server));
        assert_eq!(policy.check(7, &from, &to, 256, 1000).unwrap().kind, 7);
        assert!(matches!(policy.check(7, &from, &to, 257, 0), Err(Violation::Header { .. })));
        assert!(matches!(policy.check(7, &from, &to, 0, 1001), Err(Violation::Payload { .. })));
        assert!(matches!(policy.check(7, &from, &to, u32::MAX, u64::MAX), Err(Violation::Header { .. })));
        assert!(matches!(policy.check(7, &from, &to, 0, u64::MAX), Err(Violation::Payload { .. })));
    }

    /// Invariant 1.
    #[test]
    fn every_other_kind_is_unknown() {
        let (policy, from, to) = (policy(), id(Role::Worker), id(Role::Server));
        for kind in (0..=255).filter(|kind| *kind != 7) {
            assert_eq!(policy.check(kind, &from, &to, 0, 0), Err(Violation::UnknownKind(kind)));
        }
    }

    #[test]
    fn every_other_pair_of_roles_is_refused() {
        let policy = policy();
        for from in Role::ALL.map(id) {
            for to in Role::ALL.map(id) {
                let allowed = matches!(from.role(), Role::Worker | Role::Peer)
                    && matches!(to.role(), Role::Server | Role::Peer);
                assert_eq!(policy.check(7, &from, &to, 0, 0).is_ok(), allowed, "{from} to {to}");
            }
        }
    }

    /// Invariant 3.
    #[test]
    fn a_peers_part_must_itself_be_allowed() {
        let policy = policy();
        let peer = |part| Address { id: id(Role::Peer), part };
        let (worker, server) = (peer(Some(Role::Worker)), peer(Some(Role::Server)));
        assert_eq!(policy.check_actors(7, &worker, &server), Ok(()));
        assert!(matches!(policy.check_actors(7, &server, &server), Err(Violation::From { .. })));
        assert!(matches!(policy.check_actors(7, &worker, &worker), Err(Violation::To { .. })));
        assert!(matches!(policy.check_actors(7, &peer(None), &server), Err(Violation::From { .. })));
    }

    #[test]
    fn tables_that_allow_nothing_or_collide_are_refused() {
        let good = || rule(1, &[Role::Worker], &[Role::Server]);
        for kind in [CREDIT_KIND, RENEWAL_KIND] {
            assert!(matches!(Policy::new(vec![Rule { kind, ..good() }]), Err(PolicyError::Reserved(_))));
        }
        assert!(matches!(Policy::new(vec![good(), good()]), Err(PolicyError::Duplicate(_, _, 1))));
        assert!(matches!(Policy::new(vec![rule(1, &[], &[Role::Server])]), Err(PolicyError::Nobody(_))));
        let small = Rule { max_header: 255, ..good() };
        assert!(matches!(Policy::new(vec![small]), Err(PolicyError::HeaderTooSmall { .. })));
    }

    #[test]
    fn a_full_table_of_254_kinds_is_found_whole() {
        let kinds = || (1..=255).filter(|kind| *kind != RENEWAL_KIND);
        let rules = kinds().map(|kind| rule(kind, &[Role::Worker], &[Role::Server])).collect();
        let policy = Policy::new(rules).unwrap();
        for kind in kinds() {
            assert_eq!(policy.rule(kind).unwrap().kind, kind);
        }
        assert_eq!(policy.largest(Class::Data), 1256);
        assert_eq!(policy.largest(Class::Control), 0);
    }
}

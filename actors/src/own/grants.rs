//! Which message of one's own who may say to whom: rows of the authorization table, and names within roles.
//!
//! The table is the program's, as the types are; each end enforces its own. Who somebody is, the job's CA alone says.

use testudo_transport::{Class, Policy, PolicyError, Role, RoleSet, Rule, SpiffeId};

use super::message::{FIRST_KIND, LAST_KIND, MOST_BYTES, Message, TO_ANSWER};
use crate::audit;

/// Header bytes beside a body: two addresses, request and trace.
const ENVELOPE: u32 = 1 << 10;
/// Bytes of an answer's reason, where it is refused.
pub(super) const REASON: usize = 512;

/// Somebody who may say a message, or be told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Any node of that role.
    Role(Role),
    /// The actor of that name.
    Actor(String),
}

impl Who {
    /// The actor of that name.
    #[must_use]
    pub fn actor(name: &str) -> Who {
        Who::Actor(name.to_owned())
    }

    fn role(&self) -> Role {
        match self {
            Who::Role(role) => *role,
            Who::Actor(_) => Role::Actor,
        }
    }

    fn is(&self, id: &SpiffeId) -> bool {
        match self {
            Who::Role(role) => id.role() == *role,
            Who::Actor(name) => id.role() == Role::Actor && id.name() == name,
        }
    }
}

/// Why a row is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The kind is not one's own to give.
    #[error("`{0}` has kind {1}: messages of one's own have {FIRST_KIND} to {LAST_KIND}")]
    Kind(&'static str, u8),
    /// Two messages have one kind.
    #[error("`{0}` and `{1}` have one kind")]
    Twice(&'static str, &'static str),
    /// No limit, or one beyond what a message may have.
    #[error("`{0}` allows {1} bytes: 1 to {MOST_BYTES} are possible")]
    Size(&'static str, u32),
    /// Nobody may say it, or nobody may be told.
    #[error("`{0}` has nobody to say it, or nobody to be told")]
    Nobody(&'static str),
    /// It would be said to a node that is no actor of one's own, which hears none of it.
    #[error("`{name}` may be said to {role}: only actors of one's own hear messages of one's own")]
    ToMember {
        /// The message.
        name: &'static str,
        /// The role.
        role: Role,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    kind: u8,
    name: &'static str,
    class: Class,
    most: u32,
    most_answer: u32,
    from: Vec<Who>,
    to: Vec<Who>,
}

/// The rows for messages of one's own. What has none is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants(Vec<Grant>);

impl Grants {
    /// No rows.
    #[must_use]
    pub fn none() -> Grants {
        Grants::default()
    }

    /// With a row: any of `from` may say `M` to any of `to`, who may answer.
    ///
    /// # Errors
    /// [`GrantError`] when the row allows nothing, or what no row may.
    pub fn allow<M: Message>(mut self, from: &[Who], to: &[Who]) -> Result<Grants, GrantError> {
        let name = M::NAME;
        if !(FIRST_KIND..=LAST_KIND).contains(&M::KIND) {
            return Err(GrantError::Kind(name, M::KIND));
        }
        if let Some(other) = self.0.iter().find(|grant| grant.kind == M::KIND) {
            return Err(GrantError::Twice(other.name, name));
        }
        if let Some(size) =
            [M::MOST, M::MOST_ANSWER].into_iter().find(|size| !(1..=MOST_BYTES).contains(size))
        {
            return Err(GrantError::Size(name, size));
        }
        if from.is_empty() || to.is_empty() {
            return Err(GrantError::Nobody(name));
        }
        if let Some(role) = to.iter().map(Who::role).find(|role| *role != Role::Actor) {
            return Err(GrantError::ToMember { name, role });
        }
        self.0.push(Grant {
            kind: M::KIND,
            name,
            class: M::CLASS,
            most: M::MOST,
            most_answer: M::MOST_ANSWER,
            from: from.to_vec(),
            to: to.to_vec(),
        });
        Ok(self)
    }

    /// The rows as the transport enforces them, by roles and sizes: a message and its answer each.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let roles = |who: &[Who]| RoleSet::of(&who.iter().map(Who::role).collect::<Vec<_>>());
        let rows = self.0.iter().map(|grant| {
            let (from, to) = (roles(&grant.from), roles(&grant.to));
            let row = |kind, name, from, to, most: u32| Rule {
                kind,
                name,
                from,
                to,
                class: grant.class,
                max_header: most.saturating_add(ENVELOPE),
                max_payload: 0,
                rate: None,
            };
            let answer = grant.most_answer.saturating_add(REASON as u32);
            [
                row(grant.kind, grant.name, from, to, grant.most),
                row(grant.kind + TO_ANSWER, "answer of an actor", to, from, answer),
            ]
        });
        rows.flatten().collect()
    }

    /// A table of these rows alone: for a process that has actors of one's own and no node.
    ///
    /// # Errors
    /// [`PolicyError`]; rows were checked when they were stated, so that is a bug.
    pub fn policy(&self) -> Result<Policy, PolicyError> {
        Policy::new(self.rules())
    }

    /// Whether `from` may say that kind to `to`, names looked at.
    #[must_use]
    pub fn permits(&self, kind: u8, from: &SpiffeId, to: &SpiffeId) -> bool {
        let among = |who: &[Who], id: &SpiffeId| who.iter().any(|who| who.is(id));
        self.0.iter().any(|grant| grant.kind == kind && among(&grant.from, from) && among(&grant.to, to))
    }
}

/// Whether no actor of one's own may be called that: the audit log's key has a name of this kind.
#[must_use]
pub fn is_reserved(id: &SpiffeId) -> bool {
    id.role() == Role::Actor && id.name() == audit::KEY_NAME
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    macro_rules! message {
        ($name:ident, $kind:expr, $most:expr, $answer:expr) => {
            #[derive(Serialize, Deserialize)]
            struct $name;
            impl Message for $name {
                const KIND: u8 = $kind;
                const NAME: &'static str = stringify!($name);
                const MOST: u32 = $most;
                const MOST_ANSWER: u32 = $answer;
                type Answer = ();
            }
        };
    }
    message!(First, FIRST_KIND, 10, 20);
    message!(Last, LAST_KIND, MOST_BYTES, 1);
    message!(Same, LAST_KIND, 1, 1);
    message!(Push, 20, 1, 1);
    message!(Answers, LAST_KIND + TO_ANSWER, 1, 1);
    message!(Large, 130, MOST_BYTES + 1, 1);
    message!(Empty, 130, 1, 0);

    fn id(role: Role, name: &str) -> SpiffeId {
        SpiffeId::new("t", "j", role, name).unwrap()
    }

    /// Rows are given once, for kinds that are one's own, within limits, to actors alone.
    #[test]
    fn rows_that_no_program_may_state_are_refused() {
        let (me, you) = ([Who::actor("me")], [Who::actor("you")]);
        let good = Grants::none().allow::<First>(&me, &you).unwrap().allow::<Last>(&you, &me).unwrap();
        assert_eq!(good.clone().allow::<Same>(&me, &you), Err(GrantError::Twice("Last", "Same")));
        assert_eq!(good.clone().allow::<Push>(&me, &you), Err(GrantError::Kind("Push", 20)));
        assert!(matches!(good.clone().allow::<Answers>(&me, &you), Err(GrantError::Kind("Answers", 254))));
        assert!(matches!(good.clone().allow::<Large>(&me, &you), Err(GrantError::Size(..))));
        assert_eq!(good.clone().allow::<Empty>(&me, &you), Err(GrantError::Size("Empty", 0)));
        assert_eq!(Grants::none().allow::<First>(&[], &you), Err(GrantError::Nobody("First")));
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Actor) {
            let refused = Grants::none().allow::<First>(&me, &[Who::Role(role)]);
            assert_eq!(refused, Err(GrantError::ToMember { name: "First", role }));
        }
        // With the rows for training beside them.
        let all = [crate::policy::rules(1 << 20), good.rules()].concat();
        assert_eq!(Policy::new(all).unwrap().rule(FIRST_KIND).unwrap().max_header, 10 + ENVELOPE);
    }

    /// Invariant 1 of the module above: roles by the transport, names here, and answers the other way round.
    #[test]
    fn names_decide_within_roles() {
        let grants = Grants::none();
        let grants =
            grants.allow::<First>(&[Who::actor("me"), Who::Role(Role::Worker)], &[Who::actor("you")]);
        let grants = grants.unwrap();
        let (me, you, other) = (id(Role::Actor, "me"), id(Role::Actor, "you"), id(Role::Actor, "other"));
        let worker = id(Role::Worker, "3");
        assert!(grants.permits(FIRST_KIND, &me, &you) && grants.permits(FIRST_KIND, &worker, &you));
        for (from, to) in [(&you, &me), (&me, &other), (&other, &you), (&id(Role::Server, "0"), &you)] {
            assert!(!grants.permits(FIRST_KIND, from, to), "{from} to {to}");
        }
        assert!(!grants.permits(LAST_KIND, &me, &you));
        let policy = grants.policy().unwrap();
        let server = id(Role::Server, "0");
        assert!(policy.check(FIRST_KIND, &worker, &you, 10 + ENVELOPE, 0).is_ok());
        assert!(policy.check(FIRST_KIND, &worker, &you, 11 + ENVELOPE, 0).is_err());
        assert!(policy.check(FIRST_KIND, &worker, &you, 0, 1).is_err(), "no payload");
        assert!(policy.check(FIRST_KIND, &server, &you, 0, 0).is_err());
        assert!(policy.check(FIRST_KIND, &me, &worker, 0, 0).is_err());
        assert!(policy.check(FIRST_KIND + TO_ANSWER, &you, &worker, 0, 0).is_ok());
        assert!(policy.check(FIRST_KIND + TO_ANSWER, &worker, &you, 0, 0).is_err());
    }
}

//! Whom this node refused, why, and how often: one bounded account for a whole node.
//!
//! A refusal is counted under its [`Cause`] and under whom it concerned. A record or a log line for every packet of a flood would
//! be a flood itself, so what is kept is counts, what may be logged is limited, and how many can be named is bounded.
//!
//! Invariants:
//!
//! 1. No refusal is lost from the counts, whatever the flood: beyond [`MAX_NAMED`] names they are counted under no name.
//! 2. Memory is bounded by [`MAX_NAMED`] names between two calls of [`Refusals::drain`].
//! 3. For each cause, [`Refusals::count`] allows one log line a second, and says how many were left out since the last.
//! 4. Totals have a place for each cause and role, of which there are few, and for no name.
//! 5. Only an address that was proved, or an authenticated identity, is a name: nobody is accused by a forged packet.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Fault;
use crate::identity::{Role, SpiffeId};
use crate::pki::PkiError;
use crate::subscriber::subscriber;

/// Names that are kept between two calls of [`Refusals::drain`], over all causes.
pub const MAX_NAMED: usize = 128;

/// How often a cause may be logged.
const LINE_EVERY: Duration = Duration::from_secs(1);

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// Why somebody was refused: a closed set, so it can label a metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause { $($(#[$doc])* $name,)* }

        impl Cause {
            /// All of them.
            pub const ALL: &[Cause] = &[$(Cause::$name,)*];

            /// Its word in records, metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Cause::$name => $word,)* }
            }
        }
    };
}

causes! {
    /// An address that may not dial here.
    Address = "address",
    /// More newcomers than may begin at a time, or as fast: ignored.
    Budget = "budget",
    /// All the connections that the node, or one peer, may have are there.
    Full = "full",
    /// No certificate, or one that is not good: chain, time, profile.
    Certificate = "certificate",
    /// A certificate on the CA's list of revoked ones.
    Revoked = "revoked",
    /// A good certificate of somebody else than was expected.
    Identity = "identity",
    /// A handshake that is none of this protocol's: TLS version, cipher, application protocol.
    Handshake = "handshake",
    /// A handshake, or a first word, that did not come in time.
    Late = "late",
    /// Bytes that are no message.
    Framing = "framing",
    /// A message that the policy does not allow.
    Policy = "policy",
    /// A message that names another sender or receiver.
    Envelope = "envelope",
    /// More than was granted.
    Credit = "credit",
    /// A MAC that does not verify.
    Mac = "mac",
    /// A peer that does not read.
    Stalled = "stalled",
    /// A node that may not take part.
    Join = "join",
    /// Another process than the one that takes part under that identity.
    Incarnation = "incarnation",
    /// A push or pull without a lease, or of what cannot be.
    Request = "request",
    /// A report of work that cannot be: not finite, not leased, not told before.
    Report = "report",
    /// More requests or streams than its part in the work can need.
    Flood = "flood",
    /// A message that makes no sense to whom it was sent.
    Message = "message",
    /// A worker that reports what it contributed and has not signed it.
    Unsigned = "unsigned",
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<&Fault> for Cause {
    fn from(fault: &Fault) -> Cause {
        match fault {
            Fault::Prelude(_) | Fault::Header(_) | Fault::Truncated | Fault::Abandoned(_) => Cause::Framing,
            Fault::Policy(_) | Fault::MixedClasses { .. } | Fault::TooLargeHere { .. } => Cause::Policy,
            Fault::From { .. } | Fault::To { .. } => Cause::Envelope,
            Fault::Credit(_) | Fault::CreditStream(_) => Cause::Credit,
            Fault::Mac { .. } => Cause::Mac,
            Fault::Renewal(PkiError::Revoked { .. }) => Cause::Revoked,
            Fault::Renewal(_) => Cause::Certificate,
            Fault::Stalled { .. } => Cause::Stalled,
            Fault::Application { cause, .. } => *cause,
        }
    }
}

/// Whom a refusal concerned (invariant 5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Nobody in particular.
    Anyone,
    /// A node that authenticated itself.
    Node {
        /// Its role and name.
        name: String,
        /// Its role alone.
        role: Role,
    },
    /// An address that answered; of IPv6, its /64, because one host has as many as it likes.
    Address(IpAddr),
}

impl Who {
    /// An authenticated node.
    pub fn node(id: &SpiffeId) -> Who {
        Who::Node { name: id.short().to_owned(), role: id.role() }
    }

    /// The node of that role and index.
    pub fn member(role: Role, index: u32) -> Who {
        Who::Node { name: format!("{role}/{index}"), role }
    }

    /// The role that it proved; none of an address, or of nobody in particular.
    pub fn role(&self) -> Option<Role> {
        match self {
            Who::Node { role, .. } => Some(*role),
            Who::Anyone | Who::Address(_) => None,
        }
    }

    /// An address that was proved, by a handshake under way or a token.
    pub fn address(address: IpAddr) -> Who {
        Who::Address(subscriber(address))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Anyone => f.write_str("anyone"),
            Who::Node { name, .. } => f.write_str(name),
            Who::Address(address) => address.fmt(f),
        }
    }
}

/// So many refusals of one cause and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// Whom.
    pub who: Who,
    /// How often.
    pub count: u64,
}

/// One node's account. Clones are handles to the same one.
#[derive(Clone)]
pub struct Refusals(Arc<Inner>);

struct Inner {
    begun: Instant,
    tally: Mutex<Tally>,
}

impl Default for Refusals {
    fn default() -> Self {
        Refusals(Arc::new(Inner { begun: Instant::now(), tally: Mutex::default() }))
    }
}

impl Refusals {
    /// Counts a refusal. `Some` says that a log line about this cause may be written now, and how many refusals of that cause
    /// had none since the last.
    pub fn count(&self, cause: Cause, who: Who) -> Option<u64> {
        self.count_many(cause, who, 1)
    }

    /// As [`Refusals::count`], of so many that were seen together.
    pub fn count_many(&self, cause: Cause, who: Who, count: u64) -> Option<u64> {
        let now = self.0.begun.elapsed();
        self.tally().count(now, cause, who, count)
    }

    /// What was refused since the last call, in order; beyond it nothing is kept but totals.
    pub fn drain(&self) -> Vec<Refused> {
        self.tally().drain()
    }

    /// How often each cause came up since the node began, those that did not left out.
    pub fn totals(&self) -> BTreeMap<Cause, u64> {
        let mut totals = BTreeMap::new();
        for ((cause, _), count) in self.totals_by_role() {
            let total: &mut u64 = totals.entry(cause).or_default();
            *total = total.saturating_add(count);
        }
        totals
    }

    /// The same by the role that whoever was refused had proved; none for whoever had proved no identity.
    pub fn totals_by_role(&self) -> BTreeMap<(Cause, Option<Role>), u64> {
        self.tally().totals.clone()
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.0.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refusals({:?})", self.totals())
    }
}

/// The account itself: pure.
#[derive(Debug, Default)]
struct Tally {
    recent: BTreeMap<(Cause, Who), u64>,
    named: usize,
    totals: BTreeMap<(Cause, Option<Role>), u64>,
    lines: BTreeMap<Cause, Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    last: Option<Duration>,
    left_out: u64,
}

impl Tally {
    fn count(&mut self, now: Duration, cause: Cause, who: Who, count: u64) -> Option<u64> {
        let total = self.totals.entry((cause, who.role())).or_default();
        *total = total.saturating_add(count);
        let mut key = (cause, who);
        if key.1 != Who::Anyone && !self.recent.contains_key(&key) {
            if self.named >= MAX_NAMED {
                key.1 = Who::Anyone;
            } else {
                self.named += 1;
            }
        }
        let recent = self.recent.entry(key).or_default();
        *recent = recent.saturating_add(count);
        let lines = self.lines.entry(cause).or_default();
        if lines.last.is_some_and(|last| now.saturating_sub(last) < LINE_EVERY) {
            lines.left_out = lines.left_out.saturating_add(count);
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.left_out))
    }

    fn drain(&mut self) -> Vec<Refused> {
        self.named = 0;
        let recent = std::mem::take(&mut self.recent);
        recent.into_iter().map(|((cause, who), count)| Refused { cause, who, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(n: u32) -> Who {
        Who::address(IpAddr::from(n.to_be_bytes()))
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_flood_of_names_is_counted_in_bounded_memory() {
        let mut tally = Tally::default();
        for n in 0..10_000 {
            tally.count(Duration::ZERO, Cause::Certificate, who(n), 1);
        }
        tally.count(Duration::ZERO, Cause::Mac, who(1), 3);
        tally.count(Duration::ZERO, Cause::Certificate, who(1), 2);
        let drained = tally.drain();
        assert_eq!(drained.len(), MAX_NAMED + 2, "so many names, and one for the rest of each cause");
        let sum = |cause| drained.iter().filter(|r| r.cause == cause).map(|r| r.count).sum::<u64>();
        assert_eq!((sum(Cause::Certificate), sum(Cause::Mac)), (10_002, 3));
        let first = drained.iter().find(|r| r.who == who(1)).unwrap();
        assert_eq!(first.count, 3, "who is known already goes on being named");
        assert!(tally.drain().is_empty());
        tally.count(Duration::ZERO, Cause::Mac, who(9), 1);
        assert_eq!(tally.drain(), [Refused { cause: Cause::Mac, who: who(9), count: 1 }], "room again");
        assert_eq!(tally.totals[&(Cause::Certificate, None)], 10_002, "totals stay");
    }

    /// Invariant 4: whoever is named no longer still counts for its role.
    #[test]
    fn totals_are_by_cause_and_role_whoever_comes() {
        let mut tally = Tally::default();
        for n in 0..10_000 {
            tally.count(Duration::ZERO, Cause::Certificate, who(n), 1);
            tally.count(Duration::ZERO, Cause::Request, Who::member(Role::Worker, n), 1);
            tally.count(Duration::ZERO, Cause::Request, Who::member(Role::Server, n), 2);
        }
        let request =
            |role| ((Cause::Request, Some(role)), if role == Role::Server { 20_000 } else { 10_000 });
        let stranger = ((Cause::Certificate, None), 10_000);
        let expected = [stranger, request(Role::Server), request(Role::Worker)];
        assert_eq!(tally.totals, BTreeMap::from(expected));
    }

    /// Invariant 3.
    #[test]
    fn each_cause_is_logged_once_a_second() {
        let (mut tally, ms) = (Tally::default(), Duration::from_millis);
        assert_eq!(tally.count(ms(5), Cause::Mac, Who::Anyone, 1), Some(0));
        assert_eq!(tally.count(ms(900), Cause::Mac, who(1), 1), None);
        assert_eq!(tally.count(ms(1004), Cause::Mac, Who::Anyone, 4), None);
        assert_eq!(tally.count(ms(1004), Cause::Policy, Who::Anyone, 1), Some(0), "another cause");
        assert_eq!(tally.count(ms(1005), Cause::Mac, Who::Anyone, 1), Some(5));
        assert_eq!(tally.count(ms(1006), Cause::Mac, Who::Anyone, 1), None);
    }

    #[test]
    fn addresses_of_one_host_are_one_name() {
        let v6 = |text: &str| Who::address(text.parse().unwrap());
        assert_eq!(v6("2001:db8:1:2:3:4:5:6"), v6("2001:db8:1:2::9"));
        assert_ne!(v6("2001:db8:1:2::9"), v6("2001:db8:1:3::9"));
        assert_eq!(v6("::ffff:192.0.2.1").to_string(), "192.0.2.1");
    }

    #[test]
    fn words_are_distinct() {
        let words: std::collections::BTreeSet<&str> = Cause::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(words.len(), Cause::ALL.len());
    }
}

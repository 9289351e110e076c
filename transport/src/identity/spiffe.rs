//! SPIFFE IDs of one shape: `spiffe://<trust-domain>/job/<job>/<role>/<name>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{IdentityError, Role};

/// Longest SPIFFE ID that the specification lets an implementation demand support for, in bytes.
const MAX_LEN: usize = 2048;
/// Longest trust domain (a DNS name's limit, which the specification adopts).
const MAX_TRUST_DOMAIN: usize = 255;
/// Longest job name: leaves room in every certificate's 64-byte limits elsewhere and in log lines.
const MAX_JOB: usize = 128;
/// Longest name of an operator or actor, as long as a certificate's common name may be.
const MAX_NAME: usize = 64;

const SCHEME: &str = "spiffe://";
const JOB_SEGMENT: &str = "/job/";

/// A node's identity, as its certificate states it. Cheap to clone; compares, hashes and orders by its text.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    job: usize,
    role: usize,
    name: usize,
    kind: Role,
}

impl SpiffeId {
    /// Builds the identity of `role`/`name` in `job`.
    ///
    /// # Errors
    /// [`IdentityError`] when a component has a character, length or number that it may not have.
    pub fn new(trust_domain: &str, job: &str, role: Role, name: &str) -> Result<Self, IdentityError> {
        check_trust_domain(trust_domain)?;
        check_job(job)?;
        check_name(role, name)?;
        let text = format!("{SCHEME}{trust_domain}{JOB_SEGMENT}{job}/{role}/{name}");
        let job_at = SCHEME.len() + trust_domain.len() + JOB_SEGMENT.len();
        let role_at = job_at + job.len() + 1;
        let name_at = role_at + role.as_str().len() + 1;
        Ok(SpiffeId { text: text.into(), job: job_at, role: role_at, name: name_at, kind: role })
    }

    /// Reads an identity; the only accepted spelling is the one that [`fmt::Display`] prints.
    ///
    /// # Errors
    /// [`IdentityError`] for anything else.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_LEN {
            return Err(IdentityError::TooLong { found: text.len(), limit: MAX_LEN });
        }
        let malformed = || IdentityError::Malformed(text.to_owned());
        let mut segments = text.strip_prefix(SCHEME).ok_or_else(malformed)?.split('/');
        let mut next = || segments.next().ok_or_else(malformed);
        let (trust_domain, literal, job, role, name) = (next()?, next()?, next()?, next()?, next()?);
        if literal != "job" || segments.next().is_some() {
            return Err(malformed());
        }
        SpiffeId::new(trust_domain, job, role.parse()?, name)
    }

    /// The trust domain, such as `testudo.local`.
    pub fn trust_domain(&self) -> &str {
        self.slice(SCHEME.len(), self.job - JOB_SEGMENT.len())
    }

    /// The job's name.
    pub fn job(&self) -> &str {
        self.slice(self.job, self.role - 1)
    }

    /// The role that the certificate gives.
    pub fn role(&self) -> Role {
        self.kind
    }

    /// What distinguishes this node among those of its role: a number, or a name for operators and actors.
    pub fn name(&self) -> &str {
        self.slice(self.name, self.text.len())
    }

    /// The node's number within its role; `None` for a name that is not a number.
    pub fn index(&self) -> Option<u32> {
        canonical_number(self.name())
    }

    /// `role/name`, as logs and file names show it: unique within a job.
    pub fn short(&self) -> &str {
        self.slice(self.role, self.text.len())
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether both belong to the same job of the same trust domain.
    pub fn same_job(&self, other: &SpiffeId) -> bool {
        self.trust_domain() == other.trust_domain() && self.job() == other.job()
    }

    // The offsets come from `new` alone and lie on ASCII boundaries, so the range is always there.
    fn slice(&self, from: usize, to: usize) -> &str {
        self.text.get(from..to).unwrap_or_default()
    }
}

/// Refuses what is not a trust domain.
pub(super) fn check_trust_domain(text: &str) -> Result<(), IdentityError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    let dots = text.split('.').any(str::is_empty);
    if text.len() > MAX_TRUST_DOMAIN || dots || !text.bytes().all(allowed) {
        return Err(IdentityError::TrustDomain(text.to_owned()));
    }
    Ok(())
}

/// Refuses what is not a job name.
pub(super) fn check_job(text: &str) -> Result<(), IdentityError> {
    if text.len() > MAX_JOB || !is_segment(text) {
        return Err(IdentityError::Job(text.to_owned()));
    }
    Ok(())
}

fn check_name(role: Role, name: &str) -> Result<(), IdentityError> {
    let good = match role {
        Role::Operator | Role::Actor => name.len() <= MAX_NAME && is_segment(name),
        Role::Scheduler | Role::Server | Role::Worker | Role::Peer => canonical_number(name).is_some(),
    };
    if good { Ok(()) } else { Err(IdentityError::Name { role, name: name.to_owned() }) }
}

fn is_segment(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text != "." && text != ".." && text.bytes().all(allowed)
}

fn canonical_number(text: &str) -> Option<u32> {
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if leading_zero || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        SpiffeId::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(SpiffeId::parse))
    }
}

/// Reads a type from its text without an intermediate string.
pub(super) struct TextVisitor<T>(pub(super) fn(&str) -> Result<T, IdentityError>);

impl<T> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SPIFFE identity")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> SpiffeId {
        SpiffeId::new("testudo.local", "mnist-1", Role::Worker, "12").unwrap()
    }

    #[test]
    fn components_read_back() {
        let id = worker();
        assert_eq!(id.to_string(), "spiffe://testudo.local/job/mnist-1/worker/12");
        assert_eq!((id.trust_domain(), id.job(), id.role()), ("testudo.local", "mnist-1", Role::Worker));
        assert_eq!((id.name(), id.index(), id.short()), ("12", Some(12), "worker/12"));
        let actor = SpiffeId::new("a", "b", Role::Actor, "my-actor_2").unwrap();
        assert_eq!((actor.name(), actor.index(), actor.short()), ("my-actor_2", None, "actor/my-actor_2"));
    }

    /// Invariant 1.
    #[test]
    fn what_parses_prints_back_unchanged() {
        for text in [
            "spiffe://testudo.local/job/mnist-1/worker/12",
            "spiffe://t/job/J.x_y-z/peer/0",
            "spiffe://t/job/j/operator/alice",
            "spiffe://t/job/j/scheduler/4294967295",
            "spiffe://t/job/j/actor/...",
        ] {
            let id = SpiffeId::parse(text).unwrap();
            assert_eq!(id.to_string(), text);
            assert_eq!(SpiffeId::new(id.trust_domain(), id.job(), id.role(), id.name()), Ok(id));
        }
    }

    /// Invariant 2.
    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://t",
            "spiffe://t/job/j/worker",
            "spiffe://t/job/j/worker/",
            "spiffe://t/job/j/worker/0/",
            "spiffe://t/job/j/worker/0/1",
            "spiffe:///job/j/worker/0",
            "spiffe://t//job/j/worker/0",
            "spiffe://t/job//worker/0",
            "spiffe://t/job/./worker/0",
            "spiffe://t/job/../worker/0",
            "spiffe://t/job/j/../worker/0",
            "spiffe://t/job/j%2Fx/worker/0",
            "spiffe://t/job/j/worker/%30",
            "spiffe://t%2e/job/j/worker/0",
            "spiffe://t:443/job/j/worker/0",
            "spiffe://u@t/job/j/worker/0",
            "spiffe://t/job/j/worker/0?x",
            "spiffe://t/job/j/worker/0#worker",
            "spiffe://T/job/j/worker/0",
            "SPIFFE://t/job/j/worker/0",
            "https://t/job/j/worker/0",
            "spiffe://t./job/j/worker/0",
            "spiffe://.t/job/j/worker/0",
            "spiffe://t..u/job/j/worker/0",
            "spiffe://t/jobs/j/worker/0",
            "spiffe://t/job/j/Worker/0",
            "spiffe://t/job/j/root/0",
            "spiffe://t/job/j/worker/00",
            "spiffe://t/job/j/worker/01",
            "spiffe://t/job/j/worker/+1",
            "spiffe://t/job/j/worker/-1",
            "spiffe://t/job/j/worker/a",
            "spiffe://t/job/j/worker/4294967296",
            "spiffe://t/job/j/actor/..",
            "spiffe://t/job/j/actor/a b",
            "spiffe://t/job/j/actor/\u{e9}",
            " spiffe://t/job/j/worker/0",
            "spiffe://t/job/j/worker/0\n",
            "spiffe://t/job/j/worker/0\0",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "accepted {text:?}");
        }
        assert!(SpiffeId::parse(&format!("spiffe://t/job/{}/worker/0", "j".repeat(129))).is_err());
        assert!(SpiffeId::parse(&format!("spiffe://{}/job/j/worker/0", "t".repeat(256))).is_err());
        assert!(SpiffeId::parse(&format!("spiffe://t/job/j/actor/{}", "a".repeat(65))).is_err());
        let long = format!("spiffe://t/job/j/actor/{}", "a".repeat(4096));
        assert!(matches!(SpiffeId::parse(&long), Err(IdentityError::TooLong { .. })));
    }

    #[test]
    fn serializes_as_its_text_and_refuses_another_on_reading() {
        let bytes = postcard::to_allocvec(&worker()).unwrap();
        assert_eq!(bytes.get(1..), Some(worker().as_str().as_bytes()));
        assert_eq!(postcard::from_bytes::<SpiffeId>(&bytes).unwrap(), worker());
        let wrong = postcard::to_allocvec("spiffe://t/job/j/worker/00").unwrap();
        assert!(postcard::from_bytes::<SpiffeId>(&wrong).is_err());
    }

    #[test]
    fn the_same_job_takes_the_same_trust_domain() {
        let id = worker();
        let other = |domain, job| SpiffeId::new(domain, job, Role::Server, "0").unwrap();
        assert!(id.same_job(&other("testudo.local", "mnist-1")));
        assert!(!id.same_job(&other("testudo.local", "mnist-2")));
        assert!(!id.same_job(&other("testudo.remote", "mnist-1")));
    }
}

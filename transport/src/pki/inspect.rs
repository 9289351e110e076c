//! Everything that is wrong with the files of an identity, at once: for a person who wants to mend it.
//!
//! [`Identity::load`](super::Identity::load) stops at the first fault, as a program should. Here nothing is loaded, and nothing that is
//! found makes the identity usable.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;

use super::key::SecretKey;
use super::{Chain, Expected, MAX_CHAIN, MAX_CHAIN_BYTES, PkiError, Trust, certificate, chain};
use crate::identity::SpiffeId;

/// What was found in an identity's files.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Whose the certificate is, if that can be read.
    pub id: Option<SpiffeId>,
    /// Seconds until the certificate ends; negative once it has.
    pub seconds_left: Option<i64>,
    /// Seconds until the certificate begins; above 0 while it has not.
    pub seconds_to_begin: Option<i64>,
    /// What is wrong beside the dates.
    pub faults: Vec<PkiError>,
}

/// Looks at the texts of `cert.pem`, `ca.pem` and `key.pem`, as far as each is there, at the time `now`.
#[must_use]
pub fn inspect(cert: Option<&[u8]>, ca: Option<&[u8]>, key: Option<&[u8]>, now: SystemTime) -> Inspected {
    let mut found = Inspected::default();
    let chain =
        cert.and_then(|pem| keep(&mut found.faults, chain::from_pem(pem, MAX_CHAIN, MAX_CHAIN_BYTES)));
    let ca = ca.and_then(|pem| keep(&mut found.faults, certificate::bundle_der(pem)));
    let key = key.and_then(|pem| keep(&mut found.faults, SecretKey::from_pem(pem)));
    let Some(bytes) = chain else { return found };
    let Some(chain) = keep(&mut found.faults, Chain::split(&bytes)) else { return found };
    let leaf = chain.leaf();
    found.id = keep(&mut found.faults, certificate::leaf_identity(leaf));
    let Some(info) = keep(&mut found.faults, certificate::describe_der(leaf)) else { return found };
    let Some(end) = keep(&mut found.faults, certificate::end(&chain)) else { return found };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
    found.seconds_left = Some(end.saturating_sub(now));
    found.seconds_to_begin = Some(info.not_before.saturating_sub(now));
    if let Some(key) = key
        && let Some(public) = keep(&mut found.faults, certificate::public_key(leaf))
        && !key.matches(&public)
    {
        found.faults.push(PkiError::OtherKey);
    }
    if let (Some(ca), Some(id)) = (ca, found.id.clone()) {
        // The dates are told apart from the chain: it is checked at a time when the certificate is valid.
        let within = info.not_before.max(0).cast_unsigned();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(within));
        let chained = Trust::from_der_for(&ca, id.trust_domain(), id.job())
            .and_then(|trust| trust.verify_at(&bytes, &Expected::Node(id), at));
        keep(&mut found.faults, chained);
    }
    found
}

fn keep<T>(faults: &mut Vec<PkiError>, result: Result<T, PkiError>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Role;
    use crate::pki::JobCa;

    const HOUR: Duration = Duration::from_secs(3600);

    fn ca() -> JobCa {
        JobCa::create("t", "j", HOUR).unwrap()
    }

    fn look(cert: &str, ca: &str, key: Option<&str>, now: SystemTime) -> Inspected {
        inspect(Some(cert.as_bytes()), Some(ca.as_bytes()), key.map(str::as_bytes), now)
    }

    #[test]
    fn a_good_set_has_no_fault() {
        let identity = ca().issue(&SpiffeId::new("t", "j", Role::Worker, "0").unwrap(), HOUR).unwrap();
        let key = identity.key().to_pem();
        let now = SystemTime::now();
        let found = look(identity.certificate_pem(), identity.ca_pem(), Some(&key), now);
        assert!(found.faults.is_empty(), "{:?}", found.faults);
        assert_eq!(found.id.as_ref(), Some(identity.id()));
        assert!(found.seconds_left.unwrap() > 3000 && found.seconds_to_begin.unwrap() < 0);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let id = SpiffeId::new("t", "j", Role::Worker, "0").unwrap();
        let (one, other) = (ca().issue(&id, HOUR).unwrap(), ca().issue(&id, HOUR).unwrap());
        let key = other.key().to_pem();
        let later = SystemTime::now() + 2 * HOUR;
        let found = look(one.certificate_pem(), other.ca_pem(), Some(&key), later);
        assert!(found.seconds_left.unwrap() < 0, "it has ended");
        let text: Vec<String> = found.faults.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(text[0].contains("not of the private key") && text[1].contains("chain"), "{text:?}");
        let nothing = inspect(Some(b"x"), Some(b"y"), Some(b"z"), later);
        assert_eq!(nothing.faults.len(), 3);
    }
}

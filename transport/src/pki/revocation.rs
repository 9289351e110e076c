//! Which certificates are still good: the lists in force, the time, and what follows from both.
//!
//! Invariants:
//!
//! 1. What is in force was signed by a CA that is trusted, and no list of that CA with a lower number ever follows it. What cannot
//!    be taken leaves everything as it is.
//! 2. Once there is a list, nobody whom its CA certified is good without one: when it ends, [`Standing::check`] refuses them all
//!    until a new one is installed.
//! 3. Without a list, certificates are good until they end, which is soon. Where some CAs have lists and others have not,
//!    [`RevocationPolicy`] says what of the others'; lists that would leave this node itself without are not taken.
//!
//! CAs are told apart by their names, as RFC 5280 has it: one CA with two keys, the old and the next, has lists by either, which
//! count for the certificates by both.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::UnixTime;

use super::anchors::{Anchors, MAX_ANCHORS};
use super::chain::Chain;
use super::crl::{Crl, CrlError, CrlNumber, Serial};
use super::{PkiError, certificate};

/// What tells the time of day; tests have their own.
pub trait WallClock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The operating system's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// What is done with a certificate whose issuer has no list of revoked ones, while other issuers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RevocationPolicy {
    /// It is refused.
    #[default]
    Required,
    /// It is good until it ends: for CAs that publish no lists, and issue for hours.
    ShortLived,
}

/// What installing lists did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installed {
    /// The number of the list; of several, that of the first that is new.
    pub number: CrlNumber,
    /// Certificates in all of them.
    pub revoked: usize,
    /// When the first of them ends, in seconds since 1970 UTC.
    pub next_update: i64,
    /// Whether one was not in force before.
    pub is_new: bool,
}

/// A certificate as lists name it: its issuer (the name in DER) and its serial number.
pub(super) type IssuedBy = (Box<[u8]>, Serial);

/// What lists may say of a chain: the node's certificate, and those between it and a trusted one.
pub(super) fn issued_in(chain: &Chain<'_>, anchors: &Anchors) -> Result<Vec<IssuedBy>, PkiError> {
    let between = chain.others().iter().copied().filter(|der| !anchors.has(der));
    std::iter::once(chain.leaf()).chain(between).map(certificate::issued_by).collect()
}

/// The lists in force and the clock, shared by all who trust the same CAs.
pub(super) struct Standing {
    clock: Arc<dyn WallClock>,
    // One for each key that signs them; MAX_ANCHORS at most.
    in_force: RwLock<Vec<Arc<Crl>>>,
    is_short_lived: AtomicBool,
}

impl Standing {
    pub(super) fn new(clock: Arc<dyn WallClock>) -> Standing {
        Standing { clock, in_force: RwLock::default(), is_short_lived: AtomicBool::new(false) }
    }

    pub(super) fn set_policy(&self, policy: RevocationPolicy) {
        self.is_short_lived.store(policy == RevocationPolicy::ShortLived, Ordering::Relaxed);
    }

    pub(super) fn clock(&self) -> Arc<dyn WallClock> {
        Arc::clone(&self.clock)
    }

    pub(super) fn now(&self) -> UnixTime {
        let since = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime::since_unix_epoch(since)
    }

    pub(super) fn in_force(&self) -> Vec<Arc<Crl>> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn has_none(&self) -> bool {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Invariants 1 and 3: lists of `issuers` (certificates in DER), which must leave none of `needed` without one.
    pub(super) fn install(
        &self,
        bytes: &[u8],
        issuers: &[&[u8]],
        needed: &[IssuedBy],
    ) -> Result<Installed, CrlError> {
        let lists = Crl::read_all(bytes, issuers)?;
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = in_force.clone();
        let mut installed: Option<Installed> = None;
        for crl in lists {
            let mut this = Installed {
                number: crl.number(),
                revoked: crl.len(),
                next_update: crl.next_update(),
                is_new: true,
            };
            match next.iter_mut().find(|current| current.is_by_the_signer_of(&crl)) {
                Some(current) if current.der() == crl.der() => this.is_new = false,
                Some(current) => {
                    crl.check_follows(current)?;
                    crl.check_time(self.now())?;
                    *current = Arc::new(crl);
                }
                None => {
                    crl.check_time(self.now())?;
                    next.push(Arc::new(crl));
                }
            }
            installed = Some(match installed {
                None => this,
                Some(all) => Installed {
                    number: if all.is_new || !this.is_new { all.number } else { this.number },
                    revoked: all.revoked + this.revoked,
                    next_update: all.next_update.min(this.next_update),
                    is_new: all.is_new || this.is_new,
                },
            });
        }
        let installed = installed.ok_or_else(|| CrlError::Malformed("there is none".to_owned()))?;
        if next.len() > MAX_ANCHORS {
            return Err(CrlError::Malformed(format!("lists of more than {MAX_ANCHORS} CAs")));
        }
        let is_required = !self.is_short_lived.load(Ordering::Relaxed);
        let bare = |(issuer, _): &&IssuedBy| !next.iter().any(|crl| crl.issuer() == &**issuer);
        if let Some((issuer, _)) = needed.iter().find(bare).filter(|_| is_required) {
            return Err(CrlError::Bare(certificate::name_text(issuer)));
        }
        *in_force = next;
        Ok(installed)
    }

    /// Invariants 2 and 3; `whose` is for the error.
    pub(super) fn check(&self, issued: &[IssuedBy], whose: &str, now: UnixTime) -> Result<(), PkiError> {
        let in_force = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        if in_force.is_empty() {
            return Ok(());
        }
        let is_required = !self.is_short_lived.load(Ordering::Relaxed);
        for (issuer, serial) in issued {
            let mut is_bare = true;
            for crl in in_force.iter().filter(|crl| crl.issuer() == &**issuer) {
                is_bare = false;
                if let Some(ago) = crl.expired_since(now) {
                    return Err(PkiError::RevocationUnknown { ago });
                }
                if crl.has(serial) {
                    return Err(PkiError::Revoked { id: whose.to_owned(), serial: serial.to_string() });
                }
            }
            if is_bare && is_required {
                let issuer = certificate::name_text(issuer);
                return Err(PkiError::NoList { id: whose.to_owned(), issuer });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Standing({:?})", self.in_force())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::pki::{CLOCK_SKEW, JobCa, Revocation, RevocationList};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Set(Mutex<SystemTime>);

    impl WallClock for Set {
        fn now(&self) -> SystemTime {
            *self.0.lock().unwrap()
        }
    }

    fn serial(text: &str) -> Serial {
        Serial::from_hex(text).unwrap()
    }

    /// A CA's lists, for certificates of its own.
    struct Of {
        ca: Vec<u8>,
        name: Box<[u8]>,
        standing: Standing,
    }

    impl Of {
        fn install(&self, bytes: &[u8]) -> Result<Installed, CrlError> {
            self.standing.install(bytes, &[&self.ca], &[])
        }

        fn check(&self, serial: &Serial, whose: &str, now: UnixTime) -> Result<(), PkiError> {
            self.standing.check(&[(self.name.clone(), serial.clone())], whose, now)
        }

        fn now(&self) -> UnixTime {
            self.standing.now()
        }
    }

    fn setting() -> (JobCa, Arc<Set>, Of, SystemTime) {
        let ca = JobCa::create("t", "j", 24 * HOUR).unwrap();
        let now = SystemTime::now();
        let clock = Arc::new(Set(Mutex::new(now)));
        let standing = Standing::new(Arc::clone(&clock) as _);
        let der = ca.trust().ca_der();
        (ca, clock, Of { name: certificate::subject(&der).unwrap(), ca: der, standing }, now)
    }

    /// Invariant 3.
    #[test]
    fn an_issuer_without_a_list_is_what_the_policy_says() {
        let (ca, _, of, _) = setting();
        let other = JobCa::create("t", "k", 24 * HOUR).unwrap();
        let both = [of.ca.clone(), other.trust().ca_der()];
        let issuers: Vec<&[u8]> = both.iter().map(Vec::as_slice).collect();
        let lists = [&ca, &other].map(|ca| ca.sign_crl(&RevocationList::default(), HOUR).unwrap());
        let ours = (of.name.clone(), serial("01"));
        let theirs = (certificate::subject(&both[1]).unwrap(), serial("02"));
        let needed = [ours.clone(), theirs.clone()];
        let bare = of.standing.install(lists[0].der(), &issuers, &needed);
        assert!(matches!(&bare, Err(CrlError::Bare(issuer)) if issuer.contains("CN=k")), "{bare:?}");
        assert!(of.standing.has_none(), "it would have left this node's own certificate without a list");
        assert!(of.standing.install(lists[0].der(), &issuers, &needed[..1]).is_ok());
        assert_eq!(of.standing.check(&needed[..1], "worker/0", of.now()), Ok(()));
        let refused = of.standing.check(&needed, "worker/0", of.now());
        assert!(matches!(refused, Err(PkiError::NoList { .. })), "{refused:?}");
        of.standing.set_policy(RevocationPolicy::ShortLived);
        assert_eq!(of.standing.check(&needed, "worker/0", of.now()), Ok(()));
        of.standing.set_policy(RevocationPolicy::Required);
        let all = [lists[0].der(), lists[1].der()].concat();
        let installed = of.standing.install(&all, &issuers, &needed).unwrap();
        assert!(installed.is_new && of.standing.in_force().len() == 2);
        assert_eq!(of.standing.check(&needed, "worker/0", of.now()), Ok(()));
    }

    /// Invariants 2 and 3.
    #[test]
    fn without_a_list_all_are_good_and_after_its_end_nobody_is() {
        let (ca, clock, standing, now) = setting();
        let (bad, good) = (serial("0102"), serial("0103"));
        assert_eq!(standing.check(&bad, "worker/0", standing.now()), Ok(()));
        let mut list = RevocationList::default();
        assert!(list.revoke(bad.clone(), Revocation { at: 0, compromised: true }));
        assert!(!list.revoke(bad.clone(), Revocation { at: 5, compromised: false }), "it is in it");
        let crl = ca.sign_crl_at(&list, HOUR, now).unwrap();
        let installed = standing.install(crl.der()).unwrap();
        assert_eq!((installed.revoked, installed.is_new), (1, true));
        assert!(matches!(standing.check(&bad, "worker/0", standing.now()), Err(PkiError::Revoked { .. })));
        assert_eq!(standing.check(&good, "worker/1", standing.now()), Ok(()));
        // Within the tolerance for clocks it still holds, and no longer.
        *clock.0.lock().unwrap() = now + HOUR + CLOCK_SKEW;
        assert_eq!(standing.check(&good, "worker/1", standing.now()), Ok(()));
        *clock.0.lock().unwrap() = now + HOUR + CLOCK_SKEW + Duration::from_secs(2);
        let refused = standing.check(&good, "worker/1", standing.now());
        assert!(matches!(refused, Err(PkiError::RevocationUnknown { .. })), "{refused:?}");
        let next = RevocationList::after(&crl).unwrap();
        standing.install(ca.sign_crl_at(&next, HOUR, clock.now()).unwrap().der()).unwrap();
        assert_eq!(standing.check(&good, "worker/1", standing.now()), Ok(()));
        assert!(standing.check(&bad, "worker/0", standing.now()).is_err(), "it stays revoked");
    }

    /// Invariant 1.
    #[test]
    fn what_cannot_be_taken_leaves_the_list_in_force() {
        let (ca, clock, standing, now) = setting();
        let mut list = RevocationList::default();
        list.revoke(serial("aa"), Revocation { at: 0, compromised: false });
        let first = ca.sign_crl_at(&list, HOUR, now).unwrap();
        let second = ca.sign_crl_at(&RevocationList::after(&first).unwrap(), HOUR, now).unwrap();
        assert_eq!(second.number(), first.number().next().unwrap());
        standing.install(second.to_pem().as_bytes()).unwrap();
        assert!(!standing.install(second.der()).unwrap().is_new, "the same again is no change");
        let other = JobCa::create("t", "j", 24 * HOUR).unwrap();
        let third = RevocationList::after(&second).unwrap();
        let foreign = other.sign_crl_at(&third, HOUR, now).unwrap();
        let twin = ca.sign_crl_at(&RevocationList::after(&first).unwrap(), 2 * HOUR, now).unwrap();
        let over = ca.sign_crl_at(&third, HOUR, now - 2 * HOUR).unwrap();
        let ahead = ca.sign_crl_at(&third, HOUR, now + HOUR).unwrap();
        let mut forged = ca.sign_crl_at(&third, HOUR, now).unwrap().der().to_vec();
        let middle = forged.len() / 2;
        forged[middle] ^= 1;
        type Wanted = fn(&CrlError) -> bool;
        let cases: [(&str, &[u8], Wanted); 8] = [
            ("older", first.der(), |e| matches!(e, CrlError::Older { .. })),
            ("twin", twin.der(), |e| matches!(e, CrlError::Twin(_))),
            ("foreign", foreign.der(), |e| matches!(e, CrlError::Foreign(_))),
            ("expired", over.der(), |e| matches!(e, CrlError::Expired { .. })),
            ("ahead", ahead.der(), |e| matches!(e, CrlError::NotYet { .. })),
            ("forged", &forged, |e| matches!(e, CrlError::Foreign(_) | CrlError::Malformed(_))),
            ("empty", b"", |e| matches!(e, CrlError::Malformed(_))),
            ("no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", |e| {
                matches!(e, CrlError::Malformed(_))
            }),
        ];
        for (what, bytes, wanted) in cases {
            let refused = standing.install(bytes).unwrap_err();
            assert!(wanted(&refused), "{what}: {refused:?}");
            assert_eq!(standing.standing.in_force()[0].der(), second.der(), "{what}");
        }
        assert_eq!(clock.now(), now);
    }
}

//! Which certificates are still good: the list in force, the time, and what follows from both.
//!
//! Invariants:
//!
//! 1. What is in force was signed by the CA that this is of, and no list with a lower number ever follows it. What cannot
//!    be taken leaves it as it is.
//! 2. Once there is a list, nobody is good without one: when it ends, [`Standing::check`] refuses everybody until a new
//!    one is installed.
//! 3. Without a list, certificates are good until they end, which is soon.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::pki_types::UnixTime;

use super::PkiError;
use super::crl::{Crl, CrlError, CrlNumber, Serial};

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

/// What installing a list did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Installed {
    /// The number of the list in force.
    pub number: CrlNumber,
    /// Certificates in it.
    pub revoked: usize,
    /// When it ends, in seconds since 1970 UTC.
    pub next_update: i64,
    /// Whether it was not in force before.
    pub is_new: bool,
}

/// The list in force and the clock, shared by all who trust one CA.
pub(super) struct Standing {
    ca_der: Vec<u8>,
    clock: Arc<dyn WallClock>,
    in_force: RwLock<Option<Arc<Crl>>>,
}

impl Standing {
    pub(super) fn new(ca_der: &[u8], clock: Arc<dyn WallClock>) -> Standing {
        Standing { ca_der: ca_der.to_vec(), clock, in_force: RwLock::new(None) }
    }

    pub(super) fn clock(&self) -> Arc<dyn WallClock> {
        Arc::clone(&self.clock)
    }

    pub(super) fn now(&self) -> UnixTime {
        let since = self.clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime::since_unix_epoch(since)
    }

    pub(super) fn in_force(&self) -> Option<Arc<Crl>> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Invariant 1.
    pub(super) fn install(&self, bytes: &[u8]) -> Result<Installed, CrlError> {
        let crl = Crl::read(bytes, &self.ca_der)?;
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        let mut installed = Installed {
            number: crl.number(),
            revoked: crl.len(),
            next_update: crl.next_update(),
            is_new: true,
        };
        if let Some(current) = in_force.as_deref() {
            if current.der() == crl.der() {
                installed.is_new = false;
                return Ok(installed);
            }
            if crl.number() < current.number() {
                return Err(CrlError::Older { found: crl.number(), in_force: current.number() });
            }
            if crl.number() == current.number() {
                return Err(CrlError::Twin(crl.number()));
            }
        }
        crl.check_time(self.now())?;
        *in_force = Some(Arc::new(crl));
        Ok(installed)
    }

    /// Invariant 2; `whose` is for the error.
    pub(super) fn check(&self, serial: &Serial, whose: &str, now: UnixTime) -> Result<(), PkiError> {
        let Some(crl) = self.in_force() else { return Ok(()) };
        if let Some(ago) = crl.expired_since(now) {
            return Err(PkiError::RevocationUnknown { ago });
        }
        if crl.has(serial) {
            return Err(PkiError::Revoked { id: whose.to_owned(), serial: serial.to_string() });
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

    fn setting() -> (JobCa, Arc<Set>, Standing, SystemTime) {
        let ca = JobCa::create("t", "j", 24 * HOUR).unwrap();
        let now = SystemTime::now();
        let clock = Arc::new(Set(Mutex::new(now)));
        let standing = Standing::new(ca.trust().ca_der(), Arc::clone(&clock) as _);
        (ca, clock, standing, now)
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
            assert_eq!(standing.in_force().unwrap().der(), second.der(), "{what}");
        }
        assert_eq!(clock.now(), now);
    }
}

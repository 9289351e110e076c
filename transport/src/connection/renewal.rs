//! Certificates that are renewed while a connection lives: ours is shown, the peer's is taken.
//!
//! Invariants:
//!
//! 1. What is taken is a certificate of this peer, good now, whose key signed for this connection in this direction: nobody
//!    else's, none from another connection, and none without its key.
//! 2. A peer can renew [`AT_ONCE`] times at once, once in [`EVERY`] seconds from then on, and [`MAX_RENEWALS`] times in all: more
//!    is no need of anybody's, and each costs a signature's check and a line in the log. The certificate that it showed last
//!    is none to show again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Inner;
use crate::budget::{Bucket, Rate};
use crate::codec::{decode_canonical, encode};
use crate::error::{Error, Fault};
use crate::pki::{Held, Identity, PkiError};
use crate::session::Renewed;

/// Renewals taken on one connection: three years of one a day.
const MAX_RENEWALS: u32 = 1024;
/// Renewals taken at once: an operator may correct a few mistakes one after the other.
const AT_ONCE: u32 = 8;
/// Seconds between two from then on; nodes renew every few hours.
const EVERY: u32 = 10;

/// Takes a certificate (DER), what was signed, and the signature.
pub(crate) type Take = Box<dyn Fn(&[u8], &[u8], &[u8]) -> Result<(), PkiError> + Send + Sync>;

/// What a connection needs to outlive two certificates.
pub(crate) struct Renewal {
    ours: Identity,
    // From before the handshake on, so that no change falls between.
    changes: watch::Receiver<Arc<Held>>,
    take: Take,
    begun: Instant,
    taken: Mutex<Taken>,
}

/// What was taken of a peer: pure.
struct Taken {
    count: u32,
    /// By a clock on which [`EVERY`] seconds are one.
    rate: Bucket,
    last: Option<blake3::Hash>,
}

impl Taken {
    fn new() -> Taken {
        let rate = Bucket::full(Rate { per_second: 1, burst: AT_ONCE }, Duration::ZERO);
        Taken { count: 0, rate, last: None }
    }

    /// Whether a certificate that is shown `now`, since the connection began, is to be looked at; what is wrong if not (invariant 2).
    fn another(&mut self, now: Duration, certificate: &[u8]) -> Result<(), &'static str> {
        let shown = Some(blake3::hash(certificate));
        if self.count >= MAX_RENEWALS {
            return Err("too many certificates");
        }
        if self.last == shown {
            return Err("a certificate that it has shown already");
        }
        if !self.rate.take(now / EVERY) {
            return Err("certificates renewed too fast");
        }
        self.count += 1;
        self.last = shown;
        Ok(())
    }
}

impl Renewal {
    pub(crate) fn new(ours: Identity, changes: watch::Receiver<Arc<Held>>, take: Take) -> Renewal {
        Renewal { ours, changes, take, begun: Instant::now(), taken: Mutex::new(Taken::new()) }
    }
}

/// Our certificates that are to be shown, one after the other.
pub(super) struct Ours {
    changes: Option<watch::Receiver<Arc<Held>>>,
    /// The one shown last: two changes may be seen as the second, twice.
    shown: Option<Vec<u8>>,
}

impl Ours {
    pub(super) fn of(inner: &Inner) -> Ours {
        Ours { changes: inner.renewal.as_ref().map(|renewal| renewal.changes.clone()), shown: None }
    }

    /// Waits for a certificate to show; for ever where there are none. Can be dropped and called again.
    pub(super) async fn changed(&mut self) {
        if let Some(changes) = &mut self.changes
            && changes.changed().await.is_ok()
        {
            return;
        }
        self.changes = None;
        std::future::pending().await
    }

    /// The message that shows our newest certificate; none where it was shown, where there are none, or where the key cannot sign.
    pub(super) fn message(&mut self, inner: &Inner) -> Option<Vec<u8>> {
        let (renewal, secret) = (inner.renewal.as_ref()?, inner.secret.as_ref()?);
        let identity = renewal.ours.latest();
        let certificate = identity.certificate_der().to_vec();
        if self.shown.as_ref() == Some(&certificate) {
            return None;
        }
        self.shown = Some(certificate.clone());
        match identity.sign(&secret.renewal(inner.direction, &certificate)) {
            Ok(signature) => Some(encode(&Renewed { certificate, signature })),
            Err(why) => {
                tracing::error!(%why, "a renewed certificate cannot be shown");
                None
            }
        }
    }
}

/// Takes the message with which the peer shows its own.
pub(super) fn theirs(inner: &Inner, body: &[u8]) -> Result<(), Error> {
    let Renewed { certificate, signature } =
        decode_canonical(body).map_err(|why| inner.fail(Fault::Header(why)))?;
    let (Some(renewal), Some(secret)) = (&inner.renewal, &inner.secret) else {
        return Err(inner.fail(Fault::CreditStream("a certificate, where there are none")));
    };
    let mut taken = renewal.taken.lock().unwrap_or_else(PoisonError::into_inner);
    let another = taken.another(renewal.begun.elapsed(), &certificate);
    drop(taken);
    another.map_err(|what| inner.fail(Fault::CreditStream(what)))?;
    let signed = secret.renewal(inner.direction.reverse(), &certificate);
    (renewal.take)(&certificate, &signed, &signature).map_err(|why| inner.fail(Fault::Renewal(why)))?;
    inner.counters.renewals.fetch_add(1, Ordering::Relaxed);
    tracing::info!(peer = %inner.peer, "the peer has renewed its certificate");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn renewals_have_a_rate_and_an_end() {
        let (mut taken, ms) = (Taken::new(), Duration::from_millis);
        let mut number = 0_u32;
        let mut next = |taken: &mut Taken, now| {
            number += 1;
            taken.another(now, &number.to_be_bytes())
        };
        for _ in 0..AT_ONCE {
            assert_eq!(next(&mut taken, ms(3)), Ok(()));
        }
        assert_eq!(next(&mut taken, ms(999)), Err("certificates renewed too fast"));
        assert_eq!(next(&mut taken, ms(10_003)), Ok(()));
        assert!(next(&mut taken, ms(19_000)).is_err());
        for later in taken.count..MAX_RENEWALS {
            assert_eq!(next(&mut taken, Duration::from_secs(60 * u64::from(later))), Ok(()));
        }
        assert_eq!(next(&mut taken, Duration::from_secs(1 << 20)), Err("too many certificates"));
    }

    /// Invariant 2.
    #[test]
    fn the_certificate_that_was_shown_last_is_none_to_show() {
        let mut taken = Taken::new();
        assert_eq!(taken.another(Duration::ZERO, b"one"), Ok(()));
        assert_eq!(taken.another(Duration::ZERO, b"one"), Err("a certificate that it has shown already"));
    }
}

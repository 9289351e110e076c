//! Certificates that are renewed while a connection lives: ours is shown, the peer's is taken.
//!
//! Invariants:
//!
//! 1. What is taken is a certificate of this peer, good now, whose key signed for this connection in this direction: nobody
//!    else's, none from another connection, and none without its key.
//! 2. A peer can renew [`MAX_RENEWALS`] times: more is no need of anybody's, and each costs a signature's check.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

use super::Inner;
use crate::codec::{decode_canonical, encode};
use crate::error::{Error, Fault};
use crate::pki::{Held, Identity, PkiError};
use crate::session::Renewed;

/// Renewals taken on one connection: three years of one a day.
const MAX_RENEWALS: u32 = 1024;

/// Takes a certificate (DER), what was signed, and the signature.
pub(crate) type Take = Box<dyn Fn(&[u8], &[u8], &[u8]) -> Result<(), PkiError> + Send + Sync>;

/// What a connection needs to outlive two certificates.
pub(crate) struct Renewal {
    ours: Identity,
    // From before the handshake on, so that no change falls between.
    changes: watch::Receiver<Arc<Held>>,
    take: Take,
    taken: AtomicU32,
}

impl Renewal {
    pub(crate) fn new(ours: Identity, changes: watch::Receiver<Arc<Held>>, take: Take) -> Renewal {
        Renewal { ours, changes, take, taken: AtomicU32::new(0) }
    }
}

/// Our certificates that are to be shown, one after the other.
pub(super) struct Ours(Option<watch::Receiver<Arc<Held>>>);

impl Ours {
    pub(super) fn of(inner: &Inner) -> Ours {
        Ours(inner.renewal.as_ref().map(|renewal| renewal.changes.clone()))
    }

    /// Waits for a certificate to show; for ever where there are none. Can be dropped and called again.
    pub(super) async fn changed(&mut self) {
        if let Some(changes) = &mut self.0
            && changes.changed().await.is_ok()
        {
            return;
        }
        self.0 = None;
        std::future::pending().await
    }
}

/// The message that shows our newest certificate; none where there are none, or where the key cannot sign.
pub(super) fn ours(inner: &Inner) -> Option<Vec<u8>> {
    let (renewal, secret) = (inner.renewal.as_ref()?, inner.secret.as_ref()?);
    let identity = renewal.ours.latest();
    let certificate = identity.certificate_der().to_vec();
    match identity.sign(&secret.renewal(inner.direction, &certificate)) {
        Ok(signature) => Some(encode(&Renewed { certificate, signature })),
        Err(why) => {
            tracing::error!(%why, "a renewed certificate cannot be shown");
            None
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
    if renewal.taken.fetch_add(1, Ordering::Relaxed) >= MAX_RENEWALS {
        return Err(inner.fail(Fault::CreditStream("too many certificates")));
    }
    let signed = secret.renewal(inner.direction.reverse(), &certificate);
    (renewal.take)(&certificate, &signed, &signature).map_err(|why| inner.fail(Fault::Renewal(why)))?;
    inner.counters.renewals.fetch_add(1, Ordering::Relaxed);
    tracing::info!(peer = %inner.peer, "the peer has renewed its certificate");
    Ok(())
}

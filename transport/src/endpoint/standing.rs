//! Whether peers may stay: live connections are looked at again when the list of revoked certificates changes, and every
//! second, because time goes on.
//!
//! Invariants:
//!
//! 1. A connection lives at most [`RECHECK_EVERY`] longer than its peer's welcome: until that peer's certificate is revoked, or has ended and no renewed one was shown,
//!    or until the list that would say so has ended.
//! 2. A file that is followed never takes back what is in force: what cannot be taken from it is logged once, and changes
//!    nothing.
//! 3. Who is cut off is counted as refused, under the cause that a newcomer with the same certificate would be.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::{Endpoint, Inner};
use crate::connection::{Connection, Take, Watched};
use crate::error::CloseCode;
use crate::identity::SpiffeId;
use crate::pki::{Anchors, Chain, Crl, Expected, Installed, PkiError, Trust, read_crl};
use crate::refusals::Cause;

/// Between two looks at live connections and at the file that is followed: a revoked node has no more than this long, and a
/// look costs microseconds.
const RECHECK_EVERY: Duration = Duration::from_secs(1);

/// The connections that live, with what their peers showed.
#[derive(Default)]
pub(super) struct Live {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
}

/// What of a peer's certificate says how long it is good.
#[derive(Clone)]
pub(super) struct Shown {
    chain: Arc<[u8]>,
    not_after: i64,
    // Under which it was checked last.
    anchors: Arc<Anchors>,
}

impl Shown {
    pub(super) fn of(chain_der: &Arc<[u8]>, trust: &Trust) -> Result<Shown, PkiError> {
        let not_after = crate::pki::end(&Chain::split(chain_der)?)?;
        Ok(Shown { chain: Arc::clone(chain_der), not_after, anchors: trust.anchors() })
    }

    /// Whether it is good still.
    fn recheck(&mut self, trust: &Trust, peer: &SpiffeId) -> Result<(), PkiError> {
        trust.recheck(&self.chain, self.not_after, peer)?;
        let anchors = trust.anchors();
        if !Arc::ptr_eq(&self.anchors, &anchors) {
            trust.verify(&self.chain, &Expected::Node(peer.clone()))?;
            self.anchors = anchors;
        }
        Ok(())
    }
}

struct Entry {
    peer: SpiffeId,
    // The first, then every renewed one.
    shown: Mutex<Shown>,
    connection: OnceLock<Watched>,
}

impl Entry {
    fn recheck(&self, trust: &Trust) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(why) = shown.recheck(trust, &self.peer) else { return false };
        // Closing wakes others' tasks: not under the lock.
        drop(shown);
        let Some(connection) = self.connection.get() else { return false };
        let cause = match why {
            PkiError::Revoked { .. } => Cause::Revoked,
            _ => Cause::Certificate,
        };
        let closed = connection.refuse(cause, CloseCode::Untrusted, &why.to_string());
        if closed {
            tracing::warn!(peer = %self.peer, %why, "connection closed: its peer is trusted no longer");
        }
        closed
    }
}

/// A connection's place among those that live, until this is dropped.
pub(super) struct Place {
    live: Arc<Live>,
    number: u64,
    entry: Arc<Entry>,
}

impl Live {
    pub(super) fn place(self: &Arc<Self>, peer: SpiffeId, shown: Shown) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry { peer, shown: Mutex::new(shown), connection: OnceLock::new() });
        self.entries().insert(number, Arc::clone(&entry));
        Place { live: Arc::clone(self), number, entry }
    }

    /// Closes the connections of all who are trusted no longer; says how many.
    fn recheck(&self, trust: &Trust) -> usize {
        // Closing one wakes others' tasks: not under the lock.
        let entries: Vec<Arc<Entry>> = self.entries().values().cloned().collect();
        entries.iter().filter(|entry| entry.recheck(trust)).count()
    }

    /// Whose they are, and until when the certificates that they showed last are good.
    fn peers(&self) -> Vec<(SpiffeId, i64)> {
        let entries: Vec<Arc<Entry>> = self.entries().values().cloned().collect();
        let end = |entry: &Entry| entry.shown.lock().unwrap_or_else(PoisonError::into_inner).not_after;
        entries.iter().map(|entry| (entry.peer.clone(), end(entry))).collect()
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// What its connection is told when its peer is trusted no longer.
    pub(super) fn witness(&self) -> Witness {
        Witness(Arc::clone(&self.entry))
    }

    /// What takes the peer's renewed certificates: a certificate of the same identity, what its key signed, and the signature.
    pub(super) fn renewals(&self, trust: &Trust) -> Take {
        let (entry, trust) = (Arc::clone(&self.entry), trust.clone());
        Box::new(move |certificate, message, signature| {
            let expected = Expected::Node(entry.peer.clone());
            trust.verify_signature(certificate, &expected, message, signature)?;
            let shown = Shown::of(&Arc::from(certificate), &trust)?;
            *entry.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
            Ok(())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.entries().remove(&self.number);
    }
}

/// A place whose connection is about to start.
pub(super) struct Witness(Arc<Entry>);

impl Witness {
    /// The connection has started; whatever was revoked in between counts.
    pub(super) fn started(self, connection: &Connection, trust: &Trust) {
        // Set once: there is one connection to a place.
        self.0.connection.set(connection.watched()).ok();
        self.0.recheck(trust);
    }
}

/// A file that is followed.
pub(super) struct Followed {
    path: PathBuf,
    /// What was read last, or why it could not be.
    last: Result<blake3::Hash, PkiError>,
}

impl Endpoint {
    /// Closes every connection whose peer is trusted no longer, at once instead of within a second; says how many there
    /// were.
    pub fn recheck(&self) -> usize {
        let admission = &self.0.admission;
        admission.live().recheck(admission.identity().trust())
    }

    /// The peer of every connection that lives, and until when (seconds since 1970 UTC) the certificate that it showed last is
    /// good.
    #[must_use]
    pub fn peers(&self) -> Vec<(SpiffeId, i64)> {
        self.0.admission.live().peers()
    }

    /// Puts a list of revoked certificates (PEM or DER) in force at this endpoint, in both directions, and closes the
    /// connections of those in it.
    ///
    /// # Errors
    /// As [`Trust::install_crl`].
    pub fn install_crl(&self, bytes: &[u8]) -> Result<Installed, PkiError> {
        let installed = self.0.admission.identity().trust().install_crl(bytes)?;
        if installed.is_new {
            let Installed { number, revoked, .. } = installed;
            tracing::info!(%number, revoked, "list of revoked certificates in force");
            self.recheck();
        }
        Ok(installed)
    }

    /// The lists of revoked certificates in force at this endpoint, one for each CA that has one.
    #[must_use]
    pub fn crls(&self) -> Vec<Arc<Crl>> {
        self.0.admission.identity().trust().crls()
    }

    /// Puts the list in a file in force, and every later one that is put in the file's place while this endpoint lives.
    ///
    /// # Errors
    /// As [`Trust::install_crl`], or [`PkiError::File`]: a node does not begin without the list that it was told to heed.
    pub fn follow_crl(&self, path: &Path) -> Result<Installed, PkiError> {
        let bytes = read_crl(path)?;
        let installed = self.install_crl(&bytes)?;
        let followed = Followed { path: path.to_owned(), last: Ok(blake3::hash(&bytes)) };
        *self.0.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some(followed);
        Ok(installed)
    }

    /// Invariant 2.
    async fn look_at_file(&self) {
        let slot = || self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = slot().as_ref().map(|followed| followed.path.clone()) else { return };
        let from = path.clone();
        // A file may lie on a network's disk.
        let Ok(read) = tokio::task::spawn_blocking(move || read_crl(&from)).await else { return };
        let now = read.as_ref().map(|bytes| blake3::hash(bytes)).map_err(Clone::clone);
        let is_new = slot().as_mut().is_some_and(|followed| {
            let is_new = followed.path == path && followed.last != now;
            followed.last = if is_new { now } else { followed.last.clone() };
            is_new
        });
        if is_new && let Err(why) = read.and_then(|bytes| self.install_crl(&bytes)) {
            let path = path.display();
            tracing::warn!(%path, %why, "not taken; the list of revoked certificates before it stays in force");
        }
        self.0.admission.count_crl_look();
    }
}

/// The lists (BLAKE3 of each) of which it was said that they end soon, and that they have ended: once is enough.
#[derive(Default)]
struct Told {
    soon: HashSet<blake3::Hash>,
    ended: HashSet<blake3::Hash>,
}

impl Told {
    fn look(&mut self, trust: &Trust) {
        let (now, lists) = (trust.now(), trust.crls());
        let lists: Vec<_> = lists.iter().map(|crl| (blake3::hash(crl.der()), crl)).collect();
        for (hash, crl) in &lists {
            let issuer = crl.issuer_name();
            if crl.expired_since(now).is_some() {
                if self.ended.insert(*hash) {
                    tracing::error!(
                        issuer,
                        "the list of revoked certificates has ended: nobody of this CA is trusted until there is a new one"
                    );
                }
            } else if crl.ends_soon(now) && self.soon.insert(*hash) {
                let end = crl.end();
                tracing::warn!(issuer, end, "the list of revoked certificates ends soon: make the next one");
            }
        }
        for told in [&mut self.soon, &mut self.ended] {
            told.retain(|hash| lists.iter().any(|(listed, _)| listed == hash));
        }
    }
}

/// Looks again and again until the endpoint is gone.
pub(super) async fn keep(endpoint: Weak<Inner>) {
    let mut told = Told::default();
    let mut every = tokio::time::interval(RECHECK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some(inner) = endpoint.upgrade() else { return };
        let endpoint = Endpoint(inner);
        endpoint.look_at_file().await;
        told.look(endpoint.0.admission.identity().trust());
        endpoint.recheck();
    }
}

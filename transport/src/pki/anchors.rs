//! The CAs that a node trusts: one, or a bundle of several while one follows another.
//!
//! Invariants:
//!
//! 1. There are 1 to [`MAX_ANCHORS`], each a CA's that may sign certificates; their bytes have room in a record of the audit log.
//! 2. No more certificates stand between a node's and an anchor than the anchor's own path length allows. webpki sees no more of an
//!    anchor than its name and key, so this is kept here, and errs on the safe side: what comes with a node's certificate counts,
//!    whether it is needed or not, but for anchors themselves.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::chain::{self, Chain, MAX_CHAIN};
use super::{PkiError, certificate};
use crate::config::KeyExchange;

/// Most CAs in a bundle: one that goes, one that comes, and those of trust domains beside it.
pub const MAX_ANCHORS: usize = 16;
/// Most bytes in a bundle: in base64 and together with a chain they fit into a record of the audit log.
pub const MAX_ANCHOR_BYTES: usize = 24 * 1024;

/// CAs that are trusted.
pub(crate) struct Anchors {
    all: Vec<CertificateDer<'static>>,
    // Those that allow so many certificates in between.
    by_length: [Option<Roots>; MAX_CHAIN],
}

/// Some of them, as webpki takes them.
pub(crate) struct Roots {
    pub(crate) store: Arc<RootCertStore>,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
}

/// A chain for webpki: what may stand in between, and which anchors allow that.
pub(crate) struct Path<'a> {
    pub(crate) roots: &'a Roots,
    pub(crate) between: Vec<CertificateDer<'a>>,
}

impl Anchors {
    /// Reads a bundle in PEM.
    ///
    /// # Errors
    /// [`PkiError`] when it is none (invariant 1).
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Anchors, PkiError> {
        Anchors::from_der(&chain::from_pem(pem, MAX_ANCHORS, MAX_ANCHOR_BYTES)?)
    }

    /// Reads a bundle in DER, one certificate after the other.
    ///
    /// # Errors
    /// As [`Anchors::from_pem`].
    pub(crate) fn from_der(bytes: &[u8]) -> Result<Anchors, PkiError> {
        let all = chain::split(bytes, MAX_ANCHORS, MAX_ANCHOR_BYTES)?;
        if all.is_empty() {
            return Err(PkiError::Certificate("there is no CA".to_owned()));
        }
        let most = all.iter().map(|der| certificate::issuer_length(der)).collect::<Result<Vec<_>, _>>()?;
        let all: Vec<_> = all.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let mut by_length = [const { None }; MAX_CHAIN];
        for (length, roots) in (0_u32..).zip(&mut by_length) {
            let allowed = all.iter().zip(&most).filter(|(_, most)| most.is_none_or(|most| length <= most));
            *roots = Roots::of(allowed.map(|(der, _)| der.clone()))?;
        }
        Ok(Anchors { all, by_length })
    }

    /// Their certificates, in DER one after the other.
    pub(crate) fn to_der(&self) -> Vec<u8> {
        self.all.iter().flat_map(|der| der.iter().copied()).collect()
    }

    /// Each certificate.
    pub(crate) fn all(&self) -> &[CertificateDer<'static>] {
        &self.all
    }

    /// Whether a certificate is one of them.
    pub(crate) fn has(&self, der: &[u8]) -> bool {
        self.all.iter().any(|anchor| anchor.as_ref() == der)
    }

    /// Whether one of them is trusted there, too.
    pub(crate) fn meets(&self, other: &Anchors) -> bool {
        self.all.iter().any(|anchor| other.has(anchor))
    }

    /// The same ones.
    pub(crate) fn same(&self, other: &Anchors) -> bool {
        self.all == other.all
    }

    /// What of a chain has to be proved by signatures, and by whose (invariant 2). No signature is looked at.
    ///
    /// # Errors
    /// [`PkiError::Chain`] when no anchor allows so long a chain; [`PkiError::Certificate`] for what is no CA's in it.
    pub(crate) fn path<'a>(&'a self, chain: &Chain<'a>) -> Result<Path<'a>, PkiError> {
        let between: Vec<_> = chain.others().iter().copied().filter(|der| !self.has(der)).collect();
        for der in &between {
            certificate::issuer_length(der)?;
        }
        let too_long = || {
            let what = format!(
                "{} certificates between a node's and a CA's are more than the CA allows",
                between.len()
            );
            PkiError::Chain(what)
        };
        let roots = self.by_length.get(between.len()).and_then(Option::as_ref).ok_or_else(too_long)?;
        Ok(Path { roots, between: between.into_iter().map(CertificateDer::from).collect() })
    }
}

impl Roots {
    fn of(anchors: impl Iterator<Item = CertificateDer<'static>>) -> Result<Option<Roots>, PkiError> {
        let mut store = RootCertStore::empty();
        for der in anchors {
            store.add(der).map_err(|why| PkiError::Certificate(why.to_string()))?;
        }
        if store.is_empty() {
            return Ok(None);
        }
        let store = Arc::new(store);
        let provider = crate::tls::provider(KeyExchange::PqFirst);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), provider)
            .clear_root_hint_subjects()
            .build()
            .map_err(|why| PkiError::Certificate(why.to_string()))?;
        Ok(Some(Roots { store, clients }))
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anchors({})", self.all.len())
    }
}

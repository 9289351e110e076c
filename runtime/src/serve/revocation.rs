//! Clients whose certificates were revoked: lists (RFC 5280, section 5) that are read again whenever their file changes.
//!
//! 1. A client is let in only if a list of each of its issuers is there, is not past its time, and does not name it.
//! 2. The file is looked at in every handshake. One that has changed and cannot be used lets nobody in, until it can be.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use testudo_transport::pki::read_public;

use super::ServeError;
use super::refusal::Told;

/// Checks clients' certificates against a CA and its lists.
pub(super) struct Revocable {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    lists: PathBuf,
    required: bool,
    current: Mutex<(Stamp, Arc<dyn ClientCertVerifier>)>,
    told: Told,
}

/// What changes with a file's content: device, node, size, and time of change.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

impl Revocable {
    /// A verifier with the lists in the file at `lists`, in PEM.
    ///
    /// # Errors
    /// The file cannot be used now.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        lists: &Path,
        required: bool,
    ) -> Result<Revocable, ServeError> {
        let wrong = |why| ServeError::Tls(format!("{}: {why}", lists.display()));
        let stamp = stamp(lists).map_err(wrong)?;
        let verifier = read(&roots, &provider, lists).map_err(wrong)?;
        let current = Mutex::new((stamp, verifier));
        Ok(Revocable { roots, provider, lists: lists.to_owned(), required, current, told: Told::default() })
    }

    fn current(&self) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let stamp = stamp(&self.lists)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != stamp {
            *current = (stamp, read(&self.roots, &self.provider, &self.lists)?);
            tracing::info!(file = %self.lists.display(), "lists of revoked certificates were read again");
        }
        Ok(Arc::clone(&current.1))
    }
}

/// # Errors
/// The file is not there, or cannot be looked at.
pub(super) fn stamp(path: &Path) -> Result<Stamp, String> {
    let found = std::fs::symlink_metadata(path).map_err(|why| why.to_string())?;
    Ok((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

fn read(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    path: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let pem = read_public(path).map_err(|why| why.to_string())?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    // Nothing of the file is said: it may be a key that was named by mistake.
    let lists = lists.map_err(|_| "no revocation lists in PEM, or not whole".to_owned())?;
    if lists.is_empty() {
        return Err("no revocation list in it".to_owned());
    }
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(lists)
        .enforce_revocation_expiration()
        .build()
        .map_err(|why| why.to_string())
}

impl fmt::Debug for Revocable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocable({})", self.lists.display())
    }
}

impl ClientCertVerifier for Revocable {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.current() {
            Ok(verifier) => verifier.verify_client_cert(leaf, intermediates, now),
            Err(why) => {
                if let Some(untold) = self.told.count("revocation", Instant::now()) {
                    let file = self.lists.display();
                    tracing::error!(%file, untold, "no client is let in by certificate: {why}");
                }
                Err(Error::InvalidCertificate(CertificateError::UnknownRevocationStatus))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

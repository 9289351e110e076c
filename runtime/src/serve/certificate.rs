//! The server's own certificate, which follows its files: whoever renews it puts new files in the place of the old.
//!
//! 1. The files are looked at in every handshake, and read when they have changed. What is taken is whole and good: key and
//!    certificate of each other, valid now, under the SPIFFE ID that the one before had, if it had one. Anything else is
//!    logged and changes nothing.
//! 2. A server whose certificate is not valid is not ready.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use testudo_transport::pki::read_secret_file;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

use super::ServeError;
use super::refusal::Told;
use super::revocation::{Stamp, stamp};
use super::tls::{certificates, crypto, spiffe_id};

/// How long files that could not be taken are left alone, unless they change.
const RETRY: Duration = Duration::from_secs(2);

/// The certificate and key in two files.
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: Mutex<Current>,
    told: Told,
}

struct Current {
    /// The files as they were before they were read.
    read: [Stamp; 2],
    certified: Arc<CertifiedKey>,
    /// Files that could not be taken, and when that was.
    fault: Option<([Stamp; 2], Instant)>,
}

impl Certificate {
    /// Reads a chain and its key, both in PEM.
    ///
    /// # Errors
    /// A file cannot be read or others could have written it; the key is not the certificate's; the certificate is not valid
    /// now.
    pub fn load(cert: &Path, key: &Path) -> Result<Certificate, ServeError> {
        let provider = Arc::new(crypto());
        let read = stamps(cert, key)?;
        let certified = Arc::new(read_both(cert, key, &provider)?);
        let current = Mutex::new(Current { read, certified, fault: None });
        Ok(Certificate {
            cert: cert.to_owned(),
            key: key.to_owned(),
            provider,
            current,
            told: Told::default(),
        })
    }

    /// What handshakes are made with.
    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// # Errors
    /// The certificate that handshakes show is not valid at this time.
    pub(super) fn check(&self, at: SystemTime) -> Result<(), String> {
        let certified = self.latest(Instant::now());
        valid_at(certified.end_entity_cert().map_err(|why| why.to_string())?, at)
    }

    /// The newest that could be taken.
    fn latest(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut current = self.current();
        if let Err(why) = self.look(&mut current, now)
            && let Some(untold) = self.told.count("certificate", now)
        {
            tracing::warn!(untold, "the certificate in use stays: {why}");
        }
        Arc::clone(&current.certified)
    }

    fn look(&self, current: &mut Current, now: Instant) -> Result<(), ServeError> {
        let found = stamps(&self.cert, &self.key)?;
        let lately =
            |(at, then): &([Stamp; 2], Instant)| *at == found && now.saturating_duration_since(*then) < RETRY;
        if found == current.read || current.fault.as_ref().is_some_and(lately) {
            return Ok(());
        }
        current.fault = Some((found, now));
        let new = read_both(&self.cert, &self.key, &self.provider)?;
        let name = |certified: &CertifiedKey| certified.cert.first().and_then(|leaf| spiffe_id(leaf));
        if let Some(ours) = name(&current.certified)
            && name(&new).as_ref() != Some(&ours)
        {
            return Err(ServeError::Tls(format!("{}: not a certificate of {ours}", self.cert.display())));
        }
        *current = Current { read: found, certified: Arc::new(new), fault: None };
        tracing::info!(file = %self.cert.display(), "the certificate was read again; handshakes show the new one");
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.cert.display())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.latest(Instant::now()))
    }
}

fn stamps(cert: &Path, key: &Path) -> Result<[Stamp; 2], ServeError> {
    let of = |path: &Path| stamp(path).map_err(|why| ServeError::Tls(format!("{}: {why}", path.display())));
    Ok([of(cert)?, of(key)?])
}

fn read_both(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, ServeError> {
    let wrong = |what: String| ServeError::Tls(what);
    let chain = certificates(cert)?;
    let leaf = chain.first().ok_or_else(|| wrong(format!("{}: no certificate in it", cert.display())))?;
    valid_at(leaf, SystemTime::now()).map_err(|why| wrong(format!("{}: {why}", cert.display())))?;
    // The parser's own words hold the line that it refuses: the whole key, where its line breaks were lost.
    let der = PrivateKeyDer::from_pem_slice(&read_secret_file(key)?)
        .map_err(|_| wrong(format!("{}: no private key in PEM, or not whole", key.display())))?;
    CertifiedKey::from_der(chain, der, provider)
        .map_err(|why| wrong(format!("{} and {}: {why}", cert.display(), key.display())))
}

fn valid_at(der: &[u8], at: SystemTime) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|why| format!("malformed: {why}"))?;
    let validity = certificate.validity();
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let then = i64::try_from(seconds).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    match then.is_some_and(|then| validity.is_valid_at(then)) {
        true => Ok(()),
        false => {
            Err(format!("valid from {} to {}, which is not now", validity.not_before, validity.not_after))
        }
    }
}

#[cfg(test)]
mod tests {
    use testudo_transport::{JobCa, Role, SpiffeId, pki};

    use super::*;
    use crate::rotation::renew_all;

    const HOUR: Duration = Duration::from_secs(3600);

    fn shown(certificate: &Certificate, now: Instant) -> Vec<u8> {
        certificate.latest(now).end_entity_cert().unwrap().to_vec()
    }

    /// Invariants 1 and 2.
    #[test]
    fn renewed_files_are_shown_and_bad_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (home, sister) = (folder.path().join("a"), folder.path().join("b"));
        let ca = JobCa::create("t", "j", 100 * HOUR).unwrap();
        for (node, home) in [("0", &home), ("1", &sister)] {
            ca.issue(&SpiffeId::new("t", "j", Role::Worker, node).unwrap(), HOUR)
                .unwrap()
                .save(home)
                .unwrap();
        }
        let [cert, key] = [pki::CERT_FILE, pki::KEY_FILE].map(|name| home.join(name));
        let certificate = Certificate::load(&cert, &key).unwrap();
        let (start, now) = (Instant::now(), SystemTime::now());
        let first = shown(&certificate, start);
        assert_eq!(shown(&certificate, start), first);
        certificate.check(now).unwrap();
        assert!(certificate.check(now + 2 * HOUR).unwrap_err().contains("not now"));
        renew_all(&ca, std::slice::from_ref(&home), 3 * HOUR).unwrap();
        let second = shown(&certificate, start);
        assert_ne!(second, first);
        certificate.check(now + 2 * HOUR).unwrap();

        // Half of a renewal, another node's files, none.
        std::fs::copy(sister.join(pki::CERT_FILE), &cert).unwrap();
        assert_eq!(shown(&certificate, start), second);
        std::fs::copy(sister.join(pki::KEY_FILE), &key).unwrap();
        assert_eq!(shown(&certificate, start), second);
        std::fs::remove_file(&key).unwrap();
        assert_eq!(shown(&certificate, start), second);
        let third = folder.path().join("c");
        ca.issue(&SpiffeId::new("t", "j", Role::Worker, "0").unwrap(), HOUR).unwrap().save(&third).unwrap();
        // A file system's clock may tick a hundred times a second: within a tick, a file in an old one's place may look like it.
        std::thread::sleep(Duration::from_millis(20));
        for name in [pki::CERT_FILE, pki::KEY_FILE] {
            std::fs::copy(third.join(name), home.join(name)).unwrap();
        }
        assert_ne!(shown(&certificate, start), second, "a good one is taken after all of that");
    }
}

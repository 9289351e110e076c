//! What a node trusts: one CA, one trust domain, one job, and no certificate that the CA has taken back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::crl::{Crl, Serial};
use super::revocation::{Installed, Standing, SystemClock, WallClock};
use super::{PkiError, certificate};
use crate::identity::{Role, SpiffeId};

/// Whose certificate is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this node's.
    Node(SpiffeId),
    /// That of any node of this role.
    Role(Role),
    /// That of any node of the job.
    Member,
}

impl Expected {
    fn check(&self, found: &SpiffeId) -> Result<(), PkiError> {
        let (good, expected) = match self {
            Expected::Node(id) => (id == found, id.to_string()),
            Expected::Role(role) => (*role == found.role(), format!("a {role}'s")),
            Expected::Member => (true, String::new()),
        };
        if good { Ok(()) } else { Err(PkiError::Unexpected { found: found.to_string(), expected }) }
    }
}

/// The CA of one job, for checking what it signed. Cheap to clone; clones share the list of revoked certificates.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    standing: Standing,
    ca: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    trust_domain: String,
    job: String,
}

impl Trust {
    /// Trust in a CA that [`super::JobCa`] made: its certificate names trust domain and job.
    ///
    /// # Errors
    /// [`PkiError`] when the text is not such a certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let ca = certificate::from_pem(pem)?;
        let (trust_domain, job) = certificate::ca_scope(&ca)?;
        Trust::new(ca, trust_domain, job)
    }

    /// Trust in any CA whose certificate is given, for one trust domain and job.
    ///
    /// # Errors
    /// [`PkiError`] when the text is no certificate that can anchor a chain.
    pub fn from_pem_for(pem: &[u8], trust_domain: &str, job: &str) -> Result<Self, PkiError> {
        Trust::new(certificate::from_pem(pem)?, trust_domain.to_owned(), job.to_owned())
    }

    /// [`Trust::from_pem_for`] of a certificate in DER.
    ///
    /// # Errors
    /// [`PkiError`] when the bytes are no certificate that can anchor a chain.
    pub fn from_der_for(der: &[u8], trust_domain: &str, job: &str) -> Result<Self, PkiError> {
        Trust::new(CertificateDer::from(der.to_vec()), trust_domain.to_owned(), job.to_owned())
    }

    /// Trust in any CA, for one trust domain and job.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] when the certificate cannot anchor a chain.
    pub(crate) fn new(
        ca: CertificateDer<'static>,
        trust_domain: String,
        job: String,
    ) -> Result<Self, PkiError> {
        crate::identity::check_scope(&trust_domain, &job)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone()).map_err(|why| PkiError::Certificate(why.to_string()))?;
        let standing = Standing::new(&ca, Arc::new(SystemClock));
        Ok(Trust(Arc::new(Inner { standing, ca, roots: Arc::new(roots), trust_domain, job })))
    }

    /// The same trust by another clock, with a list of revoked certificates of its own, which is not there yet.
    #[must_use]
    pub fn with_clock(&self, clock: Arc<dyn WallClock>) -> Trust {
        let Inner { ca, roots, trust_domain, job, .. } = &*self.0;
        Trust(Arc::new(Inner {
            standing: Standing::new(ca, clock),
            ca: ca.clone(),
            roots: Arc::clone(roots),
            trust_domain: trust_domain.clone(),
            job: job.clone(),
        }))
    }

    /// The same trust with a list of revoked certificates of its own, which is not there yet: each node has one.
    pub(super) fn apart(&self) -> Trust {
        self.with_clock(self.0.standing.clock())
    }

    /// Puts a list of revoked certificates (PEM or DER) in force, for every clone of this. From then on there must be one: when
    /// it ends, nobody is trusted until the next is installed.
    ///
    /// # Errors
    /// [`PkiError::Crl`]; the list that was in force stays so.
    pub fn install_crl(&self, bytes: &[u8]) -> Result<Installed, PkiError> {
        Ok(self.0.standing.install(bytes)?)
    }

    /// The list of revoked certificates in force.
    #[must_use]
    pub fn crl(&self) -> Option<Arc<Crl>> {
        self.0.standing.in_force()
    }

    /// Now, by the clock of this trust.
    pub(crate) fn now(&self) -> UnixTime {
        self.0.standing.now()
    }

    /// Whether a certificate of `id` that was checked before is good still.
    pub(crate) fn recheck(&self, serial: &Serial, not_after: i64, id: &SpiffeId) -> Result<(), PkiError> {
        let since_1970 = i64::try_from(self.now().as_secs()).unwrap_or(i64::MAX);
        if since_1970 > not_after {
            return Err(PkiError::Ended(id.short().to_owned()));
        }
        self.0.standing.check(serial, id.short(), self.now())
    }

    /// The trust domain whose nodes are accepted.
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The job whose nodes are accepted.
    pub fn job(&self) -> &str {
        &self.0.job
    }

    /// The CA's certificate, in DER.
    pub fn ca_der(&self) -> &[u8] {
        &self.0.ca
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.0.roots
    }

    /// Checks a leaf certificate, now: chain, profile, trust domain, job, revocation. Gives whose it is.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn verify(&self, leaf_der: &[u8], expected: &Expected) -> Result<SpiffeId, PkiError> {
        let now = self.now();
        let id = self.verify_at(leaf_der, expected, now)?;
        let serial = Serial::of(leaf_der)?;
        self.0.standing.check(&serial, id.short(), now)?;
        Ok(id)
    }

    /// [`Trust::verify`] at another time, whatever has been revoked by now.
    pub(crate) fn verify_at(
        &self,
        leaf_der: &[u8],
        expected: &Expected,
        now: UnixTime,
    ) -> Result<SpiffeId, PkiError> {
        let chain = |why: rustls::Error| PkiError::Chain(why.to_string());
        let leaf = CertificateDer::from(leaf_der);
        let parsed = ParsedCertificate::try_from(&leaf).map_err(chain)?;
        // No intermediates: the job's CA signs leaves itself, so a longer chain is somebody else's.
        let algorithms = crate::tls::signature_algorithms().all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.0.roots, &[], now, algorithms)
            .map_err(chain)?;
        let id = certificate::leaf_identity(leaf_der)?;
        if id.trust_domain() != self.0.trust_domain || id.job() != self.0.job {
            let expected = format!("a node of job `{}` in `{}`", self.0.job, self.0.trust_domain);
            return Err(PkiError::Unexpected { found: id.to_string(), expected });
        }
        expected.check(&id)?;
        Ok(id)
    }

    /// Checks a leaf certificate as [`Trust::verify`] does, then a signature that its key made over
    /// `message` (ECDSA P-256, SHA-256, ASN.1 DER). Gives whose it is.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn verify_signature(
        &self,
        leaf_der: &[u8],
        expected: &Expected,
        message: &[u8],
        signature: &[u8],
    ) -> Result<SpiffeId, PkiError> {
        let id = self.verify(leaf_der, expected)?;
        check_signature(leaf_der, message, signature, id)
    }

    /// [`Trust::verify_signature`] as of `at`: for what was signed and kept, by a certificate that was good when it was
    /// signed and may have expired or been revoked since. Who holds the key of an expired certificate can say any earlier time.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn verify_signature_at(
        &self,
        leaf_der: &[u8],
        expected: &Expected,
        message: &[u8],
        signature: &[u8],
        at: SystemTime,
    ) -> Result<SpiffeId, PkiError> {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id = self.verify_at(leaf_der, expected, UnixTime::since_unix_epoch(since))?;
        check_signature(leaf_der, message, signature, id)
    }

    /// [`Trust::verify_signature`] as of the moment at which the certificate begins: for what was signed and kept without a
    /// time of its own, and is checked long after. It says who signed, not when.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn verify_signature_kept(
        &self,
        leaf_der: &[u8],
        expected: &Expected,
        message: &[u8],
        signature: &[u8],
    ) -> Result<SpiffeId, PkiError> {
        let begun = certificate::describe_der(leaf_der)?.not_before.max(0).cast_unsigned();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(begun));
        let id = self.verify_at(leaf_der, expected, at)?;
        check_signature(leaf_der, message, signature, id)
    }

    /// Checks a signature by the key of a certificate that was checked before, in the handshake above all. Nothing else of the
    /// certificate is checked here.
    ///
    /// # Errors
    /// [`PkiError`] when it does not hold.
    pub fn verify_with(leaf_der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), PkiError> {
        let id = certificate::leaf_identity(leaf_der)?;
        check_signature(leaf_der, message, signature, id).map(|_| ())
    }
}

fn check_signature(
    leaf_der: &[u8],
    message: &[u8],
    signature: &[u8],
    id: SpiffeId,
) -> Result<SpiffeId, PkiError> {
    let point = certificate::public_point(leaf_der)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(message, signature)
        .map_err(|_| PkiError::Signature(id.to_string()))?;
    Ok(id)
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust(job {} in {})", self.0.job, self.0.trust_domain)
    }
}

//! What a node trusts: its CAs, one trust domain, one job, and no certificate that was taken back.
//!
//! Wherever a certificate is given here in DER, what comes with it may follow: see [`super::Chain`].

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::UnparsedPublicKey;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::anchors::Anchors;
use super::chain::{self, Chain};
use super::crl::Crl;
use super::revocation::{Installed, IssuedBy, RevocationPolicy, Standing, SystemClock, WallClock, issued_in};
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

/// CAs, for checking what they signed for one job. Cheap to clone; clones share the lists of revoked certificates, and the CAs as
/// they change.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    standing: Standing,
    basis: RwLock<Basis>,
    trust_domain: String,
    job: String,
}

/// What changes while a node runs.
#[derive(Clone)]
struct Basis {
    anchors: Arc<Anchors>,
    /// This node's own certificate and what comes with it, in DER; none for whoever only checks.
    own: Arc<[u8]>,
}

impl Trust {
    /// Trust in a CA that [`super::JobCa`] made: its certificate names trust domain and job.
    ///
    /// # Errors
    /// [`PkiError`] when the text is not such a certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let ca = certificate::from_pem(pem)?;
        let (trust_domain, job) = certificate::ca_scope(&ca)?;
        Trust::from_der_for(&ca, &trust_domain, &job)
    }

    /// Trust in every CA of a bundle, for one trust domain and job.
    ///
    /// # Errors
    /// [`PkiError`] when the text is no bundle of CAs that can anchor a chain.
    pub fn from_pem_for(pem: &[u8], trust_domain: &str, job: &str) -> Result<Self, PkiError> {
        Trust::new(Anchors::from_pem(pem)?, trust_domain, job)
    }

    /// [`Trust::from_pem_for`] of certificates in DER, one after the other.
    ///
    /// # Errors
    /// [`PkiError`] when the bytes are no bundle of CAs that can anchor a chain.
    pub fn from_der_for(der: &[u8], trust_domain: &str, job: &str) -> Result<Self, PkiError> {
        Trust::new(Anchors::from_der(der)?, trust_domain, job)
    }

    fn new(anchors: Anchors, trust_domain: &str, job: &str) -> Result<Self, PkiError> {
        crate::identity::check_scope(trust_domain, job)?;
        let basis = Basis { anchors: Arc::new(anchors), own: Arc::from([]) };
        Ok(Trust(Arc::new(Inner {
            standing: Standing::new(Arc::new(SystemClock)),
            basis: RwLock::new(basis),
            trust_domain: trust_domain.to_owned(),
            job: job.to_owned(),
        })))
    }

    /// The same trust by another clock, with lists of revoked certificates of its own, which are not there yet.
    #[must_use]
    pub fn with_clock(&self, clock: Arc<dyn WallClock>) -> Trust {
        self.with(clock, self.basis())
    }

    /// The same trust for the node with this certificate: with lists of revoked certificates of its own, which are not there yet.
    pub(super) fn of_node(&self, own_der: &[u8]) -> Trust {
        self.with(self.0.standing.clock(), Basis { own: Arc::from(own_der), ..self.basis() })
    }

    fn with(&self, clock: Arc<dyn WallClock>, basis: Basis) -> Trust {
        let Inner { trust_domain, job, .. } = &*self.0;
        Trust(Arc::new(Inner {
            standing: Standing::new(clock),
            basis: RwLock::new(basis),
            trust_domain: trust_domain.clone(),
            job: job.clone(),
        }))
    }

    fn basis(&self) -> Basis {
        self.0.basis.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The CAs that are trusted now.
    pub(crate) fn anchors(&self) -> Arc<Anchors> {
        self.basis().anchors
    }

    /// Takes over the certificate that follows this node's own, and the CAs beside it if one of them is trusted already: so one CA
    /// follows another. Says whether the CAs are others than before.
    ///
    /// # Errors
    /// [`PkiError`] when the certificate is not of those CAs, not good, or not of `expected`; then nothing has changed.
    pub(super) fn follow(&self, next: &Trust, own_der: &[u8], expected: &Expected) -> Result<bool, PkiError> {
        let (before, theirs) = (self.anchors(), next.anchors());
        let anchors = if before.meets(&theirs) { theirs } else { Arc::clone(&before) };
        self.verify_under(&anchors, &Chain::split(own_der)?, expected)?;
        let changed = !before.same(&anchors);
        // Live connections are looked at again when these are others, so the same ones stay.
        let anchors = if changed { anchors } else { before };
        *self.0.basis.write().unwrap_or_else(PoisonError::into_inner) =
            Basis { anchors, own: Arc::from(own_der) };
        Ok(changed)
    }

    /// What is done with a certificate whose issuer has no list of revoked ones while others have.
    pub fn set_revocation(&self, policy: RevocationPolicy) {
        self.0.standing.set_policy(policy);
    }

    /// Puts lists of revoked certificates (PEM or DER, one after the other) in force, for every clone of this: each of a CA that is
    /// trusted, or of one that this node's own certificate came through. From then on there must be one: when it ends, nobody whom
    /// that CA certified is trusted until the next is installed.
    ///
    /// # Errors
    /// [`PkiError::Crl`]; the lists that were in force stay so.
    pub fn install_crl(&self, bytes: &[u8]) -> Result<Installed, PkiError> {
        self.with_issuers(|issuers, needed| Ok(self.0.standing.install(bytes, issuers, needed)?))
    }

    /// Reads lists that [`Trust::install_crl`] would take if they were of today, and leaves those in force as they are.
    ///
    /// # Errors
    /// [`PkiError::Crl`].
    pub fn read_crls(&self, bytes: &[u8]) -> Result<Vec<Crl>, PkiError> {
        self.with_issuers(|issuers, _| Ok(Crl::read_all(bytes, issuers)?))
    }

    /// Who may sign lists that are taken, and what of this node's own must be on one.
    fn with_issuers<T>(
        &self,
        act: impl FnOnce(&[&[u8]], &[IssuedBy]) -> Result<T, PkiError>,
    ) -> Result<T, PkiError> {
        let Basis { anchors, own } = self.basis();
        let own = if own.is_empty() { None } else { Some(Chain::split(&own)?) };
        let between = own.iter().flat_map(|chain| chain.others().iter().copied());
        let issuers: Vec<&[u8]> = anchors.all().iter().map(AsRef::as_ref).chain(between).collect();
        let needed = own.as_ref().map(|chain| issued_in(chain, &anchors)).transpose()?;
        act(&issuers, &needed.unwrap_or_default())
    }

    /// The lists of revoked certificates in force, one for each issuer that has one.
    #[must_use]
    pub fn crls(&self) -> Vec<Arc<Crl>> {
        self.0.standing.in_force()
    }

    /// The time of day, by the clock of this trust.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.0.standing.clock().now()
    }

    /// Now, by the clock of this trust.
    pub(crate) fn now(&self) -> UnixTime {
        self.0.standing.now()
    }

    /// Whether a certificate of `id` that was checked before is good still; `not_after` is its end, in seconds since 1970 UTC.
    pub(crate) fn recheck(&self, chain_der: &[u8], not_after: i64, id: &SpiffeId) -> Result<(), PkiError> {
        let now = self.now();
        if i64::try_from(now.as_secs()).unwrap_or(i64::MAX) > not_after {
            return Err(PkiError::Ended(id.short().to_owned()));
        }
        self.check_standing(&self.anchors(), &Chain::split(chain_der)?, id, now)
    }

    fn check_standing(
        &self,
        anchors: &Anchors,
        chain: &Chain<'_>,
        id: &SpiffeId,
        now: UnixTime,
    ) -> Result<(), PkiError> {
        // Most clusters have none, and a look at every connection every second should be cheap.
        if self.0.standing.has_none() {
            return Ok(());
        }
        self.0.standing.check(&issued_in(chain, anchors)?, id.short(), now)
    }

    /// The trust domain whose nodes are accepted.
    pub fn trust_domain(&self) -> &str {
        &self.0.trust_domain
    }

    /// The job whose nodes are accepted.
    pub fn job(&self) -> &str {
        &self.0.job
    }

    /// The CAs' certificates, in DER one after the other.
    pub fn ca_der(&self) -> Vec<u8> {
        self.anchors().to_der()
    }

    /// Checks a leaf certificate, now: chain, profile, trust domain, job, revocation. Gives whose it is.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn verify(&self, leaf_der: &[u8], expected: &Expected) -> Result<SpiffeId, PkiError> {
        self.verify_chain(&Chain::split(leaf_der)?, expected)
    }

    /// [`Trust::verify`] of what TLS has taken apart.
    pub(crate) fn verify_chain(&self, chain: &Chain<'_>, expected: &Expected) -> Result<SpiffeId, PkiError> {
        self.verify_under(&self.anchors(), chain, expected)
    }

    fn verify_under(
        &self,
        anchors: &Anchors,
        chain: &Chain<'_>,
        expected: &Expected,
    ) -> Result<SpiffeId, PkiError> {
        let now = self.now();
        let id = self.prove(anchors, chain, expected, now)?;
        self.check_standing(anchors, chain, &id, now)?;
        Ok(id)
    }

    /// [`Trust::verify`] at another time, whatever has been revoked by now.
    pub(crate) fn verify_at(
        &self,
        leaf_der: &[u8],
        expected: &Expected,
        now: UnixTime,
    ) -> Result<SpiffeId, PkiError> {
        self.prove(&self.anchors(), &Chain::split(leaf_der)?, expected, now)
    }

    /// Everything but revocation.
    fn prove(
        &self,
        anchors: &Anchors,
        chain: &Chain<'_>,
        expected: &Expected,
        now: UnixTime,
    ) -> Result<SpiffeId, PkiError> {
        let broken = |why: rustls::Error| PkiError::Chain(why.to_string());
        let leaf = CertificateDer::from(chain.leaf());
        let path = anchors.path(chain)?;
        let parsed = ParsedCertificate::try_from(&leaf).map_err(broken)?;
        let algorithms = crate::tls::signature_algorithms().all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &path.roots.store, &path.between, now, algorithms)
            .map_err(broken)?;
        let id = certificate::leaf_identity(chain.leaf())?;
        if id.trust_domain() != self.0.trust_domain || id.job() != self.0.job {
            let expected = format!("a node of job `{}` in `{}`", self.0.job, self.0.trust_domain);
            return Err(PkiError::Unexpected { found: id.to_string(), expected });
        }
        for issuer in &path.between {
            certificate::check_issuer_domain(issuer, id.trust_domain())?;
        }
        expected.check(&id)?;
        Ok(id)
    }

    /// Checks a leaf certificate as [`Trust::verify`] does, then a signature that its key made over
    /// `message` (ECDSA over P-256 with SHA-256 or over P-384 with SHA-384, ASN.1 DER). Gives whose it is.
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
        let begun = certificate::describe_der(chain::leaf_of(leaf_der)?)?.not_before.max(0).cast_unsigned();
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
        let id = certificate::leaf_identity(chain::leaf_of(leaf_der)?)?;
        check_signature(leaf_der, message, signature, id).map(|_| ())
    }
}

fn check_signature(
    leaf_der: &[u8],
    message: &[u8],
    signature: &[u8],
    id: SpiffeId,
) -> Result<SpiffeId, PkiError> {
    let (curve, point) = certificate::public_point(chain::leaf_of(leaf_der)?)?;
    UnparsedPublicKey::new(curve.verification(), point)
        .verify(message, signature)
        .map_err(|_| PkiError::Signature(id.to_string()))?;
    Ok(id)
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust(job {} in {})", self.0.job, self.0.trust_domain)
    }
}

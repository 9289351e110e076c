//! The job's certificate authority.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustix::fs::{FlockOperation, flock};

use super::key::SecretKey;
use super::{
    CA_FILE, CA_KEY_FILE, CLOCK_SKEW, CRL_FILE, Crl, Identity, PkiError, Register, Request, Serial, Trust,
    certificate, files,
};
use crate::identity::SpiffeId;

/// Longest validity of any certificate: a run ends before its certificates do, not after a century.
const MAX_VALIDITY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Bytes of serial number: 159 bits of randomness, as much as RFC 5280 section 4.1.2.2 has room for.
const SERIAL_BYTES: usize = 20;

/// The CA of one job: issues every node's certificate, and nothing for any other job.
pub struct JobCa {
    certificate_pem: String,
    trust: Trust,
    key: SecretKey,
    // None for a CA that was made here and has no directory to keep one in.
    directory: Option<PathBuf>,
}

impl JobCa {
    /// Makes a CA with a new key.
    ///
    /// # Errors
    /// [`PkiError::Identity`] when a name is not allowed, [`PkiError::Validity`] for an impossible one.
    pub fn create(trust_domain: &str, job: &str, validity: Duration) -> Result<Self, PkiError> {
        crate::identity::check_scope(trust_domain, job)?;
        let key = SecretKey::generate()?;
        let mut params = ca_params(trust_domain, job)?;
        set_validity(&mut params, validity)?;
        let certificate = params.self_signed(&key).map_err(|_| PkiError::Crypto("signing the CA failed"))?;
        let trust = Trust::from_der_for(certificate.der(), trust_domain, job)?;
        Ok(JobCa { certificate_pem: certificate.pem(), trust, key, directory: None })
    }

    /// Issues a certificate with a new key for one node of this job. A CA that was loaded from its directory keeps
    /// a record of it there.
    ///
    /// # Errors
    /// [`PkiError::NotOurs`] for another job or trust domain, [`PkiError::Validity`] for an impossible one.
    pub fn issue(&self, id: &SpiffeId, validity: Duration) -> Result<Identity, PkiError> {
        let key = SecretKey::generate()?;
        let pem = self.certify(id, &key, validity)?;
        Identity::new(pem, self.certificate_pem.clone(), key, self.trust.clone())
    }

    /// Issues a certificate, in PEM, for the key of a request. Who asks for an identity gets it if the operator names that
    /// identity in `confirmed`, or if it holds a certificate of it, good now, and renews that.
    ///
    /// # Errors
    /// [`PkiError::Request`] when it is neither, or asks for another identity than the operator named, or when the key is
    /// another node's or was revoked; [`PkiError::Revoked`] when the certificate that it renews was; otherwise as for [`JobCa::issue`].
    pub fn issue_for(
        &self,
        request: &Request,
        confirmed: Option<&SpiffeId>,
        validity: Duration,
    ) -> Result<String, PkiError> {
        let _alone = self.alone()?;
        self.issue_alone(request, confirmed, validity)
    }

    /// As [`JobCa::issue_for`], for who is alone with the CA's directory.
    pub(super) fn issue_alone(
        &self,
        request: &Request,
        confirmed: Option<&SpiffeId>,
        validity: Duration,
    ) -> Result<String, PkiError> {
        let (id, key) = (request.id(), request.key_sha256());
        let revoked = self.revoked()?;
        match confirmed {
            Some(named) if named != id => {
                let what = format!("it asks for {}, and not for {}", id.short(), named.short());
                return Err(PkiError::Request(what));
            }
            Some(_) => {}
            None if request.is_renewal() => {
                request.check_renewal(&self.trust)?;
                check_not_revoked(request, revoked.as_ref())?;
            }
            None => {
                let what = format!("nobody confirmed that {} has the key {key}", id.short());
                return Err(PkiError::Request(what));
            }
        }
        let issued = self.register().map_or(Ok(Vec::new()), |register| register.read())?;
        for former in issued.iter().filter(|one| one.spki_sha256 == key) {
            if former.id != *id {
                let what = format!("its key is that of {}; each node has its own", former.id.short());
                return Err(PkiError::Request(what));
            }
            // Whoever has a key that was revoked may have it still.
            let serial = Serial::from_hex(&former.serial)?;
            if revoked.as_ref().is_some_and(|list| list.has(&serial)) {
                let what = format!(
                    "its key was revoked, with certificate {serial}; make a new key with `testudo pki request` in another folder"
                );
                return Err(PkiError::Request(what));
            }
        }
        self.certify(id, &request.key(), validity)
    }

    /// The CA's certificate, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// What its nodes trust.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Writes `ca.pem` and `ca-key.pem` (mode 0600) into a directory of mode 0700. Files that exist already
    /// are not overwritten.
    ///
    /// # Errors
    /// [`PkiError::File`] or [`PkiError::NotPrivate`].
    pub fn save(&self, directory: &Path) -> Result<(), PkiError> {
        files::private_directory(directory)?;
        files::write_secret(&directory.join(CA_KEY_FILE), self.key.to_pem().as_bytes())?;
        files::write_public(&directory.join(CA_FILE), self.certificate_pem.as_bytes())
    }

    /// Reads what [`JobCa::save`] wrote; the key file must be as private as [`Identity::load`] wants it. What it issues
    /// from now on is recorded in the directory's [`Register`].
    ///
    /// # Errors
    /// [`PkiError`] naming the file.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let key = SecretKey::from_pem(&files::read_secret(&directory.join(CA_KEY_FILE))?)?;
        let pem = files::read_public(&directory.join(CA_FILE))?;
        let trust = Trust::from_pem(&pem)?;
        if !key.matches(&certificate::public_key(&trust.ca_der())?) {
            return Err(PkiError::Certificate("it is not of the CA key beside it".to_owned()));
        }
        let certificate_pem = String::from_utf8_lossy(&pem).into_owned();
        Ok(JobCa { certificate_pem, trust, key, directory: Some(directory.to_owned()) })
    }

    fn register(&self) -> Option<Register> {
        self.directory.as_deref().map(Register::of)
    }

    /// A certificate for one node of this job and its key, on record before it is handed out.
    fn certify(
        &self,
        id: &SpiffeId,
        key: &impl rcgen::PublicKeyData,
        validity: Duration,
    ) -> Result<String, PkiError> {
        self.check_ours(id)?;
        let mut params = leaf_params(id.as_str())?;
        set_validity(&mut params, validity)?;
        self.end_with_the_ca(&mut params)?;
        let pem = self.sign(&params, key)?;
        if let Some(register) = self.register() {
            register.record(&certificate::from_pem(pem.as_bytes())?)?;
        }
        Ok(pem)
    }

    /// Waits until nobody else has the CA's directory: who revokes has it too, so that what is certified is in the register
    /// before he looks there, or in the list of who was revoked before we look. Whoever locks a file in it as well does so after.
    pub(super) fn alone(&self) -> Result<Option<File>, PkiError> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let alone = File::open(directory).map_err(|why| files::failed(directory, &why))?;
        flock(&alone, FlockOperation::LockExclusive).map_err(|why| files::failed(directory, &why.into()))?;
        Ok(Some(alone))
    }

    /// The list in the CA's directory, whether or not it has ended.
    fn revoked(&self) -> Result<Option<Crl>, PkiError> {
        let list = self.directory.as_ref().map(|directory| directory.join(CRL_FILE));
        let Some(list) = list.filter(|list| list.exists()) else { return Ok(None) };
        Ok(Some(Crl::read(&files::read_crl(&list)?, &self.trust.ca_der())?))
    }

    /// Refuses what is not of this CA's trust domain and job.
    pub(super) fn check_ours(&self, id: &SpiffeId) -> Result<(), PkiError> {
        if id.trust_domain() == self.trust.trust_domain() && id.job() == self.trust.job() {
            return Ok(());
        }
        Err(PkiError::NotOurs {
            trust_domain: self.trust.trust_domain().to_owned(),
            job: self.trust.job().to_owned(),
            asked: id.to_string(),
        })
    }

    /// No certificate outlives its CA's: nobody looks at the dates of a CA that he trusts.
    fn end_with_the_ca(&self, params: &mut CertificateParams) -> Result<(), PkiError> {
        let (_, end) = certificate::serial_and_end(&self.trust.ca_der())?;
        let end = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(end).unwrap_or(0));
        if end <= params.not_before + CLOCK_SKEW {
            return Err(PkiError::CaEnded);
        }
        params.not_after = params.not_after.min(end);
        Ok(())
    }

    /// The CA as it signs.
    pub(super) fn issuer(&self) -> Result<Issuer<'static, SecretKey>, PkiError> {
        let own = ca_params(self.trust.trust_domain(), self.trust.job())?;
        Ok(Issuer::new(own, self.key.clone()))
    }

    fn sign(&self, params: &CertificateParams, key: &impl rcgen::PublicKeyData) -> Result<String, PkiError> {
        let signed = params.signed_by(key, &self.issuer()?);
        Ok(signed.map_err(|_| PkiError::Crypto("signing a certificate failed"))?.pem())
    }
}

impl fmt::Debug for JobCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobCa({:?})", self.trust)
    }
}

/// A certificate that the CA took back renews nothing.
fn check_not_revoked(request: &Request, list: Option<&Crl>) -> Result<(), PkiError> {
    let (Some(list), Some(former)) = (list, request.former()) else { return Ok(()) };
    let serial = Serial::of(former)?;
    if list.has(&serial) {
        let id = request.id().short().to_owned();
        return Err(PkiError::Revoked { id, serial: serial.to_string() });
    }
    Ok(())
}

fn ca_params(trust_domain: &str, job: &str) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Testudo");
    params.distinguished_name.push(DnType::CommonName, job);
    // The X.509-SVID specification gives a signing certificate the trust domain's ID, without a path.
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(id: &str) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Testudo");
    params.subject_alt_names = vec![uri(id)?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Duration) -> Result<(), PkiError> {
    if validity.is_zero() || validity > MAX_VALIDITY {
        return Err(PkiError::Validity(validity));
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + validity;
    let mut serial = [0; SERIAL_BYTES];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| PkiError::Crypto("no randomness for a serial number"))?;
    // Positive, as RFC 5280 asks, and of full length, so that no two encodings differ in length.
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

pub(super) fn uri(text: &str) -> Result<SanType, PkiError> {
    let name = text.try_into().map_err(|_| PkiError::Certificate(format!("`{text}` is not ASCII")))?;
    Ok(SanType::URI(name))
}

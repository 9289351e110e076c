//! Making lists: what the CA adds to the last one, and signs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Crl, CrlNumber, MAX_CRL, Serial, check_validity};
use crate::pki::{JobCa, PkiError, certificate};

/// A certificate that is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Since when, in seconds since 1970 UTC.
    pub at: i64,
    /// Whether its key is known or feared to be in other hands.
    pub compromised: bool,
}

/// What a CA's next list says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevocationList {
    number: CrlNumber,
    revoked: BTreeMap<Serial, Revocation>,
}

impl RevocationList {
    /// What follows on `last`.
    ///
    /// # Errors
    /// [`PkiError::Crl`] when its number is the highest that there is.
    pub fn after(last: &Crl) -> Result<RevocationList, PkiError> {
        // The bytes were read before: this cannot fail, and a list that is lost must not pass for an empty one.
        let unread =
            |_| PkiError::Crl(super::CrlError::Malformed("the last list cannot be read again".into()));
        let (_, list) = CertificateRevocationList::from_der(last.der()).map_err(unread)?;
        let mut revoked = BTreeMap::new();
        for entry in list.iter_revoked_certificates() {
            let serial = Serial::new(entry.raw_serial()).map_err(PkiError::Crl)?;
            let compromised = entry.reason_code().is_some_and(|(_, code)| code.0 == KEY_COMPROMISE);
            revoked.insert(serial, Revocation { at: entry.revocation_date.timestamp(), compromised });
        }
        Ok(RevocationList { number: last.number(), revoked })
    }

    /// Adds a certificate; says whether it was new. The first date of one stays.
    pub fn revoke(&mut self, serial: Serial, revocation: Revocation) -> bool {
        let is_new = !self.revoked.contains_key(&serial);
        self.revoked.entry(serial).or_insert(revocation);
        is_new
    }

    /// Leaves out what `keep` does not want: certificates that have expired are refused without a list.
    pub fn retain(&mut self, mut keep: impl FnMut(&Serial) -> bool) {
        self.revoked.retain(|serial, _| keep(serial));
    }

    /// How many certificates it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }
}

/// The reason code of RFC 5280, section 5.3.1.
const KEY_COMPROMISE: u8 = 1;

impl JobCa {
    /// Signs a list with the number after its last one, good from now on for `validity`.
    ///
    /// # Errors
    /// [`PkiError::ListValidity`], or [`PkiError::Crl`] when it is longer than nodes read.
    pub fn sign_crl(&self, list: &RevocationList, validity: Duration) -> Result<Crl, PkiError> {
        self.sign_crl_at(list, validity, SystemTime::now())
    }

    /// [`JobCa::sign_crl`] at another time.
    ///
    /// # Errors
    /// As for [`JobCa::sign_crl`].
    pub fn sign_crl_at(
        &self,
        list: &RevocationList,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Crl, PkiError> {
        check_validity(validity)?;
        let number =
            list.number.next().ok_or(PkiError::Crypto("no list can follow on the highest number"))?;
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let revoked_certs = list.revoked.iter().map(|(serial, revocation)| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial.bytes()),
            revocation_time: epoch + Duration::from_secs(revocation.at.max(0).cast_unsigned()),
            reason_code: revocation.compromised.then_some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: epoch + now,
            next_update: epoch + now + validity,
            crl_number: SerialNumber::from_slice(number.bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = params.signed_by(&self.issuer()?);
        let signed = signed.map_err(|_| PkiError::Crypto("signing a list of revoked certificates failed"))?;
        if signed.der().len() > MAX_CRL {
            let what = format!("{} certificates are more than a list has room for", list.len());
            return Err(PkiError::Crl(super::CrlError::Malformed(what)));
        }
        Crl::read(signed.der(), &self.trust().ca_der()).map_err(PkiError::Crl)
    }
}

impl Crl {
    /// The list in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&self.der);
        certificate::pem_block("X509 CRL", &encoded)
    }
}

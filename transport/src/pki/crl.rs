//! Lists of revoked certificates (CRLs): read, checked against the CA, and asked.
//!
//! Invariants:
//!
//! 1. A [`Crl`] was signed by the CA that it was read for, under that CA's name, and says when it ends. What it does not
//!    understand but is told that it must (a critical extension: partial, indirect and delta lists have one) it
//!    refuses.
//! 2. Reading takes memory in proportion to the text, and no text is longer than [`MAX_CRL`].
//! 3. Nothing here reads a clock or a file: times are handed in.
//!
//! Source: RFC 5280, section 5.

mod info;
mod issue;
mod names;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use x509_parser::asn1_rs::{Any, Sequence};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

pub use info::{CrlInfo, describe_crl};
pub use issue::{Revocation, RevocationList};
pub use names::{CrlNumber, Serial};

use info::date;

use super::anchors::{MAX_ANCHOR_BYTES, MAX_ANCHORS};
use super::certificate::not_pem;
use super::{CLOCK_SKEW, PkiError, certificate, chain};

/// Longest list read, in bytes of DER: some 6,000 certificates with a reason each.
pub const MAX_CRL: usize = 240 * 1024;
/// Name of the list in a CA's directory.
pub const CRL_FILE: &str = "crl.pem";

/// Longest PEM text: base64 makes 4 characters of 3 bytes, and breaks lines.
pub(super) const MAX_PEM: usize = MAX_CRL / 3 * 4 + MAX_CRL / 32;
/// Version 2 is written as 1 (section 5.1.2.1).
const VERSION_2: X509Version = X509Version(1);

/// Why a list is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// It is not a list in the profile of RFC 5280.
    #[error("malformed: {0}")]
    Malformed(String),
    /// It names another CA, or another one's key signed it.
    #[error("it is not of the job's CA: {0}")]
    Foreign(&'static str),
    /// This node's own certificate would be left without one.
    #[error(
        "there is none of {0}, which this node's own certificate is of: give its list, too, or set security.revocation = \
         \"short-lived\""
    )]
    Bare(String),
    /// It has ended.
    #[error("it ended {ago} s ago; have the operator make a new one with `testudo pki crl`")]
    Expired {
        /// Seconds since then.
        ago: u64,
    },
    /// It is from the future.
    #[error("it begins only in {ahead} s: this machine's clock is behind, or the operator's is ahead")]
    NotYet {
        /// Seconds until then.
        ahead: u64,
    },
    /// A newer one is in force.
    #[error("its number is {found}, and number {in_force} is in force")]
    Older {
        /// Its number.
        found: CrlNumber,
        /// That of the one in force.
        in_force: CrlNumber,
    },
    /// Two lists with one number: the CA is used in two places at once, or was restored from an old copy.
    #[error("another list with its number, {0}, is in force; make one with a higher number")]
    Twin(CrlNumber),
}

/// A list of revoked certificates, signed by the CA that it was read for.
#[derive(Clone, PartialEq, Eq)]
pub struct Crl {
    der: Vec<u8>,
    /// The CA's name, in DER.
    issuer: Box<[u8]>,
    /// BLAKE3 of the key that signed it: a CA that changes its key has lists by either.
    signer: Option<[u8; 32]>,
    number: CrlNumber,
    this_update: i64,
    next_update: i64,
    revoked: BTreeSet<Serial>,
}

impl Crl {
    /// Reads a list in PEM or DER, and checks that one of the CAs with these certificates (DER, one after the other) signed it.
    /// Whether it is of today is not asked.
    ///
    /// # Errors
    /// [`CrlError::Malformed`] or [`CrlError::Foreign`].
    pub fn read(bytes: &[u8], ca_der: &[u8]) -> Result<Crl, CrlError> {
        let issuers = chain::split(ca_der, MAX_ANCHORS, MAX_ANCHOR_BYTES);
        let issuers = issuers.map_err(|_| CrlError::Foreign("the CA's certificate is malformed"))?;
        let mut lists = Crl::read_all(bytes, &issuers)?;
        match (lists.pop(), lists.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(CrlError::Malformed("it is more than one list".to_owned())),
        }
    }

    /// Reads one or more lists, one after the other, each of one of the CAs with these certificates (DER, one after the other) or of
    /// one in a chain (as [`super::chain_der`] gives it). Whether they are of today is not asked.
    ///
    /// # Errors
    /// As for [`Crl::read`].
    pub fn read_for(bytes: &[u8], ca_der: &[u8], chain_der: Option<&[u8]>) -> Result<Vec<Crl>, CrlError> {
        let malformed = |_| CrlError::Foreign("the CA's certificate is malformed");
        let mut issuers = chain::split(ca_der, MAX_ANCHORS, MAX_ANCHOR_BYTES).map_err(malformed)?;
        if let Some(chain) = chain_der {
            issuers.extend(chain::Chain::split(chain).map_err(malformed)?.others());
        }
        Crl::read_all(bytes, &issuers)
    }

    /// Reads one or more lists, one after the other, each of one of the CAs with these certificates.
    ///
    /// # Errors
    /// As for [`Crl::read`].
    pub(crate) fn read_all(bytes: &[u8], issuers: &[&[u8]]) -> Result<Vec<Crl>, CrlError> {
        let one = |der| {
            Crl::read_if(der, |der, list| {
                let mut why = CrlError::Foreign("it names another issuer");
                for ca in issuers {
                    match check_signature(der, list, ca) {
                        Ok(key) => return Ok(Some(key)),
                        // Of several reasons, the one of the CA that it names.
                        Err(CrlError::Foreign("it names another issuer")) => {}
                        Err(other) => why = other,
                    }
                }
                Err(why)
            })
        };
        to_der(bytes)?.into_iter().map(one).collect()
    }

    fn read_if(
        der: Vec<u8>,
        is_signed: impl FnOnce(&[u8], &CertificateRevocationList<'_>) -> Result<Option<[u8; 32]>, CrlError>,
    ) -> Result<Crl, CrlError> {
        let malformed = |what: &str| CrlError::Malformed(what.to_owned());
        let (rest, list) = CertificateRevocationList::from_der(&der)
            .map_err(|why| CrlError::Malformed(format!("not a list of revoked certificates: {why}")))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        let signer = is_signed(&der, &list)?;
        if list.version() != Some(VERSION_2) {
            return Err(malformed("it is not of version 2"));
        }
        let extensions =
            list.tbs_cert_list.extensions_map().map_err(|_| malformed("an extension stands twice"))?;
        if extensions.values().any(|extension| extension.critical) {
            return Err(malformed(
                "it has a critical extension: lists of all of a CA's certificates have none",
            ));
        }
        let number = list.crl_number().ok_or_else(|| malformed("it has no number"))?;
        let number = CrlNumber::from_bytes(&number.to_bytes_be())
            .ok_or_else(|| malformed("its number is too long"))?;
        let next_update = list.next_update().ok_or_else(|| malformed("it does not say when it ends"))?;
        let mut revoked = BTreeSet::new();
        for entry in list.iter_revoked_certificates() {
            if entry.extensions().iter().any(|extension| extension.critical) {
                return Err(malformed("an entry has a critical extension"));
            }
            revoked.insert(Serial::new(entry.raw_serial())?);
        }
        let (this_update, next_update) = (list.last_update().timestamp(), next_update.timestamp());
        let issuer = list.issuer().as_raw().into();
        drop(list);
        Ok(Crl { der, issuer, signer, number, this_update, next_update, revoked })
    }

    /// The CA's name, in DER.
    pub(super) fn issuer(&self) -> &[u8] {
        &self.issuer
    }

    /// The CA's name, for people.
    #[must_use]
    pub fn issuer_name(&self) -> String {
        certificate::name_text(&self.issuer)
    }

    /// Whether another list is by the same CA with the same key: then the later one counts.
    pub(super) fn is_by_the_signer_of(&self, other: &Crl) -> bool {
        self.issuer == other.issuer && self.signer == other.signer
    }

    /// Whether it may take the place of `current`.
    pub(super) fn check_follows(&self, current: &Crl) -> Result<(), CrlError> {
        match self.number.cmp(&current.number) {
            Ordering::Less => Err(CrlError::Older { found: self.number, in_force: current.number }),
            Ordering::Equal => Err(CrlError::Twin(self.number)),
            Ordering::Greater => Ok(()),
        }
    }

    /// Whether it may be taken at the time `now`: neither over nor of the future, the clocks' difference allowed for.
    ///
    /// # Errors
    /// [`CrlError::Expired`] or [`CrlError::NotYet`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), CrlError> {
        if let Some(ago) = self.expired_since(now) {
            return Err(CrlError::Expired { ago });
        }
        let ahead = self.this_update.saturating_sub(seconds(now)).saturating_sub(skew());
        match u64::try_from(ahead) {
            Ok(ahead) if ahead > 0 => Err(CrlError::NotYet { ahead }),
            _ => Ok(()),
        }
    }

    /// For how many seconds it has been over, the clocks' difference allowed for; `None` while it is not.
    #[must_use]
    pub fn expired_since(&self, now: UnixTime) -> Option<u64> {
        let over = seconds(now).saturating_sub(self.next_update);
        if over > skew() { u64::try_from(over).ok() } else { None }
    }

    /// Whether less than a quarter of its time is left.
    #[must_use]
    pub fn ends_soon(&self, now: UnixTime) -> bool {
        let life = self.next_update.saturating_sub(self.this_update);
        self.next_update.saturating_sub(seconds(now)) < life / 4
    }

    /// Whether it has a certificate.
    #[must_use]
    pub fn has(&self, serial: &Serial) -> bool {
        self.revoked.contains(serial)
    }

    /// The certificates in it, by serial number.
    pub fn revoked(&self) -> impl Iterator<Item = &Serial> {
        self.revoked.iter()
    }

    /// How many certificates are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether no certificate is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> CrlNumber {
        self.number
    }

    /// When it was made, in seconds since 1970 UTC.
    #[must_use]
    pub fn this_update(&self) -> i64 {
        self.this_update
    }

    /// When it ends, in seconds since 1970 UTC.
    #[must_use]
    pub fn next_update(&self) -> i64 {
        self.next_update
    }

    /// Its bytes.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

impl Crl {
    /// When it ends, for a person.
    #[must_use]
    pub fn end(&self) -> String {
        date(self.next_update)
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crl(number {}, {} revoked)", self.number, self.revoked.len())
    }
}

/// The lists in a text or in DER, one after the other.
pub(super) fn to_der(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    // DER of a list is a SEQUENCE; no text begins so.
    const SEQUENCE: u8 = 0x30;
    let too_long =
        |most: usize| CrlError::Malformed(format!("{} bytes; at most {most} are read", bytes.len()));
    if bytes.first() == Some(&SEQUENCE) {
        if bytes.len() > MAX_CRL {
            return Err(too_long(MAX_CRL));
        }
        let all = chain::split(bytes, MAX_ANCHORS, MAX_CRL);
        let all =
            all.map_err(|why| CrlError::Malformed(format!("not a list of revoked certificates: {why}")))?;
        return Ok(all.into_iter().map(<[u8]>::to_vec).collect());
    }
    if bytes.len() > MAX_PEM {
        return Err(too_long(MAX_PEM));
    }
    let bad = |why: &str| CrlError::Malformed(format!("not PEM of an X509 CRL: {why}"));
    let mut all = Vec::new();
    for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
        if all.len() == MAX_ANCHORS {
            return Err(CrlError::Malformed(format!("more than {MAX_ANCHORS} lists")));
        }
        all.push(der.map_err(|why| bad(not_pem(&why)))?.as_ref().to_vec());
    }
    if all.is_empty() { Err(bad("there is none in it")) } else { Ok(all) }
}

/// Invariant 1: issuer, algorithm, signature. Gives the hash of the key.
fn check_signature(
    der: &[u8],
    list: &CertificateRevocationList<'_>,
    ca_der: &[u8],
) -> Result<[u8; 32], CrlError> {
    let (_, ca) = X509Certificate::from_der(ca_der)
        .map_err(|_| CrlError::Foreign("the CA's certificate is malformed"))?;
    if list.issuer().as_raw() != ca.subject().as_raw() {
        return Err(CrlError::Foreign("it names another issuer"));
    }
    let may_sign = ca.key_usage().ok().flatten().is_none_or(|usage| usage.value.crl_sign());
    if !may_sign {
        return Err(CrlError::Foreign("the CA's certificate does not let it sign lists"));
    }
    let malformed = |_| CrlError::Malformed("its frame is not DER".to_owned());
    if list.tbs_cert_list.signature != list.signature_algorithm || list.signature_value.unused_bits != 0 {
        return Err(CrlError::Malformed("it names two signature algorithms".to_owned()));
    }
    // The algorithms are compared as bytes, as webpki does: there is one encoding of each.
    let (_, frame) = Sequence::from_der(der).map_err(malformed)?;
    let (after_list, _) = Any::from_der(&frame.content).map_err(malformed)?;
    let (_, algorithm) = Any::from_der(after_list).map_err(malformed)?;
    let (_, key) = Sequence::from_der(ca.public_key().raw).map_err(malformed)?;
    let (_, key_algorithm) = Any::from_der(&key.content).map_err(malformed)?;
    let known = crate::tls::signature_algorithms().all.iter().find(|known| {
        known.signature_alg_id().as_ref() == algorithm.data
            && known.public_key_alg_id().as_ref() == key_algorithm.data
    });
    let known = known.ok_or(CrlError::Foreign("its signature algorithm is not the CA key's"))?;
    let point = &ca.public_key().subject_public_key.data;
    known
        .verify_signature(point, list.tbs_cert_list.as_ref(), &list.signature_value.data)
        .map_err(|_| CrlError::Foreign("its signature is not the CA's"))?;
    Ok(*blake3::hash(ca.public_key().raw).as_bytes())
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn skew() -> i64 {
    i64::try_from(CLOCK_SKEW.as_secs()).unwrap_or(i64::MAX)
}

/// The longest validity of a list: one that is good for longer protects nobody, since what it lacks is found out too late.
pub const LONGEST_CRL: Duration = Duration::from_secs(366 * 24 * 3600);

/// A validity that a list may have.
pub(super) fn check_validity(validity: Duration) -> Result<(), PkiError> {
    if validity.is_zero() || validity > LONGEST_CRL { Err(PkiError::ListValidity(validity)) } else { Ok(()) }
}

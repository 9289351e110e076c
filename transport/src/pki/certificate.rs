//! Reading certificates: the profile of a leaf, and what `testudo pki show` prints.

use std::fmt;

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use super::anchors::{Anchors, MAX_ANCHOR_BYTES, MAX_ANCHORS};
use super::key::Curve;
use super::{Chain, PkiError, Serial, chain};
use crate::identity::SpiffeId;

/// Longest certificate read, in bytes: as long as a whole chain may be.
const MAX_CERTIFICATE: usize = super::chain::MAX_CHAIN_BYTES;

const URI_SCHEME: &str = "spiffe://";

/// Reads the identity from a leaf certificate and checks its profile (not its chain).
///
/// # Errors
/// [`PkiError::Certificate`] or [`PkiError::Identity`], saying what of the profile is missing.
pub(crate) fn leaf_identity(der: &[u8]) -> Result<SpiffeId, PkiError> {
    let certificate = parse(der)?;
    let refuse = |what: &str| Err(PkiError::Certificate(what.to_owned()));
    let malformed = |_| PkiError::Certificate("malformed extension".to_owned());

    if certificate.basic_constraints().map_err(malformed)?.is_some_and(|found| found.value.ca) {
        return refuse("it is a CA's, which cannot be a node's");
    }
    match certificate.key_usage().map_err(malformed)? {
        Some(usage) if usage.critical && usage.value.digital_signature() => {
            if usage.value.key_cert_sign() || usage.value.crl_sign() {
                return refuse("its key usage allows signing certificates");
            }
        }
        _ => return refuse("it lacks a critical key usage of digitalSignature"),
    }
    match certificate.extended_key_usage().map_err(malformed)? {
        Some(usage) if usage.value.server_auth && usage.value.client_auth => {}
        _ => return refuse("its extended key usage is not both serverAuth and clientAuth"),
    }
    if Curve::of(&certificate).is_none() {
        let what = format!("its key is {}; nodes have ECDSA on P-256 or P-384", key_type(&certificate));
        return refuse(&what);
    }
    let uris = uri_names(&certificate)?;
    match uris.as_slice() {
        [uri] => Ok(SpiffeId::parse(uri)?),
        [] => refuse("it has no URI name"),
        _ => refuse("it has more than one URI name"),
    }
}

/// Reads trust domain and job from a CA certificate of ours: its one URI name and its common name.
pub(crate) fn ca_scope(der: &[u8]) -> Result<(String, String), PkiError> {
    let certificate = parse(der)?;
    let refuse = |what: &str| PkiError::Certificate(what.to_owned());
    let constraints = certificate.basic_constraints().map_err(|_| refuse("malformed extension"))?;
    if !constraints.is_some_and(|found| found.value.ca) {
        return Err(refuse("it is not a CA's"));
    }
    let uris = uri_names(&certificate)?;
    let [uri] = uris.as_slice() else {
        return Err(refuse("the CA does not have exactly one URI name"));
    };
    let trust_domain =
        uri.strip_prefix(URI_SCHEME).ok_or_else(|| refuse("the CA's URI is not a SPIFFE ID"))?;
    let job = common_name(certificate.subject()).ok_or_else(|| refuse("the CA has no common name"))?;
    crate::identity::check_scope(trust_domain, &job)?;
    Ok((trust_domain.to_owned(), job))
}

/// The SubjectPublicKeyInfo of a certificate, in DER.
pub(crate) fn public_key(der: &[u8]) -> Result<Vec<u8>, PkiError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// The curve of a key for ECDSA, and its bit string alone: an uncompressed point.
pub(crate) fn public_point(der: &[u8]) -> Result<(Curve, Vec<u8>), PkiError> {
    let certificate = parse(der)?;
    let curve = Curve::of(&certificate).ok_or(PkiError::Crypto("the key is on no curve that is known"))?;
    Ok((curve, certificate.public_key().subject_public_key.data.to_vec()))
}

/// How many CAs may stand below this one, whose certificate must be a CA's that may sign certificates; `None` for any number.
///
/// # Errors
/// [`PkiError::Certificate`] when it is no such CA's.
pub(crate) fn issuer_length(der: &[u8]) -> Result<Option<u32>, PkiError> {
    let certificate = parse(der)?;
    let refuse = |what: &str| PkiError::Certificate(what.to_owned());
    let malformed = |_| refuse("malformed extension");
    let constraints = certificate.basic_constraints().map_err(malformed)?;
    let Some(constraints) = constraints.filter(|found| found.value.ca) else {
        return Err(refuse("it stands where a CA's belongs, and is not a CA's"));
    };
    let usage = certificate.key_usage().map_err(malformed)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(refuse("it is a CA's whose key usage does not allow signing certificates"));
    }
    Ok(constraints.value.path_len_constraint)
}

/// Refuses a CA's certificate that is of another SPIFFE trust domain than the nodes below it (X509-SVID, section 4.1); most name
/// none.
pub(crate) fn check_issuer_domain(der: &[u8], trust_domain: &str) -> Result<(), PkiError> {
    let uris = uri_names(&parse(der)?)?;
    match uris.iter().find_map(|uri| uri.strip_prefix(URI_SCHEME)).filter(|found| *found != trust_domain) {
        Some(other) => Err(PkiError::Certificate(format!("its CA is of `{other}`, not of `{trust_domain}`"))),
        None => Ok(()),
    }
}

/// Who signed a certificate (the name in DER), and its serial number: what lists of revoked certificates go by.
pub(crate) fn issued_by(der: &[u8]) -> Result<(Box<[u8]>, Serial), PkiError> {
    let certificate = parse(der)?;
    Ok((certificate.issuer().as_raw().into(), Serial::new(certificate.raw_serial())?))
}

/// The subject, in DER.
#[cfg(test)]
pub(crate) fn subject(der: &[u8]) -> Result<Box<[u8]>, PkiError> {
    Ok(parse(der)?.subject().as_raw().into())
}

/// The certificates of a node's PEM text, in DER one after the other: its own, and those between it and a CA's.
///
/// # Errors
/// [`PkiError`] when there is none in it, or more than a chain may have.
pub fn chain_der(pem: &[u8]) -> Result<Vec<u8>, PkiError> {
    chain::from_pem(pem, chain::MAX_CHAIN, chain::MAX_CHAIN_BYTES)
}

/// The certificates of a bundle in DER, each by itself.
///
/// # Errors
/// [`PkiError::Certificate`] when it is none.
pub fn bundle_parts(der: &[u8]) -> Result<Vec<&[u8]>, PkiError> {
    chain::split(der, MAX_ANCHORS, MAX_ANCHOR_BYTES)
}

/// A name in DER, for people.
pub(crate) fn name_text(der: &[u8]) -> String {
    X509Name::from_der(der)
        .map_or_else(|_| "a name that cannot be read".to_owned(), |(_, name)| name.to_string())
}

/// Serial number (the bytes of the DER integer) and end of validity (seconds since 1970 UTC).
pub(crate) fn serial_and_end(der: &[u8]) -> Result<(Vec<u8>, i64), PkiError> {
    let certificate = parse(der)?;
    Ok((certificate.raw_serial().to_vec(), certificate.validity().not_after.timestamp()))
}

/// When the first certificate of a chain ends, in seconds since 1970 UTC.
pub(crate) fn end(chain: &Chain<'_>) -> Result<i64, PkiError> {
    let all = std::iter::once(chain.leaf()).chain(chain.others().iter().copied());
    let mut end = i64::MAX;
    for der in all {
        end = end.min(serial_and_end(der)?.1);
    }
    Ok(end)
}

/// Reads the first certificate of a PEM text.
pub(crate) fn from_pem(pem: &[u8]) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem)
        .map_err(|why| PkiError::Pem { what: "certificate", why: not_pem(&why).into() })
}

/// What is wrong with a PEM text. The parser's own words quote the line that it refuses, which is the whole key where line breaks were
/// lost, and the key that was named by mistake where a certificate was asked for: these quote nothing.
pub(super) fn not_pem(why: &pem::Error) -> &'static str {
    match why {
        pem::Error::NoItemsFound => "there is none in it",
        pem::Error::MissingSectionEnd { .. } => "an END line is missing",
        pem::Error::IllegalSectionStart { .. } => {
            "a BEGIN line does not stand by itself: were line breaks lost?"
        }
        pem::Error::Base64Decode(_) => "what stands between its lines is not base64",
        _ => "it is not in PEM",
    }
}

/// A certificate in PEM.
pub(crate) fn to_pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", &base64::engine::general_purpose::STANDARD.encode(der))
}

/// A block of PEM (RFC 7468) around text in Base64.
pub(super) fn pem_block(label: &str, encoded: &str) -> String {
    const LINE: usize = 64;
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem + &format!("-----END {label}-----\n")
}

/// The bytes of the first certificate of a PEM text.
///
/// # Errors
/// [`PkiError::Pem`] when there is none.
pub fn certificate_der(pem: &[u8]) -> Result<Vec<u8>, PkiError> {
    Ok(from_pem(pem)?.to_vec())
}

/// What a person wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The URI name: a node's identity, or a CA's trust domain.
    pub id: String,
    /// Whether it is a CA's.
    pub is_ca: bool,
    /// Serial number, in hexadecimal.
    pub serial: String,
    /// Valid from, in seconds since 1970 UTC.
    pub not_before: i64,
    /// Valid until, in seconds since 1970 UTC.
    pub not_after: i64,
    /// The same two, as text.
    pub validity: String,
    /// The key's algorithm and curve.
    pub key_type: String,
    /// Whose it is by its subject: a CA's name, which its certificates and its lists have as their issuer's.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// BLAKE3 of the DER bytes, in hexadecimal.
    pub fingerprint: String,
}

impl fmt::Display for CertificateInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "identity     {}", self.id)?;
        writeln!(f, "kind         {}", if self.is_ca { "certificate authority" } else { "node" })?;
        writeln!(f, "serial       {}", self.serial)?;
        writeln!(f, "valid        {}", self.validity)?;
        writeln!(f, "key          {}", self.key_type)?;
        writeln!(f, "issuer       {}", self.issuer)?;
        write!(f, "fingerprint  {}", self.fingerprint)
    }
}

/// Describes the first certificate of a PEM text; says nothing of whether to trust it.
///
/// # Errors
/// [`PkiError`] when there is no certificate in it.
pub fn describe(pem: &[u8]) -> Result<CertificateInfo, PkiError> {
    describe_der(&from_pem(pem)?)
}

/// [`describe`] of every certificate of a PEM text, as many as a bundle may have.
///
/// # Errors
/// [`PkiError`] when there is none in it, or one that cannot be read.
pub fn describe_all(pem: &[u8]) -> Result<Vec<CertificateInfo>, PkiError> {
    let bytes = chain::from_pem(pem, MAX_ANCHORS, MAX_ANCHOR_BYTES)?;
    chain::split(&bytes, MAX_ANCHORS, MAX_ANCHOR_BYTES)?.into_iter().map(describe_der).collect()
}

/// The certificates of a PEM text, in DER one after the other: a bundle of CAs, as [`super::Trust::ca_der`] gives it.
///
/// # Errors
/// [`PkiError`] when there is none in it, or one that is not a CA's.
pub fn bundle_der(pem: &[u8]) -> Result<Vec<u8>, PkiError> {
    Anchors::from_pem(pem).map(|anchors| anchors.to_der())
}

/// [`describe`] of a certificate in DER.
pub(crate) fn describe_der(der: &[u8]) -> Result<CertificateInfo, PkiError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    let is_ca = certificate.basic_constraints().ok().flatten().is_some_and(|found| found.value.ca);
    Ok(CertificateInfo {
        id: uri_names(&certificate)?.join(", "),
        is_ca,
        serial: certificate.raw_serial_as_string(),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        validity: format!("{} to {}", text(validity.not_before), text(validity.not_after)),
        key_type: key_type(&certificate),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        fingerprint: blake3::hash(der).to_hex().to_string(),
    })
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(PkiError::Certificate(format!(
            "{} bytes; at most {MAX_CERTIFICATE} are read",
            der.len()
        )));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(PkiError::Certificate("bytes follow it".to_owned())),
        Err(why) => Err(PkiError::Certificate(format!("malformed: {why}"))),
    }
}

fn uri_names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, PkiError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PkiError::Certificate("malformed subject alternative name".to_owned()))?;
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    Ok(names.map(|names| names.value.general_names.iter().filter_map(uri).collect()).unwrap_or_default())
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> Option<String> {
    let mut names = name.iter_common_name();
    let first = names.next()?.as_str().ok()?.to_owned();
    if names.next().is_some() { None } else { Some(first) }
}

fn key_type(certificate: &X509Certificate<'_>) -> String {
    if let Some(curve) = Curve::of(certificate) {
        return curve.to_string();
    }
    let algorithm = &certificate.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
    match (algorithm.algorithm.to_id_string().as_str(), curve.as_deref()) {
        (EC, Some(other)) => format!("ECDSA on curve {other}"),
        (other, _) => format!("algorithm {other}"),
    }
}

const EC: &str = "1.2.840.10045.2.1";

impl Curve {
    /// That of a certificate's key; `None` for a key of another kind.
    fn of(certificate: &X509Certificate<'_>) -> Option<Curve> {
        let algorithm = &certificate.public_key().algorithm;
        let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok())?.to_id_string();
        match (algorithm.algorithm.to_id_string().as_str(), curve.as_str()) {
            (EC, "1.2.840.10045.3.1.7") => Some(Curve::P256),
            (EC, "1.3.132.0.34") => Some(Curve::P384),
            _ => None,
        }
    }
}

fn text(time: ASN1Time) -> String {
    time.to_rfc2822().unwrap_or_else(|_| format!("{} s since 1970", time.timestamp()))
}

//! Reading certificates: the profile of a leaf, and what `testudo pki show` prints.

use std::fmt;

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::PkiError;
use crate::identity::SpiffeId;

/// Longest certificate read, in bytes: ours have about 600.
const MAX_CERTIFICATE: usize = 16 * 1024;

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

/// The public key's bit string alone: an uncompressed point for ECDSA.
pub(crate) fn public_point(der: &[u8]) -> Result<Vec<u8>, PkiError> {
    Ok(parse(der)?.public_key().subject_public_key.data.to_vec())
}

/// Serial number (the bytes of the DER integer) and end of validity (seconds since 1970 UTC).
pub(crate) fn serial_and_end(der: &[u8]) -> Result<(Vec<u8>, i64), PkiError> {
    let certificate = parse(der)?;
    Ok((certificate.raw_serial().to_vec(), certificate.validity().not_after.timestamp()))
}

/// Reads the first certificate of a PEM text.
pub(crate) fn from_pem(pem: &[u8]) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem)
        .map_err(|why| PkiError::Pem { what: "certificate", why: why.to_string() })
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
    const EC: &str = "1.2.840.10045.2.1";
    const P256: &str = "1.2.840.10045.3.1.7";
    let algorithm = &certificate.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
    match (algorithm.algorithm.to_id_string().as_str(), curve.as_deref()) {
        (EC, Some(P256)) => "ECDSA P-256".to_owned(),
        (EC, Some(other)) => format!("ECDSA on curve {other}"),
        (other, _) => format!("algorithm {other}"),
    }
}

fn text(time: ASN1Time) -> String {
    time.to_rfc2822().unwrap_or_else(|_| format!("{} s since 1970", time.timestamp()))
}

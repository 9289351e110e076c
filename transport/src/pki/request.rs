//! Certificate signing requests (PKCS#10, RFC 2986): what leaves a node in place of its key.
//!
//! Invariants:
//!
//! 1. A request that was read proves possession: it is signed by the key that it asks to have certified.
//! 2. It holds one ECDSA P-256 key and one identity, and gives nothing else away to be copied into a certificate.
//! 3. A renewal also holds the certificate that it renews and a signature of that certificate's key over the request, which
//!    [`Request::check_renewal`] checks: who held the identity asks for it again.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::certificate::not_pem;
use super::key::SecretKey;
use super::{Expected, Identity, PkiError, Trust, ca, certificate, register};
use crate::identity::SpiffeId;

/// Longest request read, in bytes: ours have about 300.
const MAX_REQUEST: usize = 16 * 1024;
/// What comes before the point in a P-256 key's SubjectPublicKeyInfo (RFC 5480): there is one encoding in DER.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of an uncompressed P-256 point, and its first one (SEC 1, section 2.3.3).
const POINT: (usize, u8) = (65, 0x04);
/// The AlgorithmIdentifier of ECDSA with SHA-256 (RFC 5758), in DER.
const ECDSA_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// Goes before a request in what the former key signs, so that the signature says nothing else.
const RENEWAL_DOMAIN: &[u8] = b"testudo pki renewal v1\0";
const PROOF_BEGIN: &str = "-----BEGIN TESTUDO RENEWAL PROOF-----\n";
const PROOF_END: &str = "-----END TESTUDO RENEWAL PROOF-----\n";

/// A request for a certificate, checked as far as it can be without knowing any CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    der: Vec<u8>,
    id: SpiffeId,
    point: Vec<u8>,
    renewal: Option<Renewal>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Renewal {
    former: Vec<u8>,
    signature: Vec<u8>,
}

/// The key of a request, as it goes into a certificate.
pub(super) struct RequestedKey<'a>(&'a [u8]);

impl Request {
    /// A request for `id`, signed by its key; a renewal if the node's former identity is given.
    pub(super) fn make(
        key: &SecretKey,
        id: &SpiffeId,
        former: Option<&Identity>,
    ) -> Result<Request, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Testudo");
        params.subject_alt_names = vec![ca::uri(id.as_str())?];
        let request =
            params.serialize_request(key).map_err(|_| PkiError::Crypto("signing a request failed"))?;
        let mut request = Request::from_der(request.der())?;
        if let Some(former) = former {
            let signature = former.sign(&renewal_message(&request.der))?;
            request.renewal = Some(Renewal {
                former: super::chain::leaf_of(former.certificate_der())?.to_vec(),
                signature,
            });
        }
        Ok(request)
    }

    /// Reads a request in PEM, of whatever program made it; with a renewal's proof if there is one.
    ///
    /// # Errors
    /// [`PkiError::Request`] saying what is wrong with it, or [`PkiError::Pem`].
    pub fn from_pem(pem: &[u8]) -> Result<Request, PkiError> {
        let bad = |why: &str| PkiError::Pem { what: "certificate request", why: why.into() };
        let mut found = CertificateSigningRequestDer::pem_slice_iter(pem);
        let der =
            found.next().ok_or_else(|| bad("there is none in it"))?.map_err(|why| bad(not_pem(&why)))?;
        match found.next() {
            None => {}
            Some(Ok(_)) => return Err(refuse("more than one in a file")),
            Some(Err(why)) => return Err(bad(not_pem(&why))),
        }
        let mut request = Request::from_der(&der)?;
        let text = String::from_utf8_lossy(pem).replace("\r\n", "\n");
        if let Some((_, rest)) = text.split_once(PROOF_BEGIN) {
            let (encoded, _) =
                rest.split_once(PROOF_END).ok_or_else(|| refuse("its renewal proof does not end"))?;
            let encoded: String = encoded.split_whitespace().collect();
            let signature =
                STANDARD.decode(encoded).map_err(|_| refuse("its renewal proof is not Base64"))?;
            let former = CertificateDer::from_pem_slice(pem)
                .map_err(|_| refuse("it has a renewal proof without the certificate that it renews"))?;
            request.renewal = Some(Renewal { former: former.to_vec(), signature });
        }
        Ok(request)
    }

    /// Reads a request in DER.
    ///
    /// # Errors
    /// [`PkiError::Request`] saying what is wrong with it.
    pub fn from_der(der: &[u8]) -> Result<Request, PkiError> {
        if der.len() > MAX_REQUEST {
            return Err(PkiError::Request(format!("{} bytes; at most {MAX_REQUEST} are read", der.len())));
        }
        let Ok(([], parsed)) = X509CertificationRequest::from_der(der) else {
            return Err(refuse("malformed, or bytes follow it"));
        };
        let info = &parsed.certification_request_info;
        let point = info.subject_pki.raw.strip_prefix(&P256_SPKI).unwrap_or_default();
        if (point.len(), point.first()) != (POINT.0, Some(&POINT.1)) {
            return Err(refuse("its key is not of ECDSA P-256, uncompressed"));
        }
        // What the signature does not cover has one encoding.
        let signature = value(0x03, &[&[0], &*parsed.signature_value.data].concat());
        if value(0x30, &[info.raw, &ECDSA_SHA256, &signature].concat()) != der {
            return Err(refuse("it is not in DER, or not signed by ECDSA with SHA-256"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(info.raw, &parsed.signature_value.data)
            .map_err(|_| refuse("its signature is not of the key in it: it proves possession of nothing"))?;
        let id = SpiffeId::parse(&asked_name(&parsed)?)?;
        Ok(Request { der: der.to_vec(), id, point: point.to_vec(), renewal: None })
    }

    /// Who it asks to be.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The request itself, in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of its key's SubjectPublicKeyInfo, in lower-case hexadecimal: the name of a key that two people can compare.
    pub fn key_sha256(&self) -> String {
        let spki = [&P256_SPKI[..], &self.point].concat();
        register::spki_sha256(&spki)
    }

    /// Whether it says that it renews a certificate; whether it may is for [`Request::check_renewal`] to say.
    pub fn is_renewal(&self) -> bool {
        self.renewal.is_some()
    }

    /// In PEM; a renewal with the former certificate and its key's signature behind the request.
    pub fn to_pem(&self) -> String {
        let mut pem = block("CERTIFICATE REQUEST", &self.der);
        if let Some(renewal) = &self.renewal {
            pem += &block("CERTIFICATE", &renewal.former);
            pem += &block("TESTUDO RENEWAL PROOF", &renewal.signature);
        }
        pem
    }

    /// Invariant 3: whether the holder of a certificate of the same identity, good now, asks for this.
    ///
    /// # Errors
    /// [`PkiError`] saying which check failed.
    pub fn check_renewal(&self, trust: &Trust) -> Result<(), PkiError> {
        let renewal = self.renewal.as_ref().ok_or_else(|| refuse("it renews nothing"))?;
        let expected = Expected::Node(self.id.clone());
        let message = renewal_message(&self.der);
        trust.verify_signature(&renewal.former, &expected, &message, &renewal.signature).map(|_| ())
    }

    /// The certificate that it renews, in DER.
    pub(super) fn former(&self) -> Option<&[u8]> {
        self.renewal.as_ref().map(|renewal| renewal.former.as_slice())
    }

    pub(super) fn key(&self) -> RequestedKey<'_> {
        RequestedKey(&self.point)
    }
}

impl rcgen::PublicKeyData for RequestedKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// The one name that is asked for. Whatever else is asked for is left out, but what would contradict it is refused.
fn asked_name(request: &X509CertificationRequest<'_>) -> Result<String, PkiError> {
    let mut names = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(found) => names.extend(&found.general_names),
            ParsedExtension::BasicConstraints(found) if found.ca => {
                return Err(refuse("it asks to be a CA's"));
            }
            _ => {}
        }
    }
    match names.as_slice() {
        [GeneralName::URI(uri)] => Ok((*uri).to_owned()),
        [] => Err(refuse("it asks for no identity (a URI as subject alternative name)")),
        _ => Err(refuse("it asks for other names than one identity (a URI as subject alternative name)")),
    }
}

/// A DER value: tag, length, content.
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let short = length.iter().position(|byte| *byte != 0).and_then(|at| length.get(at..)).unwrap_or(&[0]);
    let mut value = vec![tag];
    if content.len() >= 0x80 {
        value.push(0x80 | u8::try_from(short.len()).unwrap_or(0x7f));
    }
    value.extend_from_slice(short);
    value.extend_from_slice(content);
    value
}

fn renewal_message(der: &[u8]) -> Vec<u8> {
    [RENEWAL_DOMAIN, der].concat()
}

fn block(label: &str, der: &[u8]) -> String {
    certificate::pem_block(label, &STANDARD.encode(der))
}

fn refuse(what: &str) -> PkiError {
    PkiError::Request(what.to_owned())
}

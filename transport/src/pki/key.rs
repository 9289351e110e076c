//! ECDSA keys: one type for TLS, for issuing certificates and for signing.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{SignatureAlgorithm, SignatureScheme};
use zeroize::{Zeroize, Zeroizing};

use super::PkiError;
use super::certificate::not_pem;

const NOT_A_KEY: &str = "the private key is not an ECDSA P-256 or P-384 key in PKCS#8; `openssl pkcs8 -topk8 -nocrypt` writes \
                         other forms of such a key so";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----\n";
const PEM_END: &str = "-----END PRIVATE KEY-----\n";
/// Base64 characters on a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// A curve that nodes' keys may be on, with the hash that TLS 1.3 ties to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Curve {
    /// P-256 with SHA-256: what is made here.
    P256,
    /// P-384 with SHA-384: what other CAs' nodes may have.
    P384,
}

impl Curve {
    const ALL: [Curve; 2] = [Curve::P256, Curve::P384];

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }

    /// Checks signatures in ASN.1 DER.
    pub(crate) fn verification(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Curve::P256 => &ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &ECDSA_P384_SHA384_ASN1,
        }
    }

    /// What TLS 1.3 calls its signatures.
    pub(crate) fn scheme(self) -> SignatureScheme {
        match self {
            Curve::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Curve::P384 => SignatureScheme::ECDSA_NISTP384_SHA384,
        }
    }

    /// The signatures of every curve, the preferred one first.
    pub(crate) fn schemes() -> Vec<SignatureScheme> {
        Curve::ALL.map(Curve::scheme).to_vec()
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Curve::P256 => "ECDSA P-256",
            Curve::P384 => "ECDSA P-384",
        })
    }
}

/// A private key. Clones share it; the last one clears it.
#[derive(Clone)]
pub(crate) struct SecretKey(Arc<Inner>);

struct Inner {
    curve: Curve,
    pkcs8: Zeroizing<Vec<u8>>,
    // The library clears its own copy.
    pair: EcdsaKeyPair,
}

impl SecretKey {
    /// A new key from the operating system's random source.
    pub(crate) fn generate() -> Result<Self, PkiError> {
        let failed = |_| PkiError::Crypto("generating an ECDSA P-256 key failed");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let document = pair.to_pkcs8v1().map_err(failed)?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok(SecretKey(Arc::new(Inner { curve: Curve::P256, pkcs8, pair })))
    }

    /// Reads PKCS#8 in PEM.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let no_pem = |why: rustls::pki_types::pem::Error| PkiError::Pem {
            what: "private key",
            why: format!("no PKCS#8 (BEGIN PRIVATE KEY): {}", not_pem(&why)),
        };
        let mut key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(no_pem)?;
        let pkcs8 = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        key.zeroize();
        let read = |curve: Curve| Some((curve, EcdsaKeyPair::from_pkcs8(curve.signing(), &pkcs8).ok()?));
        let (curve, pair) = Curve::ALL.into_iter().find_map(read).ok_or(PkiError::Crypto(NOT_A_KEY))?;
        Ok(SecretKey(Arc::new(Inner { curve, pkcs8, pair })))
    }

    /// PKCS#8 in PEM.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        let encoded = base64(&self.0.pkcs8);
        let breaks = encoded.len() / PEM_LINE + 1;
        // Sized once: a string that grows leaves copies of the key behind.
        let mut pem =
            Zeroizing::new(String::with_capacity(PEM_BEGIN.len() + encoded.len() + breaks + PEM_END.len()));
        pem.push_str(PEM_BEGIN);
        let mut rest: &str = &encoded;
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(PEM_LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = tail;
        }
        pem.push_str(PEM_END);
        pem
    }

    /// An ECDSA signature over the curve's hash, in ASN.1 DER.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        let signature = self.0.pair.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| PkiError::Crypto("signing failed"))?.as_ref().to_vec())
    }

    /// Whether a SubjectPublicKeyInfo is this key's.
    pub(crate) fn matches(&self, spki_der: &[u8]) -> bool {
        let ours = self.0.pair.public_key().as_der();
        ours.is_ok_and(|ours| ours.as_ref() == spki_der)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

impl rcgen::PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.0.curve {
            Curve::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Curve::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }
}

impl rcgen::SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        SecretKey::sign(self, message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

impl rustls::sign::SigningKey for SecretKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let ours = self.0.curve.scheme();
        offered.contains(&ours).then(|| Box::new(self.clone()) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        SecretKey::sign(self, message).map_err(|why| rustls::Error::General(why.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.curve.scheme()
    }
}

/// Base64 (RFC 4648, section 4) without a table, so that no memory access depends on the key.
fn base64(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    for group in bytes.chunks(3) {
        let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = if place <= group.len() { base64_digit(bits >> (18 - 6 * place) & 63) } else { '=' };
            text.push(digit);
        }
    }
    text
}

fn base64_digit(value: u32) -> char {
    // Each term adds the distance between two runs of the alphabet when `value` is past the first one.
    let past = |limit: u32| (limit.wrapping_sub(value + 1) >> 31) & 1;
    let code = value + 65 + past(26) * 6 - past(52) * 75 - past(62) * 15 + past(63) * 3;
    char::from_u32(code).unwrap_or('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_matches_the_rfcs_examples() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()).as_str(), coded);
        }
        let alphabet: String = (0..64).map(base64_digit).collect();
        assert_eq!(alphabet, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
    }

    #[test]
    fn a_key_survives_pem() {
        let key = SecretKey::generate().unwrap();
        let again = SecretKey::from_pem(key.to_pem().as_bytes()).unwrap();
        assert_eq!(*key.0.pkcs8, *again.0.pkcs8);
        assert!(again.matches(key.0.pair.public_key().as_der().unwrap().as_ref()));
        assert!(!SecretKey::generate().unwrap().matches(key.0.pair.public_key().as_der().unwrap().as_ref()));
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(SecretKey::from_pem(certificate), Err(PkiError::Pem { .. })));
        assert!(matches!(SecretKey::from_pem(b""), Err(PkiError::Pem { .. })));
        let garbage = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(SecretKey::from_pem(garbage), Err(PkiError::Crypto(_))));
    }

    /// A key whose line breaks were lost is one line, which no message shows, be it as text or as numbers; nor one that was named where
    /// something else is read.
    #[test]
    fn what_is_not_in_pem_is_not_shown() {
        let pem = SecretKey::generate().unwrap().to_pem();
        let whole = pem.as_str().trim_end();
        let cut = &whole[..whole.len() - 4];
        for text in
            [whole.replace('\n', "\\n"), whole.replace('\n', " "), whole.replace('\n', ""), cut.into()]
        {
            let bytes = text.as_bytes();
            let said = [
                SecretKey::from_pem(bytes).err().map(|why| why.to_string()),
                super::super::certificate::from_pem(bytes).err().map(|why| why.to_string()),
                super::super::chain::from_pem(bytes, 4, 1 << 16).err().map(|why| why.to_string()),
                super::super::Request::from_pem(bytes).err().map(|why| why.to_string()),
                super::super::crl::to_der(bytes).err().map(|why| why.to_string()),
            ];
            for said in said {
                let said = said.unwrap();
                let [start, first] = ["45, 45, 45", "77, 73, 71"];
                assert!(!said.contains(start) && !said.contains(first) && !said.contains("MIG"), "{said}");
            }
        }
    }

    /// Invariant 3 of the module above.
    #[test]
    fn debug_output_has_no_key() {
        assert_eq!(format!("{:?}", SecretKey::generate().unwrap()), "SecretKey(..)");
    }
}

//! Keys that sign models: ECDSA on P-256 with SHA-256, in PEM.
//!
//! 1. A private key is read only from a regular file that its owner alone can read, is cleared from memory, and is shown by
//!    no `Debug`.
//! 2. A public key has one spelling: SubjectPublicKeyInfo with the named curve and an uncompressed point (RFC 5480). So
//!    its hint, the hex SHA-256 of its PEM text, is one too.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::{PemObject, SectionKind};
use testudo_transport::PkiError;
use testudo_transport::pki::{read_public, read_secret, write_public, write_secret};
use zeroize::{Zeroize, Zeroizing};

use super::{SigningError, hex, write_whole};

/// SubjectPublicKeyInfo of P-256, up to the uncompressed point (RFC 5480, section 2).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point: 4, x, y.
const POINT: usize = 65;
const UNCOMPRESSED: u8 = 4;
/// Base64 characters on a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

/// A private key.
pub struct SigningKey {
    // The library clears its memory.
    pair: EcdsaKeyPair,
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: [u8; POINT],
}

impl SigningKey {
    /// A new key, from the operating system's random source.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn generate() -> Result<SigningKey, SigningError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| PkiError::Crypto("generating an ECDSA P-256 key failed"))?;
        Ok(SigningKey { pair })
    }

    /// Makes a key and writes it to `path`, with the public key beside it ([`public_path`]). Neither file may be there.
    ///
    /// # Errors
    /// When a file is there already, or cannot be written.
    pub fn create(path: &Path) -> Result<SigningKey, SigningError> {
        let key = SigningKey::generate()?;
        let public = public_path(path);
        if public.symlink_metadata().is_ok() {
            return Err(PkiError::File { path: public, what: "it is there already".to_owned() }.into());
        }
        write_secret(path, key.to_pem()?.as_bytes())?;
        key.public().save(&public)?;
        Ok(key)
    }

    /// Reads a key from a private file, in PKCS#8 or SEC 1 form.
    ///
    /// # Errors
    /// A file that others can read, a link, or no P-256 key.
    pub fn load(path: &Path) -> Result<SigningKey, SigningError> {
        SigningKey::from_pem(&path.display().to_string(), &read_secret(path)?)
    }

    fn from_pem(what: &str, pem: &[u8]) -> Result<SigningKey, SigningError> {
        let refused = |why| SigningError::Key { what: what.to_owned(), why };
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, mut der) = section.map_err(|_| refused("is not in PEM form"))?;
            let parsed = match kind {
                SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
                    EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der)
                        .map_err(|_| refused("is not a private key on the curve P-256"))
                }
                SectionKind::RsaPrivateKey => Err(refused("is an RSA key")),
                _ => continue,
            };
            der.zeroize();
            return Ok(SigningKey { pair: parsed? });
        }
        Err(refused("holds no private key in plain PEM (an encrypted one is not taken)"))
    }

    /// PKCS#8 in PEM.
    fn to_pem(&self) -> Result<Zeroizing<String>, SigningError> {
        let document = self.pair.to_pkcs8v1().map_err(|_| PkiError::Crypto("the key cannot be written"))?;
        Ok(pem("PRIVATE KEY", document.as_ref()))
    }

    /// Its public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut point = [0; POINT];
        let found = self.pair.public_key().as_ref();
        if found.len() == POINT {
            point.copy_from_slice(found);
        }
        PublicKey { point }
    }

    /// An ECDSA signature over SHA-256, in ASN.1 DER.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SigningError> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        Ok(signature.map_err(|_| PkiError::Crypto("signing failed"))?.as_ref().to_vec())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().hint())
    }
}

impl PublicKey {
    /// Reads a key in PEM from a file that nobody but its owner, this user or root, can write.
    ///
    /// # Errors
    /// A file that others can write, a link, or no P-256 key.
    pub fn load(path: &Path) -> Result<PublicKey, SigningError> {
        PublicKey::from_pem(&path.display().to_string(), &read_public(path)?)
    }

    fn from_pem(what: &str, pem: &[u8]) -> Result<PublicKey, SigningError> {
        let refused = |why| SigningError::Key { what: what.to_owned(), why };
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|_| refused("is not in PEM form"))?;
            match kind {
                SectionKind::PublicKey => {
                    let point: Option<[u8; POINT]> =
                        der.strip_prefix(&SPKI_PREFIX).and_then(|point| point.try_into().ok());
                    return match point {
                        Some(point @ [UNCOMPRESSED, ..]) => Ok(PublicKey { point }),
                        _ => Err(refused("is not a public key on the curve P-256")),
                    };
                }
                SectionKind::PrivateKey | SectionKind::EcPrivateKey => {
                    return Err(refused(
                        "is a private key; give its public key, and keep this one to yourself",
                    ));
                }
                _ => {}
            }
        }
        Err(refused("holds no public key in PEM"))
    }

    /// Writes the key in PEM to a new file that all can read.
    ///
    /// # Errors
    /// When it is there already, or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), SigningError> {
        Ok(write_public(path, self.to_pem().as_bytes())?)
    }

    /// As [`PublicKey::save`], in place of a file that is there, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace(&self, path: &Path) -> Result<(), SigningError> {
        write_whole(path, self.to_pem().as_bytes()).map_err(|source| SigningError::File {
            path: path.to_owned(),
            what: "cannot be written",
            source,
        })
    }

    /// SubjectPublicKeyInfo in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI_PREFIX[..], &self.point].concat()).to_string()
    }

    /// What bundles call this key: the hex SHA-256 of [`PublicKey::to_pem`].
    #[must_use]
    pub fn hint(&self) -> String {
        hex(digest(&SHA256, self.to_pem().as_bytes()).as_ref())
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.hint())
    }
}

/// Where [`SigningKey::create`] puts the public key of the key in `path`: `KEY.pub.pem` beside `KEY.pem`.
#[must_use]
pub fn public_path(path: &Path) -> PathBuf {
    path.with_extension("pub.pem")
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let mut rest = encoded.as_str();
    // Sized once: a string that grows leaves copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(
        encoded.len()
            + encoded.len() / PEM_LINE
            + 2 * label.len()
            + "-----BEGIN -----\n-----END -----\n\n".len(),
    ));
    for part in ["-----BEGIN ", label, "-----\n"] {
        text.push_str(part);
    }
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(PEM_LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    for part in ["-----END ", label, "-----\n"] {
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl ecparam -name NAME -genkey -noout`, with nothing behind it.
    const SEC1_P256: &str = include_str!("testdata/sec1-p256.pem");
    const SEC1_P384: &str = include_str!("testdata/sec1-p384.pem");
    /// The first key's public half, by `openssl ec -pubout`, and its SHA-256, by `sha256sum`.
    const PUBLIC: &str = include_str!("testdata/p256.pub.pem");
    const HINT: &str = include_str!("testdata/p256.hint");

    #[test]
    fn the_public_half_and_its_hint_are_as_others_make_them() {
        let key = SigningKey::from_pem("key", SEC1_P256.as_bytes()).unwrap();
        assert_eq!(key.public().to_pem(), PUBLIC);
        assert_eq!(key.public().hint(), HINT.trim());
        assert_eq!(PublicKey::from_pem("key", PUBLIC.as_bytes()).unwrap(), key.public());
        let signature = key.sign(b"this").unwrap();
        assert!(key.public().verifies(b"this", &signature));
        assert!(!key.public().verifies(b"that", &signature));
        assert!(!SigningKey::generate().unwrap().public().verifies(b"this", &signature));
    }

    #[test]
    fn a_key_survives_its_file_which_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let made = SigningKey::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::load(&path).unwrap().public(), made.public());
        assert_eq!(PublicKey::load(&folder.path().join("key.pub.pem")).unwrap(), made.public());
        assert!(SigningKey::create(&path).is_err(), "a key is never overwritten");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(SigningKey::load(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let link = folder.path().join("link.pem");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(SigningKey::load(&link).unwrap_err().to_string().contains("symbolic link"));
    }

    #[test]
    fn other_keys_are_refused_with_a_reason() {
        let why = |pem: &str| SigningKey::from_pem("key", pem.as_bytes()).unwrap_err().to_string();
        assert!(why(SEC1_P384).contains("not a private key on the curve P-256"));
        assert!(why(PUBLIC).contains("no private key"));
        assert!(why("").contains("no private key"));
        let why = |pem: &str| PublicKey::from_pem("key", pem.as_bytes()).unwrap_err().to_string();
        assert!(why(SEC1_P256).contains("is a private key"));
        assert!(why("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").contains("P-256"));
        assert!(why("").contains("no public key"));
    }

    #[test]
    fn debug_output_has_no_key() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public().hint()));
    }
}

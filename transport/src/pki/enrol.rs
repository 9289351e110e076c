//! A node's side of getting a certificate: the key is made here and stays here; what leaves is a request, and what comes
//! back is checked before it takes effect.
//!
//! Invariants:
//!
//! 1. No private key is returned, and none is written anywhere but to a file of mode 0600 in the node's own directory.
//! 2. At every moment of [`install`], and after a crash in it, the directory holds a whole identity if it held one before:
//!    either `key.pem` or `next-key.pem` is of `cert.pem`, and [`Identity::load`] takes the one that is.
//! 3. What root puts there belongs to whom what was there belonged to: a node that root has started, and that runs as another user,
//!    can read what is renewed.

use std::path::Path;

use super::key::SecretKey;
use super::{
    CA_FILE, CERT_FILE, Expected, Identity, KEY_FILE, MAX_CHAIN, MAX_CHAIN_BYTES, NEXT_KEY_FILE, PkiError,
    RENEWAL_FILE, REQUEST_FILE, Request, Trust, certificate, chain, files,
};
use crate::identity::SpiffeId;

/// Makes a key for `id` in `directory` (`key.pem`), and the request to have it certified (`request.pem`).
///
/// # Errors
/// [`PkiError::File`] when there is a key already, or something cannot be written.
pub fn request(directory: &Path, id: &SpiffeId) -> Result<Request, PkiError> {
    files::node_directory(directory)?;
    let key = SecretKey::generate()?;
    let request = Request::make(&key, id, None)?;
    files::place_secret(&directory.join(KEY_FILE), key.to_pem().as_bytes())?;
    files::replace_public(&directory.join(REQUEST_FILE), request.to_pem().as_bytes())?;
    Ok(request)
}

/// Asks for a new certificate of the identity in `directory`, which must be good now and signs the request (`renewal.pem`):
/// for a new key, which waits in `next-key.pem` until [`install`] gets its certificate, or for the same key.
///
/// # Errors
/// As for [`Identity::load`], or when something cannot be written.
pub fn renew(directory: &Path, same_key: bool) -> Result<Request, PkiError> {
    files::node_directory(directory)?;
    let former = Identity::load(directory)?;
    let key = if same_key { former.key().clone() } else { SecretKey::generate()? };
    let request = Request::make(&key, former.id(), Some(&former))?;
    if !same_key {
        files::replace_secret(&directory.join(NEXT_KEY_FILE), key.to_pem().as_bytes())?;
    }
    files::replace_public(&directory.join(RENEWAL_FILE), request.to_pem().as_bytes())?;
    Ok(request)
}

/// Puts a certificate that was issued for a request of [`request`] or [`renew`] into the node's directory, together with its
/// CA's if that is not there yet. Everything is checked first; a running node that watches the directory takes it over.
///
/// # Errors
/// [`PkiError`] saying what does not fit; then nothing has changed.
pub fn install(directory: &Path, cert_pem: &[u8], ca_pem: Option<&[u8]>) -> Result<Identity, PkiError> {
    files::node_directory(directory)?;
    let [cert, key, next, ca] =
        [CERT_FILE, KEY_FILE, NEXT_KEY_FILE, CA_FILE].map(|name| directory.join(name));
    let chain = chain::from_pem(cert_pem, MAX_CHAIN, MAX_CHAIN_BYTES)?;
    let leaf = chain::leaf_of(&chain)?;
    let id = certificate::leaf_identity(leaf)?;
    let is_next = key_of(leaf, &next)?;
    if !is_next && !key_of(leaf, &key)? {
        return Err(PkiError::OtherKey);
    }
    let held = if ca.exists() { Some(files::read_public(&ca)?) } else { None };
    let trusted = match (&held, ca_pem) {
        (Some(held), Some(given)) if certificate::bundle_der(held)? != certificate::bundle_der(given)? => {
            let what = "another CA is trusted here; take this file away first if that is meant".to_owned();
            return Err(PkiError::File { path: ca, what });
        }
        (Some(held), _) => held.as_slice(),
        (None, Some(given)) => given,
        (None, None) => {
            let what = "the CA's certificate is not there; give it too".to_owned();
            return Err(PkiError::File { path: ca, what });
        }
    };
    let trust = Trust::from_pem_for(trusted, id.trust_domain(), id.job())?;
    trust.verify(&chain, &Expected::Node(id.clone()))?;
    if cert.exists() {
        let found = certificate::leaf_identity(&certificate::from_pem(&files::read_public(&cert)?)?)?;
        if found != id {
            return Err(PkiError::Unexpected { found: id.to_string(), expected: found.to_string() });
        }
    }
    if held.is_none() {
        files::replace_public(&ca, trusted)?;
    }
    // Invariant 2: the certificate first; until the key has followed it, its key is found under the other name.
    files::replace_public(&cert, cert_pem)?;
    if is_next {
        files::rename(&next, &key)?;
    }
    Identity::load(directory)
}

/// Whether the key in a file, if there is one, is that of a certificate.
fn key_of(leaf_der: &[u8], path: &Path) -> Result<bool, PkiError> {
    if !path.exists() {
        return Ok(false);
    }
    let key = SecretKey::from_pem(&files::read_secret(path)?)?;
    Ok(key.matches(&certificate::public_key(leaf_der)?))
}

//! A node's identity: its certificate with what comes with it, its key, and the CAs that it trusts.
//!
//! A certificate ends before a long run does. What has an [`Identity`] goes on with the certificate that it was made with;
//! what must go on beyond that asks for [`Identity::latest`]: the one that [`Identity::succeed`] put in its place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::chain::{self, Chain, MAX_CHAIN, MAX_CHAIN_BYTES};
use super::key::SecretKey;
use super::{
    CA_FILE, CERT_FILE, Expected, KEY_FILE, NEXT_KEY_FILE, PkiError, Trust, WallClock, certificate, files,
};
use crate::identity::SpiffeId;

/// Certificate, key and trusted CA of one node. Clones share them.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    held: Arc<Held>,
    ca_pem: String,
    trust: Trust,
    // What followed it: shared with every clone and every successor.
    newest: Arc<watch::Sender<Arc<Held>>>,
}

/// A certificate with its key.
pub(crate) struct Held {
    id: SpiffeId,
    // The node's certificate first.
    shown: Vec<CertificateDer<'static>>,
    // The same, one after the other.
    chain: Vec<u8>,
    certificate_pem: String,
    key: SecretKey,
}

impl Identity {
    /// Puts the parts together, and checks that they belong together.
    pub(super) fn new(
        certificate_pem: String,
        ca_pem: String,
        key: SecretKey,
        trust: Trust,
    ) -> Result<Self, PkiError> {
        let chain = chain::from_pem(certificate_pem.as_bytes(), MAX_CHAIN, MAX_CHAIN_BYTES)?;
        let parts = Chain::split(&chain)?;
        let id = certificate::leaf_identity(parts.leaf())?;
        if !key.matches(&certificate::public_key(parts.leaf())?) {
            return Err(PkiError::OtherKey);
        }
        let shown = std::iter::once(parts.leaf()).chain(parts.others().iter().copied());
        let shown = shown.map(|der| CertificateDer::from(der.to_vec())).collect();
        let trust = trust.of_node(&chain);
        let held = Arc::new(Held { id, shown, chain, certificate_pem, key });
        let newest = Arc::new(watch::Sender::new(Arc::clone(&held)));
        Ok(Identity(Arc::new(Inner { held, ca_pem, trust, newest })))
    }

    /// Who this is.
    pub fn id(&self) -> &SpiffeId {
        &self.0.held.id
    }

    /// Lets `next`, another certificate of the same identity, good now, follow this one: for [`Identity::latest`] of every clone,
    /// and for every endpoint and connection that has one. It is under a CA that this trusts, or under one that `next` trusts
    /// beside one that this trusts, too: then all that `next` trusts are trusted from now on. Says whether anything is new.
    ///
    /// # Errors
    /// [`PkiError`] saying why it cannot; then nothing has changed.
    pub fn succeed(&self, next: &Identity) -> Result<bool, PkiError> {
        let expected = Expected::Node(self.id().clone());
        let are_others = self.trust().follow(next.trust(), next.certificate_der(), &expected)?;
        if are_others {
            tracing::info!("the CAs that are trusted are others than before");
        }
        Ok(are_others
            | self.0.newest.send_if_modified(|newest| {
                let is_new = newest.chain != next.0.held.chain;
                if is_new {
                    *newest = Arc::clone(&next.0.held);
                }
                is_new
            }))
    }

    /// This identity with the newest certificate that it was given; it trusts what this one trusts.
    #[must_use]
    pub fn latest(&self) -> Identity {
        let held = Arc::clone(&self.0.newest.borrow());
        let Inner { ca_pem, trust, newest, .. } = &*self.0;
        let (ca_pem, trust, newest) = (ca_pem.clone(), trust.clone(), Arc::clone(newest));
        Identity(Arc::new(Inner { held, ca_pem, trust, newest }))
    }

    /// Tells of every certificate that follows from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Held>> {
        self.0.newest.subscribe()
    }

    /// The CA, trust domain and job that this node trusts.
    pub fn trust(&self) -> &Trust {
        &self.0.trust
    }

    /// The same identity by another clock; see [`Trust::with_clock`].
    #[must_use]
    pub fn with_clock(&self, clock: Arc<dyn WallClock>) -> Identity {
        let Inner { held, ca_pem, trust, .. } = &*self.0;
        Identity(Arc::new(Inner {
            held: Arc::clone(held),
            ca_pem: ca_pem.clone(),
            trust: trust.with_clock(clock),
            newest: Arc::new(watch::Sender::new(Arc::clone(held))),
        }))
    }

    /// The certificate and those that lead from it to a CA's, in DER one after the other, for others to check signatures with.
    pub fn certificate_der(&self) -> &[u8] {
        &self.0.held.chain
    }

    /// The same, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.0.held.certificate_pem
    }

    /// The CAs' certificates, in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    /// Signs a message: ECDSA, over the hash that goes with the key's curve, in ASN.1 DER. [`Trust::verify_signature`] checks it.
    ///
    /// # Errors
    /// [`PkiError::Crypto`] when the cryptographic library refuses.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        self.0.held.key.sign(message)
    }

    /// Writes `ca.pem`, `cert.pem` and `key.pem` into a directory of mode 0700; the key has mode 0600. Files
    /// that exist already are not overwritten.
    ///
    /// # Errors
    /// [`PkiError::File`] or [`PkiError::NotPrivate`].
    pub fn save(&self, directory: &Path) -> Result<(), PkiError> {
        files::private_directory(directory)?;
        files::write_secret(&directory.join(KEY_FILE), self.0.held.key.to_pem().as_bytes())?;
        files::write_public(&directory.join(CERT_FILE), self.0.held.certificate_pem.as_bytes())?;
        files::write_public(&directory.join(CA_FILE), self.0.ca_pem.as_bytes())
    }

    /// Reads what [`Identity::save`] wrote, or what another CA issued under the same names or under SPIRE's
    /// ([`identity_files`]). The key file must be a regular file (no link) of this user that nobody else can read; the
    /// certificate must be valid now.
    ///
    /// # Errors
    /// [`PkiError`] naming the file.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let [ca, cert, key] = identity_files(directory);
        let next = directory.join(NEXT_KEY_FILE);
        match Identity::load_files(&ca, &cert, &key) {
            // A certificate whose new key has not got its name yet; or has got it since we looked.
            Err(PkiError::OtherKey) if key.ends_with(KEY_FILE) => {
                Identity::load_files(&ca, &cert, &next).or_else(|_| Identity::load_files(&ca, &cert, &key))
            }
            other => other,
        }
    }

    /// [`Identity::load`] from three paths: a bundle of CAs, a certificate with those that follow it, and its key. Trust domain and
    /// job are those of the certificate.
    ///
    /// # Errors
    /// As for [`Identity::load`].
    pub fn load_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, PkiError> {
        let key = SecretKey::from_pem(&files::read_secret(key)?)?;
        let certificate_pem = text(files::read_public(cert)?, "certificate")?;
        let ca_pem = text(files::read_public(ca)?, "CA certificate")?;
        let chain = chain::from_pem(certificate_pem.as_bytes(), MAX_CHAIN, MAX_CHAIN_BYTES)?;
        let id = certificate::leaf_identity(chain::leaf_of(&chain)?)?;
        let trust = Trust::from_pem_for(ca_pem.as_bytes(), id.trust_domain(), id.job())?;
        trust.verify(&chain, &Expected::Node(id))?;
        Identity::new(certificate_pem, ca_pem, key, trust)
    }

    /// What TLS shows: the certificate, and those that lead from it to a CA's.
    pub(crate) fn shown(&self) -> &[CertificateDer<'static>] {
        &self.0.held.shown
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.0.held.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.held.id)
    }
}

/// What the files of an identity are called in its folder: the CAs, the certificate with what comes with it, the key. Ours first,
/// then as `spire-agent api fetch x509 -write` and `spiffe-helper` write them.
const NAMES: [[&str; 3]; 3] = [
    [CA_FILE, CERT_FILE, KEY_FILE],
    ["bundle.0.pem", "svid.0.pem", "svid.0.key"],
    ["svid_bundle.pem", "svid.pem", "svid_key.pem"],
];

/// The files of the identity in `directory` (the CAs, the certificate, the key), by the first of the names that they may have under
/// which a certificate or a key is there; by ours if there is none.
#[must_use]
pub fn identity_files(directory: &Path) -> [PathBuf; 3] {
    let all = NAMES.map(|names| names.map(|name| directory.join(name)));
    let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
    let found = all.iter().find(|[_, cert, key]| is_there(cert) || is_there(key));
    found.unwrap_or(&all[0]).clone()
}

/// Whether a file of that name is the certificate or the key of the identity in its folder.
#[must_use]
pub fn is_identity_file(name: &str) -> bool {
    NAMES.iter().any(|[_, cert, key]| [*cert, *key].contains(&name))
}

fn text(bytes: Vec<u8>, what: &'static str) -> Result<String, PkiError> {
    String::from_utf8(bytes).map_err(|why| PkiError::Pem { what, why: why.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_its_files_under_our_names_or_spires() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            identity_files(folder.path()).map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        let put = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        assert_eq!(names(), NAMES[0], "ours, for the error that there is none");
        put("svid_bundle.pem");
        assert_eq!(names(), NAMES[0], "a bundle alone is no identity");
        put("svid.pem");
        assert_eq!(names(), NAMES[2]);
        put("svid.0.key");
        assert_eq!(names(), NAMES[1]);
        put(KEY_FILE);
        assert_eq!(names(), NAMES[0], "half of ours is an error to be told, and no reason to take another's");
        assert!(["svid.0.key", "svid_key.pem", KEY_FILE].into_iter().all(is_identity_file));
        assert!(!is_identity_file("ca-key.pem") && !is_identity_file(CA_FILE));
    }
}

//! TLS of the served address.
//!
//! 1. TLS 1.3 alone, `aws-lc-rs`; the post-quantum key exchange first, X25519 and P-256 for clients that do not have it.
//! 2. Nothing is resumed: a client's certificate is checked in every handshake.
//! 3. A client is who its certificate says: the one SPIFFE ID in it, or else the hash of its public key.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use testudo_transport::pki::read_public;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Error};

use super::ServeError;
use super::certificate::Certificate;
use super::client::ClientId;
use super::revocation::Revocable;
use crate::signing::hex;

/// Longest SPIFFE ID that a budget is kept under; a longer one's client goes by its key.
const NAME_MOST: usize = 80;

/// Whose certificates clients may show.
#[derive(Debug, Clone, Copy)]
pub struct ClientCa<'a> {
    /// The CA's certificates, in PEM.
    pub ca: &'a Path,
    /// The lists of those that it has revoked, in PEM.
    pub revoked: Option<&'a Path>,
    /// Whether a client without a certificate is turned away in the handshake.
    pub required: bool,
}

/// The configuration of a server that shows this certificate.
///
/// # Errors
/// A file of the clients' CA cannot be read or others could have written it, or holds no certificate.
pub fn server_config(
    certificate: &Arc<Certificate>,
    clients: Option<ClientCa<'_>>,
) -> Result<ServerConfig, ServeError> {
    let wrong = |what: String| ServeError::Tls(what);
    let provider = Arc::clone(certificate.provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|why| wrong(why.to_string()))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ClientCa { ca, revoked, required }) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(ca)? {
                roots.add(root).map_err(|why| wrong(format!("{}: {why}", ca.display())))?;
            }
            let roots = Arc::new(roots);
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            let verifier = verifier.build().map_err(|why| wrong(format!("{}: {why}", ca.display())))?;
            match revoked {
                None => builder.with_client_cert_verifier(verifier),
                Some(lists) => {
                    let verifier = Revocable::new(roots, provider, lists, required)?;
                    builder.with_client_cert_verifier(Arc::new(verifier))
                }
            }
        }
    };
    let own: Arc<dyn ResolvesServerCert> = Arc::<Certificate>::clone(certificate);
    let mut config = builder.with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

pub(super) fn crypto() -> CryptoProvider {
    use provider::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let mut crypto = provider::default_provider();
    crypto.kx_groups = vec![X25519MLKEM768, X25519, SECP256R1];
    crypto
}

/// The certificates in a file.
///
/// # Errors
/// It cannot be read, others could have written it, or it is no PEM.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let pem = read_public(path)?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        // Nothing of the file is said: it may be a key that was named by mistake.
        .map_err(|_| ServeError::Tls(format!("{}: no certificates in PEM, or not whole", path.display())))
}

/// Who a client with this certificate is, whose chain has been checked.
#[must_use]
pub fn client_of(der: &[u8]) -> Option<ClientId> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    match spiffe_in(&certificate).ok()? {
        Some(name) if name.len() <= NAME_MOST => Some(ClientId::of_certificate(name)),
        _ => Some(ClientId::of_certificate(&hex(digest(&SHA256, certificate.public_key().raw).as_ref()))),
    }
}

/// The one SPIFFE ID in a certificate.
pub(super) fn spiffe_id(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    spiffe_in(&certificate).ok()?.map(str::to_owned)
}

fn spiffe_in<'a>(certificate: &'a X509Certificate<'_>) -> Result<Option<&'a str>, X509Error> {
    let names = certificate.subject_alternative_name()?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let plain = |uri: &str| uri.starts_with("spiffe://") && uri.chars().all(|c| c.is_ascii_graphic());
    match uris.as_slice() {
        [uri] if plain(uri) => Ok(Some(uri)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str], days: i64) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.not_after = params.not_before + std::time::Duration::from_secs(days.unsigned_abs() * 86_400);
        if days > 0 {
            params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        }
        (params.self_signed(&key).unwrap(), key)
    }

    /// Invariant 3.
    #[test]
    fn a_client_is_its_spiffe_id_or_its_key() {
        let name = |uris: &[&str]| client_of(certificate(uris, 1).0.der()).unwrap().to_string();
        assert_eq!(name(&["spiffe://t/job/j/worker/0"]), "certificate:spiffe://t/job/j/worker/0");
        for uris in [
            &[][..],
            &["https://t/"],
            &["spiffe://a/b", "spiffe://a/c"],
            &[&format!("spiffe://{}", "a".repeat(80))],
        ] {
            let found = name(uris);
            assert_eq!(found.len(), "certificate:".len() + 64, "{found}");
            assert_ne!(found, name(uris), "another key is another client");
        }
        assert_eq!(client_of(b"x"), None);
    }

    #[test]
    fn files_are_checked_before_anything_listens() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (good, key) = certificate(&[], 1);
        let cert = write("cert.pem", &good.pem(), 0o644);
        let key_file = write("key.pem", &key.serialize_pem(), 0o600);
        let good_one = Arc::new(Certificate::load(&cert, &key_file).unwrap());
        let config = server_config(&good_one, None).unwrap();
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (0, 0));
        assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
        let why = |cert: &Path, key: &Path| Certificate::load(cert, key).unwrap_err().to_string();
        let (old, old_key) = certificate(&[], -1);
        let old = write("old.pem", &old.pem(), 0o644);
        let old_key = write("old-key.pem", &old_key.serialize_pem(), 0o600);
        assert!(why(&old, &old_key).contains("not now"));
        assert!(why(&cert, &old_key).contains("key.pem"), "{}", why(&cert, &old_key));
        assert!(why(&key_file, &key_file).contains("no certificate"));
        assert!(why(&cert, &write("open.pem", &key.serialize_pem(), 0o640)).contains("chmod 600"));
        assert!(why(&write("shared.pem", &good.pem(), 0o666), &key_file).contains("others"));
        // A key whose line breaks were lost is one line, which is shown to nobody.
        let lost = write("lost.pem", &key.serialize_pem().replace('\n', "\\n"), 0o600);
        for said in [why(&cert, &lost), why(&lost, &key_file)] {
            assert!(said.contains("not whole") && !said.contains("45, 45, 45"), "{said}");
        }
        let ca = ClientCa { ca: &key_file, revoked: None, required: true };
        assert!(server_config(&good_one, Some(ca)).is_err(), "a CA without a certificate");
    }
}

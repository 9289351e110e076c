//! TLS for both ends: 1.3 only, both certificates always, nothing resumed, nothing early.
//!
//! Invariants:
//!
//! 1. Every handshake checks both certificates in full: there are no tickets, no resumption, no early data,
//!    which would all skip it.
//! 2. A client's certificate is checked against the job; a server's also against the exact identity that was
//!    dialled.
//! 3. Only X25519MLKEM768 is offered and accepted, unless the configuration says "pq-first".

pub(crate) mod enrolment;
mod verifier;

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

pub(crate) use verifier::PinFailure;
use verifier::{NodeVerifier, PinnedVerifier};

use crate::config::KeyExchange;
use crate::identity::SpiffeId;
use crate::pki::{Identity, PkiError};

/// The application protocol; another version of this wire format gets another name.
pub(crate) const ALPN: &[u8] = b"testudo/1";

/// The name that dialers give where TLS wants one. It is never sent and never checked: identities are.
pub(crate) const SERVER_NAME: &str = "testudo.invalid";

/// Configuration of the accepting end.
pub(crate) fn server_config(identity: &Identity, exchange: KeyExchange) -> Result<ServerConfig, PkiError> {
    let verifier = NodeVerifier::new(identity.trust().clone());
    let mut config = ServerConfig::builder_with_provider(provider(exchange))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| PkiError::Crypto("TLS 1.3 is not available"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Newest(identity.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Configuration of the dialling end, for one call to one node.
pub(crate) fn client_config(
    identity: &Identity,
    exchange: KeyExchange,
    expect: &SpiffeId,
) -> Result<(ClientConfig, PinFailure), PkiError> {
    let (verifier, failure) = PinnedVerifier::new(identity.trust().clone(), expect.clone());
    let mut config = ClientConfig::builder_with_provider(provider(exchange))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| PkiError::Crypto("TLS 1.3 is not available"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(identity))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok((config, failure))
}

/// The accepting end's configuration in quinn's form. The conversion, unlike quinn's own helpers, leaves
/// early data off.
pub(crate) fn quic_server(config: ServerConfig) -> Result<QuicServerConfig, PkiError> {
    QuicServerConfig::try_from(config).map_err(|_| PkiError::Crypto("QUIC's initial cipher is not available"))
}

/// The dialling end's configuration in quinn's form.
pub(crate) fn quic_client(config: ClientConfig) -> Result<QuicClientConfig, PkiError> {
    QuicClientConfig::try_from(config).map_err(|_| PkiError::Crypto("QUIC's initial cipher is not available"))
}

/// The signature algorithms that certificates may be signed with.
pub(crate) fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

pub(crate) fn provider(exchange: KeyExchange) -> Arc<CryptoProvider> {
    use aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = match exchange {
        KeyExchange::PqOnly => vec![X25519MLKEM768],
        KeyExchange::PqFirst => vec![X25519MLKEM768, X25519, SECP256R1],
    };
    // AES-128-GCM first: QUIC needs it for its first packets, and it is the fastest where AES is in hardware.
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    provider.cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(provider)
}

/// Shows the newest certificate of an identity: a renewed one from the next handshake on.
#[derive(Debug)]
struct Newest(Identity);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::new(certified(&self.0)))
    }
}

fn certified(identity: &Identity) -> CertifiedKey {
    let identity = identity.latest();
    CertifiedKey::new(identity.shown().to_vec(), Arc::new(identity.key().clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::{ClientConnection, ServerConnection, SupportedProtocolVersion};

    use super::*;
    use crate::identity::Role;
    use crate::pki::JobCa;

    const HOUR: Duration = Duration::from_secs(3600);

    fn node(ca: &JobCa, role: Role) -> Identity {
        ca.issue(&SpiffeId::new("t", "j", role, "0").unwrap(), HOUR).unwrap()
    }

    /// Runs a handshake over buffers; gives the server's error.
    fn handshake(client: ClientConfig, server: ServerConfig) -> Result<(), rustls::Error> {
        let name = SERVER_NAME.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    fn client_of(
        version: &'static SupportedProtocolVersion,
        identity: &Identity,
        peer: &Identity,
    ) -> ClientConfig {
        let (verifier, _) = PinnedVerifier::new(identity.trust().clone(), peer.id().clone());
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(identity))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config
    }

    #[test]
    fn only_tls_1_3_is_spoken() {
        let ca = JobCa::create("t", "j", HOUR).unwrap();
        let (worker, server) = (node(&ca, Role::Worker), node(&ca, Role::Server));
        let config = || server_config(&server, KeyExchange::PqFirst).unwrap();
        assert_eq!(handshake(client_of(&TLS13, &worker, &server), config()), Ok(()));
        let old = handshake(client_of(&rustls::version::TLS12, &worker, &server), config());
        assert!(matches!(old, Err(rustls::Error::PeerIncompatible(_))), "{old:?}");
    }

    /// Invariant 3.
    #[test]
    fn the_first_and_by_default_the_only_key_exchange_is_post_quantum() {
        let names =
            |exchange| provider(exchange).kx_groups.iter().map(|group| group.name()).collect::<Vec<_>>();
        assert_eq!(names(KeyExchange::default()), [rustls::NamedGroup::X25519MLKEM768]);
        assert_eq!(names(KeyExchange::PqFirst).first(), Some(&rustls::NamedGroup::X25519MLKEM768));
    }

    /// Invariant 1.
    #[test]
    fn nothing_is_resumed_and_nothing_is_early() {
        let ca = JobCa::create("t", "j", HOUR).unwrap();
        let (worker, server) = (node(&ca, Role::Worker), node(&ca, Role::Server));
        let accepting = server_config(&server, KeyExchange::PqOnly).unwrap();
        assert_eq!((accepting.send_tls13_tickets, accepting.max_early_data_size), (0, 0));
        assert!(!accepting.session_storage.can_cache() && !accepting.ticketer.enabled());
        let (dialling, _) = client_config(&worker, KeyExchange::PqOnly, server.id()).unwrap();
        assert!(!dialling.enable_early_data && !dialling.enable_sni);
    }
}

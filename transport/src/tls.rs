//! TLS for both ends: 1.3 only, both certificates always, nothing resumed, nothing early.
//!
//! Invariants:
//!
//! 1. Every handshake checks both certificates in full: there are no tickets, no resumption, no early data,
//!    which would all skip it.
//! 2. A client's certificate is checked against the job; a server's also against the exact identity that was
//!    dialled.
//! 3. Only X25519MLKEM768 is offered and accepted, unless the configuration says "pq-first".

mod verifier;

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
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
    let verifier = NodeVerifier::new(identity.trust().clone())?;
    let mut config = ServerConfig::builder_with_provider(provider(exchange))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| PkiError::Crypto("TLS 1.3 is not available"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certified(identity)));
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
        .with_client_cert_resolver(Arc::new(certified(identity)));
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

fn provider(exchange: KeyExchange) -> Arc<CryptoProvider> {
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

fn certified(identity: &Identity) -> SingleCertAndKey {
    let chain = vec![identity.certificate().clone()];
    SingleCertAndKey::from(CertifiedKey::new(chain, Arc::new(identity.key().clone())))
}

//! Peers made by hand from quinn, rustls and rcgen: they do what ours never would.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName as Name, ServerConfig, SignatureScheme};
use testudo_transport::session::{ConnectionSecret, Direction, EXPORTER_LABEL, Prelude, Sealer};
use testudo_transport::{Address, Envelope, Grants, JobCa, Role, SpiffeId, encode};

use crate::common::id;

pub const ALPN: &[u8] = b"testudo/1";

/// A certificate chain and its key.
pub struct Credentials {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Vec<u8>,
}

impl Credentials {
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// The CA's own issuer, so that anything at all can be signed with its key.
pub fn issuer(ca: &JobCa) -> Issuer<'static, KeyPair> {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("ca");
    ca.save(&home).unwrap();
    let key = KeyPair::from_pem(&std::fs::read_to_string(home.join("ca-key.pem")).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Testudo");
    params.distinguished_name.push(DnType::CommonName, ca.trust().job());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Issuer::new(params, key)
}

/// What our CA issues to a node, as parameters to be spoiled.
pub fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub fn sign(params: &CertificateParams, issuer: &Issuer<'_, KeyPair>) -> Credentials {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    Credentials { chain: vec![certificate.der().clone()], key: key.serialize_der() }
}

/// Good credentials of a node.
pub fn good(ca: &JobCa, node: &SpiffeId) -> Credentials {
    sign(&leaf(&[node.as_str()]), &issuer(ca))
}

pub fn provider(groups: Option<Vec<&'static dyn rustls::crypto::SupportedKxGroup>>) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.unwrap_or_else(|| vec![aws_lc_rs::kx_group::X25519MLKEM768]);
    Arc::new(provider)
}

/// A TLS client that trusts everybody.
pub fn client(credentials: Option<&Credentials>) -> ClientConfig {
    client_with(credentials, provider(None))
}

pub fn client_with(credentials: Option<&Credentials>, provider: Arc<CryptoProvider>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match credentials {
        Some(credentials) => {
            builder.with_client_auth_cert(credentials.chain.clone(), credentials.key()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

/// A TLS server that trusts everybody.
pub fn server(credentials: &Credentials) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider(None))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anybody))
        .with_single_cert(credentials.chain.clone(), credentials.key())
        .unwrap();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

pub fn listen(config: ServerConfig) -> quinn::Endpoint {
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

pub fn quic_client(config: ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

pub fn caller() -> quinn::Endpoint {
    quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

/// Dials with a given TLS configuration and waits until the connection is refused; an admitted connection
/// would stay open, and the test would time out.
pub async fn refused(address: SocketAddr, config: ClientConfig) -> quinn::ConnectionError {
    let caller = caller();
    let connecting = caller.connect_with(quic_client(config), address, "any").unwrap();
    match connecting.await {
        Ok(connection) => connection.closed().await,
        Err(why) => why,
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Anybody {
    fn root_hint_subjects(&self) -> &[Name] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// A worker with a good certificate and the right keys that keeps to no rule.
pub struct Hostile {
    pub quic: quinn::Connection,
    pub secret: ConnectionSecret,
    pub envelope: Envelope,
    _endpoint: quinn::Endpoint,
}

impl Hostile {
    /// Dials `server/0`.
    pub async fn dial(ca: &JobCa, address: SocketAddr) -> Hostile {
        let (worker, server) = (id(Role::Worker, 0), id(Role::Server, 0));
        let endpoint = caller();
        let config = quic_client(client(Some(&good(ca, &worker))));
        let quic = endpoint.connect_with(config, address, "any").unwrap().await.unwrap();
        let context = testudo_transport::session::exporter_context(&worker, &server);
        let mut secret = [0; 32];
        quic.export_keying_material(&mut secret, EXPORTER_LABEL, &context).unwrap();
        let envelope = Envelope {
            from: Address::from(worker),
            to: Address::from(server),
            request: 0,
            traceparent: None,
        };
        Hostile { quic, secret: ConnectionSecret::new(secret), envelope, _endpoint: endpoint }
    }

    pub fn sealer(&self, stream: quinn::StreamId) -> Sealer {
        let number = quinn::VarInt::from(stream).into_inner();
        Sealer::new(self.secret.stream_key(Direction::FromInitiator, number))
    }

    /// A well-formed message.
    pub fn frame(&self, sealer: &mut Sealer, kind: u8, body: &[u8], payload: &[u8]) -> Vec<u8> {
        let header = [encode(&self.envelope), body.to_vec()].concat();
        let header_len = u32::try_from(header.len()).unwrap();
        let prelude = Prelude { kind, header_len, payload_len: payload.len() as u64 }.encode();
        let mac = sealer.seal(&prelude, &header, blake3::hash(payload).as_bytes());
        [&prelude[..], &header, payload, &mac].concat()
    }

    /// Opens the credit stream and grants what is asked.
    pub async fn grant(&self, grants: &[Grants]) -> quinn::SendStream {
        let mut stream = self.quic.open_uni().await.unwrap();
        let mut sealer = self.sealer(stream.id());
        for grants in grants {
            let bytes = self.frame(&mut sealer, 0, &encode(grants), b"");
            stream.write_all(&bytes).await.unwrap();
        }
        stream
    }

    /// The code and reason with which the other end cut us off.
    pub async fn verdict(&self) -> (u64, String) {
        match self.quic.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("ended otherwise: {other}"),
        }
    }
}

//! A peer that holds a valid certificate and keeps to no protocol: QUIC streams of any bytes.
//!
//! What the transport's own connections refuse to send, this sends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use testudo_transport::session::{ConnectionSecret, Direction, EXPORTER_LABEL, Sealer, exporter_context};
use testudo_transport::{Identity, SpiffeId};

/// The application protocol of the wire format.
const ALPN: &[u8] = b"testudo/1";

/// Long after any peer has answered.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dials as any identity.
#[derive(Debug)]
pub struct RawEndpoint {
    endpoint: quinn::Endpoint,
}

/// One connection.
#[derive(Debug)]
pub struct RawPeer {
    connection: quinn::Connection,
    secret: ConnectionSecret,
    /// Where the other end grants credit; nobody reads it further.
    _credit: Option<RecvStream>,
}

impl RawEndpoint {
    /// Bound on loopback; must be called within a tokio runtime.
    #[must_use]
    pub fn bind() -> RawEndpoint {
        RawEndpoint::bind_to(Ipv4Addr::LOCALHOST.into())
    }

    /// The same at that address of this machine.
    #[must_use]
    pub fn bind_to(ip: IpAddr) -> RawEndpoint {
        RawEndpoint { endpoint: quinn::Endpoint::client(SocketAddr::new(ip, 0)).unwrap() }
    }

    /// Connects to `expect` at `address` as `identity`, and waits until that node has admitted it and granted credit, or has
    /// closed the connection. Whoever answers is believed to be `expect`.
    pub async fn connect(&self, identity: &Identity, address: SocketAddr, expect: &SpiffeId) -> RawPeer {
        self.try_connect(identity, address, expect).await.unwrap()
    }

    /// The same; nothing if the handshake fails.
    pub async fn try_connect(
        &self,
        identity: &Identity,
        address: SocketAddr,
        expect: &SpiffeId,
    ) -> Option<RawPeer> {
        let config = client_config(Some(identity));
        let connecting = self.endpoint.connect_with(config, address, "testudo.invalid").unwrap();
        let connection = tokio::time::timeout(PATIENCE, connecting).await.ok()?.ok()?;
        let mut secret = [0; 32];
        let context = exporter_context(identity.id(), expect);
        connection.export_keying_material(&mut secret, EXPORTER_LABEL, &context).unwrap();
        let admission = async {
            let mut credit = connection.accept_uni().await.ok()?;
            credit.read_chunk(1, true).await.ok()?;
            Some(credit)
        };
        let _credit = tokio::time::timeout(PATIENCE, admission).await.ok()?;
        Some(RawPeer { connection, secret: ConnectionSecret::new(secret), _credit })
    }

    /// Waits until the other ends were told of every close.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

impl RawPeer {
    /// Opens a stream and writes `bytes`. The stream stays open as long as its halves are kept; there is none if the other
    /// end has closed the connection already.
    pub async fn stream_with(&self, bytes: &[u8]) -> Option<(SendStream, RecvStream)> {
        let (mut send, receive) = self.connection.open_bi().await.ok()?;
        let _ = send.write_all(bytes).await;
        Some((send, receive))
    }

    /// What seals messages on a stream that this peer opened.
    #[must_use]
    pub fn sealer(&self, stream: &SendStream) -> Sealer {
        Sealer::new(
            self.secret.stream_key(Direction::FromInitiator, u64::from(quinn::VarInt::from(stream.id()))),
        )
    }

    /// Waits until the other end closes the connection; its code and reason, unless they are lost: it forgets the connection soon, and
    /// resets it when it hears more (RFC 9000, 10.3), and what reads both at once, for it was slow, tells of the last.
    ///
    /// # Panics
    /// When it does not, or the connection ends in another way.
    pub async fn closed(&self) -> Option<(u64, String)> {
        match tokio::time::timeout(PATIENCE, self.connection.closed()).await {
            Ok(ConnectionError::ApplicationClosed(close)) => {
                Some((close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned()))
            }
            Ok(ConnectionError::Reset) => None,
            other => panic!("the peer did not close the connection: {other:?}"),
        }
    }

    /// The connection beneath.
    #[must_use]
    pub fn connection(&self) -> &quinn::Connection {
        &self.connection
    }
}

/// How to dial as `identity`, or without a certificate. Made once for each: reading a key takes longer than a handshake.
#[must_use]
pub fn client_config(identity: Option<&Identity>) -> quinn::ClientConfig {
    static MADE: LazyLock<Mutex<HashMap<Vec<u8>, quinn::ClientConfig>>> = LazyLock::new(Mutex::default);
    let key = identity.map(|identity| identity.certificate_der().to_vec()).unwrap_or_default();
    let fresh = || quinn::ClientConfig::new(Arc::new(client(identity)));
    MADE.lock().unwrap().entry(key).or_insert_with(fresh).clone()
}

fn client(identity: Option<&Identity>) -> QuicClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believe));
    let mut config = match identity {
        Some(identity) => {
            let folder = tempfile::tempdir().unwrap();
            identity.save(folder.path()).unwrap();
            let key = PrivateKeyDer::from_pem_file(folder.path().join("key.pem")).unwrap();
            let chain = vec![CertificateDer::from(identity.certificate_der().to_vec())];
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    QuicClientConfig::try_from(config).unwrap()
}

/// Believes every certificate: an attacker does not mind whom it talks to.
#[derive(Debug)]
struct Believe;

impl ServerCertVerifier for Believe {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

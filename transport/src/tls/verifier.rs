//! Certificate checks inside the handshake.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::signature_algorithms;
use crate::identity::SpiffeId;
use crate::pki::{Chain, Curve, Expected, PkiError, Trust};

/// Accepts any node of the job, as a client.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    trust: Trust,
}

impl NodeVerifier {
    pub(super) fn new(trust: Trust) -> Self {
        NodeVerifier { trust }
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = Chain::of(leaf, intermediates).map_err(refused)?;
        // webpki's own verifier checks the chain for a client's use; the profile and the name are ours.
        let anchors = self.trust.anchors();
        let path = anchors.path(&chain).map_err(refused)?;
        let verified = path.roots.clients.verify_client_cert(leaf, &path.between, self.trust.now())?;
        self.trust.verify_chain(&chain, &Expected::Member).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Curve::schemes()
    }
}

/// Where a [`PinnedVerifier`] leaves why it refused: TLS itself hands back only an alert.
#[derive(Clone, Default)]
pub(crate) struct PinFailure(Arc<Mutex<Option<PkiError>>>);

impl PinFailure {
    /// Why the other end's certificate was refused, if it was.
    pub(crate) fn take(&self) -> Option<PkiError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn set(&self, why: PkiError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

/// Accepts exactly one node of the job, as a server.
pub(super) struct PinnedVerifier {
    trust: Trust,
    expected: Expected,
    failure: PinFailure,
}

impl PinnedVerifier {
    pub(super) fn new(trust: Trust, expect: SpiffeId) -> (Self, PinFailure) {
        let failure = PinFailure::default();
        let expected = Expected::Node(expect);
        (PinnedVerifier { trust, expected, failure: failure.clone() }, failure)
    }
}

impl fmt::Debug for PinnedVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedVerifier({:?})", self.expected)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked =
            Chain::of(leaf, intermediates).and_then(|chain| self.trust.verify_chain(&chain, &self.expected));
        match checked {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(why) => {
                self.failure.set(why.clone());
                Err(refused(why))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Curve::schemes()
    }
}

pub(super) fn refused(why: PkiError) -> Error {
    // The one reason that TLS has an alert of its own for, and that says nothing which the other end may not know.
    if let PkiError::Revoked { .. } = &why {
        tracing::debug!(%why, "certificate refused");
        return Error::InvalidCertificate(CertificateError::Revoked);
    }
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

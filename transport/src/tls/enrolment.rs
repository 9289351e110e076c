//! TLS for joining by token: the service shows who it is, and the node has nothing to show yet.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

use super::verifier::{PinFailure, refused};
use super::{provider, signature_algorithms};
use crate::config::KeyExchange;
use crate::pki::{Curve, Expected, Identity, PkiError, Trust};

/// The service's end: its own certificate, and its CA's for those who know but a hash of it.
pub(crate) fn server_config(identity: &Identity, alpn: &[u8]) -> Result<ServerConfig, PkiError> {
    let mut chain = identity.shown().to_vec();
    chain.push(CertificateDer::from(identity.trust().ca_der()));
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, Arc::new(identity.key().clone())));
    let mut config = ServerConfig::builder_with_provider(provider(KeyExchange::PqOnly))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| PkiError::Crypto("TLS 1.3 is not available"))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The node's end, which takes exactly the service of the CA that it was told of.
pub(crate) fn client_config(pin: CaPin, alpn: &[u8]) -> Result<(ClientConfig, PinFailure), PkiError> {
    let failure = PinFailure::default();
    let verifier = PinnedCa { pin, failure: failure.clone() };
    let mut config = ClientConfig::builder_with_provider(provider(KeyExchange::PqOnly))
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| PkiError::Crypto("TLS 1.3 is not available"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok((config, failure))
}

/// A CA that is known by a hash alone, and whom of its nodes to expect.
#[derive(Debug, Clone)]
pub(crate) struct CaPin {
    /// BLAKE3 of its certificate in DER.
    pub(crate) ca: [u8; 32],
    /// Whose certificate is expected.
    pub(crate) service: crate::identity::SpiffeId,
}

impl CaPin {
    /// The CA's certificate among those that were shown: the leaf, then the CA's.
    pub(crate) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), PkiError> {
        let [ca] = others else {
            return Err(PkiError::Certificate("it came without the one of its CA".to_owned()));
        };
        if blake3::hash(ca) != blake3::Hash::from_bytes(self.ca) {
            return Err(PkiError::Certificate("its CA is not the one that the token names".to_owned()));
        }
        let (trust_domain, job) = (self.service.trust_domain(), self.service.job());
        let trust = Trust::from_der_for(ca, trust_domain, job)?;
        trust.verify(leaf, &Expected::Node(self.service.clone())).map(|_| ())
    }
}

struct PinnedCa {
    pin: CaPin,
    failure: PinFailure,
}

impl fmt::Debug for PinnedCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedCa({:?})", self.pin)
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.pin.check(leaf, intermediates).map(|()| ServerCertVerified::assertion()).map_err(|why| {
            self.failure.set(why.clone());
            refused(why)
        })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{Role, SpiffeId};
    use crate::pki::JobCa;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn only_the_enrolment_service_of_the_ca_is_taken() {
        let (ca, other) = (JobCa::create("t", "j", HOUR).unwrap(), JobCa::create("t", "j", HOUR).unwrap());
        let service = SpiffeId::new("t", "j", Role::Operator, "enrolment").unwrap();
        let pin = CaPin { ca: *blake3::hash(&ca.trust().ca_der()).as_bytes(), service: service.clone() };
        let der = |ca: &JobCa| CertificateDer::from(ca.trust().ca_der());
        let shown = |ca: &JobCa, id: &SpiffeId| ca.issue(id, HOUR).unwrap().shown()[0].clone();
        assert_eq!(pin.check(&shown(&ca, &service), &[der(&ca)]), Ok(()));
        // Another CA's, shown with either CA; a node of the job; no CA, or more than it.
        let foreign = shown(&other, &service);
        assert!(matches!(pin.check(&foreign, &[der(&other)]), Err(PkiError::Certificate(_))));
        assert!(matches!(pin.check(&foreign, &[der(&ca)]), Err(PkiError::Chain(_))));
        for (role, name) in [(Role::Worker, "0"), (Role::Scheduler, "0"), (Role::Operator, "alice")] {
            let node = SpiffeId::new("t", "j", role, name).unwrap();
            let refused = pin.check(&shown(&ca, &node), &[der(&ca)]);
            assert!(matches!(refused, Err(PkiError::Unexpected { .. })), "{role}: {refused:?}");
        }
        let own = shown(&ca, &service);
        assert!(pin.check(&own, &[]).is_err() && pin.check(&own, &[der(&ca), der(&ca)]).is_err());
    }
}

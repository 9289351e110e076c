//! What a node signs with, in a run that may outlive its certificate.
//!
//! 1. Every signature is by the newest certificate. The scheduler is told which that is on the stream on which the signature
//!    follows, before it: no other stream's order decides what a signature is checked with.

use std::sync::Arc;

use testudo_transport::{Identity, PkiError};

use crate::message::NewCertificate;

/// A node's key.
#[derive(Debug)]
pub(crate) struct Signer {
    identity: Arc<Identity>,
    // Empty until the first signature: which certificate a handshake showed is not known here.
    told: Vec<u8>,
}

impl Signer {
    /// With the key of `identity`, and those that follow it.
    pub(crate) fn new(identity: Arc<Identity>) -> Signer {
        Signer { identity, told: Vec::new() }
    }

    /// Signs `message`. What comes with the signature, if anything does, goes to the scheduler before it.
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub(crate) fn sign(&mut self, message: &[u8]) -> Result<(Option<NewCertificate>, Vec<u8>), PkiError> {
        let newest = self.identity.latest();
        let signature = newest.sign(message)?;
        if newest.certificate_der() == self.told {
            return Ok((None, signature));
        }
        self.told = newest.certificate_der().to_vec();
        Ok((Some(NewCertificate { certificate: self.told.clone() }), signature))
    }
}

//! A renewed certificate, shown on a connection that began with the one before.
//!
//! A connection outlives the certificate that it was opened with if its holder shows the next one before that ends: the
//! certificate, and a signature by its key over [`ConnectionSecret::renewal`](super::ConnectionSecret::renewal). It travels on the transport's own stream,
//! with credit, under the same MAC.

use serde::{Deserialize, Serialize};

/// The kind of message on the transport's own stream that shows a renewed certificate.
pub const RENEWAL_KIND: u8 = 60;

/// Most bytes of header on it: an envelope with two long identities, a certificate and a signature.
pub const RENEWAL_MAX_HEADER: u32 = 24 * 1024;

/// The body of that message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The new certificate, in DER.
    pub certificate: Vec<u8>,
    /// The new key's signature (ECDSA P-256 over SHA-256, in ASN.1 DER).
    pub signature: Vec<u8>,
}

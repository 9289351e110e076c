//! Keys of messages: one secret per connection from the TLS exporter, and from it one key per direction and
//! stream.
//!
//! Invariant 1: two streams, two directions, two connections or two jobs never share a key. The connection's
//! secret differs because the TLS exporter (RFC 8446, section 7.5) is keyed by the handshake and its context
//! names the job and both ends; direction and stream id, which never repeat within a connection, enter a
//! keyed hash under that secret.

use std::fmt;

use zeroize::Zeroize;

use crate::identity::SpiffeId;

/// Label of the TLS exporter. `EXPERIMENTAL` is what RFC 5705 asks of labels that IANA has not registered.
pub const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL testudo/1 message authentication";

/// What the keyed hash that derives a stream's key starts with, so that no other use of the secret can ever
/// produce the same input.
pub const STREAM_KEY_DOMAIN: &[u8] = b"testudo/1 stream key";

/// What the keyed hash that ties a renewed certificate to a connection starts with.
pub const RENEWAL_DOMAIN: &[u8] = b"testudo/1 certificate renewal";

/// Which way bytes flow on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the node that dialled to the node that accepted.
    FromInitiator,
    /// From the node that accepted to the node that dialled.
    FromAcceptor,
}

impl Direction {
    /// The other way.
    pub fn reverse(self) -> Direction {
        match self {
            Direction::FromInitiator => Direction::FromAcceptor,
            Direction::FromAcceptor => Direction::FromInitiator,
        }
    }
}

/// The context given to the TLS exporter: job, initiator, acceptor, each with its length as a u32.
pub fn exporter_context(initiator: &SpiffeId, acceptor: &SpiffeId) -> Vec<u8> {
    let mut context = Vec::new();
    for text in [initiator.job(), initiator.as_str(), acceptor.as_str()] {
        // Identities are at most 2,048 bytes.
        context.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        context.extend_from_slice(text.as_bytes());
    }
    context
}

/// The secret of one connection, cleared when dropped.
#[derive(Clone)]
pub struct ConnectionSecret([u8; 32]);

impl ConnectionSecret {
    /// Takes the 32 bytes that the TLS exporter gave.
    pub fn new(bytes: [u8; 32]) -> Self {
        ConnectionSecret(bytes)
    }

    /// The key of messages on `stream` (a QUIC stream id) that flow in `direction`.
    pub fn stream_key(&self, direction: Direction, stream: u64) -> StreamKey {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(STREAM_KEY_DOMAIN);
        hasher.update(&[match direction {
            Direction::FromInitiator => 0,
            Direction::FromAcceptor => 1,
        }]);
        hasher.update(&stream.to_le_bytes());
        let key = StreamKey(*hasher.finalize().as_bytes());
        hasher.zeroize();
        key
    }
}

impl ConnectionSecret {
    /// What the sender in `direction` signs with the key of a certificate that it renews on this connection: nobody else knows
    /// it, and no other connection has it. The certificate's hash goes into it.
    pub fn renewal(&self, direction: Direction, certificate_der: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(RENEWAL_DOMAIN);
        hasher.update(&[match direction {
            Direction::FromInitiator => 0,
            Direction::FromAcceptor => 1,
        }]);
        hasher.update(blake3::hash(certificate_der).as_bytes());
        let binding = *hasher.finalize().as_bytes();
        hasher.zeroize();
        binding
    }
}

impl Drop for ConnectionSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for ConnectionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionSecret(..)")
    }
}

/// The key of one direction of one stream, cleared when dropped.
pub struct StreamKey([u8; 32]);

impl StreamKey {
    /// The MAC of the message with this sequence number on the stream.
    pub fn mac(
        &self,
        sequence: u64,
        prelude: &[u8; 16],
        header: &[u8],
        payload_hash: &[u8; 32],
    ) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&sequence.to_le_bytes());
        hasher.update(prelude);
        hasher.update(header);
        hasher.update(payload_hash);
        let mac = hasher.finalize();
        hasher.zeroize();
        mac
    }

    /// The key itself, for golden vectors.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for StreamKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::identity::Role;

    /// Invariant 1.
    #[test]
    fn no_two_streams_directions_or_secrets_share_a_key() {
        let mut seen = HashSet::new();
        for secret in [[0; 32], [1; 32]] {
            for direction in [Direction::FromInitiator, Direction::FromAcceptor] {
                for stream in [0, 1, 2, 3, 256, 1 << 32, (1 << 62) - 1] {
                    let key = ConnectionSecret::new(secret).stream_key(direction, stream);
                    assert!(seen.insert(*key.expose()));
                }
            }
        }
        assert_eq!(seen.len(), 28);
    }

    #[test]
    fn a_renewal_is_of_one_connection_direction_and_certificate() {
        let mut seen = HashSet::new();
        for secret in [[0; 32], [1; 32]] {
            for direction in [Direction::FromInitiator, Direction::FromAcceptor] {
                for certificate in [&b"a"[..], b"b", b""] {
                    assert!(seen.insert(ConnectionSecret::new(secret).renewal(direction, certificate)));
                }
            }
        }
    }

    /// Invariant 1.
    #[test]
    fn the_context_is_unambiguous() {
        let id = |job: &str, name: &str| SpiffeId::new("t", job, Role::Actor, name).unwrap();
        let mut seen = HashSet::new();
        for (initiator, acceptor) in [
            (id("j", "a"), id("j", "b")),
            (id("j", "b"), id("j", "a")),
            (id("j", "ab"), id("j", "b")),
            (id("k", "a"), id("k", "b")),
        ] {
            assert!(seen.insert(exporter_context(&initiator, &acceptor)));
        }
    }

    #[test]
    fn debug_output_has_no_key() {
        let secret = ConnectionSecret::new([0x5a; 32]);
        let key = secret.stream_key(Direction::FromInitiator, 0);
        assert_eq!(format!("{secret:?} {key:?}"), "ConnectionSecret(..) StreamKey(..)");
    }

    #[test]
    fn every_input_enters_the_mac() {
        let key = ConnectionSecret::new([3; 32]).stream_key(Direction::FromInitiator, 0);
        let mac = key.mac(1, &[2; 16], b"header", &[4; 32]);
        assert_eq!(mac, key.mac(1, &[2; 16], b"header", &[4; 32]));
        assert_ne!(mac, key.mac(2, &[2; 16], b"header", &[4; 32]));
        assert_ne!(mac, key.mac(1, &[3; 16], b"header", &[4; 32]));
        assert_ne!(mac, key.mac(1, &[2; 16], b"headeR", &[4; 32]));
        assert_ne!(mac, key.mac(1, &[2; 16], b"header", &[5; 32]));
    }
}

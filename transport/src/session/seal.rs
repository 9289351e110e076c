//! The sending half of a stream: numbers messages and computes their MACs.

use super::keys::StreamKey;
use super::prelude::{MAC_LEN, PRELUDE_LEN};

/// BLAKE3 of the empty string: the payload hash of every message without payload.
pub const EMPTY_PAYLOAD_HASH: [u8; 32] = [
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b,
    0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
];

/// Seals the messages of one direction of one stream, in order.
#[derive(Debug)]
pub struct Sealer {
    key: StreamKey,
    sequence: u64,
}

impl Sealer {
    /// A sealer whose first message has sequence number 0.
    pub fn new(key: StreamKey) -> Self {
        Sealer { key, sequence: 0 }
    }

    /// The MAC of the next message; the one after it gets the next number.
    pub fn seal(
        &mut self,
        prelude: &[u8; PRELUDE_LEN],
        header: &[u8],
        payload_hash: &[u8; 32],
    ) -> [u8; MAC_LEN] {
        let mac = self.key.mac(self.sequence, prelude, header, payload_hash);
        // 2^64 messages do not fit in any connection's life.
        self.sequence = self.sequence.wrapping_add(1);
        *mac.as_bytes()
    }

    /// The number of the next message.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionSecret, Direction};
    use super::*;

    #[test]
    fn the_constant_is_the_hash_of_nothing() {
        assert_eq!(blake3::hash(b"").as_bytes(), &EMPTY_PAYLOAD_HASH);
    }

    #[test]
    fn equal_messages_have_different_macs() {
        let key = ConnectionSecret::new([3; 32]).stream_key(Direction::FromInitiator, 0);
        let mut sealer = Sealer::new(key);
        let first = sealer.seal(&[0; 16], b"h", &EMPTY_PAYLOAD_HASH);
        assert_ne!(first, sealer.seal(&[0; 16], b"h", &EMPTY_PAYLOAD_HASH));
        assert_eq!(sealer.sequence(), 2);
    }
}

//! The first 16 bytes of a message.

/// The only version of the format.
pub const VERSION: u8 = 1;
/// Bytes of prelude.
pub const PRELUDE_LEN: usize = 16;
/// Bytes of MAC.
pub const MAC_LEN: usize = 32;

/// What a message announces of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prelude {
    /// The kind, as the policy numbers it; 0 is the transport's own.
    pub kind: u8,
    /// Bytes of header.
    pub header_len: u32,
    /// Bytes of payload.
    pub payload_len: u64,
}

/// Why 16 bytes are not a prelude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PreludeError {
    /// Another version of the format.
    #[error("wire version {0}; this node speaks version {VERSION} only")]
    Version(u8),
    /// Flags that have no meaning.
    #[error("wire flags {0:#06x}; none are defined")]
    Flags(u16),
}

impl Prelude {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; PRELUDE_LEN] {
        let (header, payload) = (self.header_len.to_le_bytes(), self.payload_len.to_le_bytes());
        let ([a, b, c, d], [e, f, g, h, i, j, k, l]) = (header, payload);
        [VERSION, self.kind, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    /// [`PreludeError`] for another version or any flag.
    pub fn decode(bytes: &[u8; PRELUDE_LEN]) -> Result<Prelude, PreludeError> {
        let [version, kind, f0, f1, a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        if version != VERSION {
            return Err(PreludeError::Version(version));
        }
        let flags = u16::from_le_bytes([f0, f1]);
        if flags != 0 {
            return Err(PreludeError::Flags(flags));
        }
        let header_len = u32::from_le_bytes([a, b, c, d]);
        let payload_len = u64::from_le_bytes([e, f, g, h, i, j, k, l]);
        Ok(Prelude { kind, header_len, payload_len })
    }

    /// Bytes of the whole message, which is what it costs in credit.
    pub fn frame_len(&self) -> u64 {
        frame_len(self.header_len, self.payload_len)
    }
}

/// Bytes on the wire of a message with such a header and payload; saturates at 2^64 - 1.
pub fn frame_len(header_len: u32, payload_len: u64) -> u64 {
    const FIXED: u64 = (PRELUDE_LEN + MAC_LEN) as u64;
    payload_len.saturating_add(u64::from(header_len)).saturating_add(FIXED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_is_as_specified() {
        let prelude = Prelude { kind: 0xab, header_len: 0x0403_0201, payload_len: 0x1817_1615_1413_1211 };
        let expected =
            [1, 0xab, 0, 0, 0x01, 0x02, 0x03, 0x04, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18];
        assert_eq!(prelude.encode(), expected);
    }

    #[test]
    fn other_versions_and_flags_are_refused() {
        let good = Prelude { kind: 1, header_len: 2, payload_len: 3 }.encode();
        for version in (0..=255).filter(|v| *v != VERSION) {
            let mut bytes = good;
            bytes[0] = version;
            assert_eq!(Prelude::decode(&bytes), Err(PreludeError::Version(version)));
        }
        for bit in 0..16 {
            let mut bytes = good;
            bytes[2 + bit / 8] |= 1 << (bit % 8);
            assert!(matches!(Prelude::decode(&bytes), Err(PreludeError::Flags(_))));
        }
    }

    #[test]
    fn the_longest_announcement_saturates() {
        assert_eq!(frame_len(u32::MAX, u64::MAX), u64::MAX);
        assert_eq!(frame_len(0, 0), 48);
    }

    proptest! {
        #[test]
        fn round_trip(kind: u8, header_len: u32, payload_len: u64) {
            let prelude = Prelude { kind, header_len, payload_len };
            prop_assert_eq!(Prelude::decode(&prelude.encode()), Ok(prelude));
        }
    }
}

//! Connection ids that a packet filter can tell from others in a dozen instructions.

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// Bytes of an id: four at random, four that follow from them and the key.
pub(super) const CID_LEN: usize = 8;

/// What makes ids of this process; new for each endpoint. It keeps strangers' packets out cheaply and secures nothing: who
/// sees enough ids can compute it, and then reaches what checks packets in earnest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct CidKey {
    pub(super) mask: u32,
    /// Odd, so that multiplying loses nothing.
    pub(super) first: u32,
    /// Odd too.
    pub(super) second: u32,
}

/// How far a word is shifted between the two multiplications, and after them.
pub(super) const SHIFTS: [u32; 2] = [16, 15];

impl CidKey {
    pub(in super::super) fn new(random: [u8; 12]) -> CidKey {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = random;
        CidKey {
            mask: u32::from_be_bytes([a, b, c, d]),
            first: u32::from_be_bytes([e, f, g, h]) | 1,
            second: u32::from_be_bytes([i, j, k, l]) | 1,
        }
    }

    fn tag(self, nonce: u32) -> u32 {
        let [middle, last] = SHIFTS;
        let mut word = (nonce ^ self.mask).wrapping_mul(self.first);
        word ^= word >> middle;
        word = word.wrapping_mul(self.second);
        word ^ (word >> last)
    }

    fn id(self, nonce: u32) -> [u8; CID_LEN] {
        let id = u64::from(nonce) << 32 | u64::from(self.tag(nonce));
        id.to_be_bytes()
    }

    /// Whether an id that begins `bytes` is one of ours.
    pub(super) fn made(self, bytes: &[u8]) -> bool {
        let id = bytes.first_chunk::<CID_LEN>().map(|id| u64::from_be_bytes(*id));
        id.is_some_and(|id| self.tag((id >> 32) as u32) == id as u32)
    }
}

/// Makes ids with one key.
pub(in super::super) struct Generator {
    key: CidKey,
    /// Counts ids for which there was no random number, so that each is another one all the same.
    unlucky: u32,
}

impl Generator {
    pub(in super::super) fn new(key: CidKey) -> Generator {
        Generator { key, unlucky: 0 }
    }
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut nonce = [0; 4];
        if aws_lc_rs::rand::fill(&mut nonce).is_err() {
            self.unlucky = self.unlucky.wrapping_add(1);
            nonce = self.unlucky.to_be_bytes();
        }
        ConnectionId::new(&self.key.id(u32::from_be_bytes(nonce)))
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if cid.len() == CID_LEN && self.key.made(cid) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_are_told_from_others(key: [u8; 12], nonce: u32, other: u32) {
            let key = CidKey::new(key);
            let id = key.id(nonce);
            prop_assert!(key.made(&id) && !key.made(&id[..7]));
            let mut forged = id;
            forged[4..].copy_from_slice(&other.to_be_bytes());
            prop_assert_eq!(key.made(&forged), forged == id);
        }
    }

    #[test]
    fn quinn_takes_the_ids_of_its_own_key_alone() {
        let mut ours = Generator::new(CidKey::new([7; 12]));
        let theirs = Generator::new(CidKey::new([8; 12]));
        let id = ours.generate_cid();
        assert!(ours.validate(&id).is_ok() && theirs.validate(&id).is_err());
        assert!(ours.validate(&ConnectionId::new(&[])).is_err());
    }
}

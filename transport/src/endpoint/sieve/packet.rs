//! What a datagram is, from its first bytes (RFC 9000, sections 17.2 and 17.3): as much as a filter needs.

use super::cid::{CID_LEN, CidKey};

/// The version of QUIC that is spoken.
pub(super) const VERSION: u32 = 1;
/// Set in packets with a long header.
pub(super) const LONG: u8 = 0x80;
/// Set in every packet; ours never agree to do without.
pub(super) const FIXED: u8 = 0x40;
/// The type of a packet with a long header.
pub(super) const TYPE: u8 = 0x30;
pub(super) const INITIAL: u8 = 0x00;
pub(super) const ZERO_RTT: u8 = 0x10;
/// Where the length of the destination's id stands in a long header, and where the id begins in each.
pub(super) const LONG_CID_LEN_AT: usize = 5;
pub(super) const LONG_CID_AT: usize = 6;
pub(super) const SHORT_CID_AT: usize = 1;
/// Ids that newcomers choose (RFC 9000, section 7.2).
pub(super) const LEAST_NEW_CID: u8 = 8;
pub(super) const MOST_CID: u8 = 20;
/// A newcomer's first datagram is at least so long (RFC 9000, section 14.1).
pub(super) const LEAST_NEW_DATAGRAM: usize = 1200;

/// What a datagram claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// For a connection of ours: its id says so.
    Ours,
    /// The same, in a packet that can begin a connection: after a Retry, or while a handshake goes on.
    OursInitial,
    /// A newcomer's.
    Newcomer,
    /// For no connection of ours. It may be the news that a peer has forgotten one (a stateless reset).
    Stray,
    /// Not the QUIC that is spoken here.
    Malformed,
}

pub(super) fn kind(key: CidKey, datagram: &[u8]) -> Kind {
    let Some(&first) = datagram.first() else { return Kind::Malformed };
    if first & FIXED == 0 {
        return Kind::Malformed;
    }
    let ours = |at: usize| datagram.get(at..).is_some_and(|rest| key.made(rest));
    if first & LONG == 0 {
        return if ours(SHORT_CID_AT) { Kind::Ours } else { Kind::Stray };
    }
    let version = datagram.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let Some(&len) = datagram.get(LONG_CID_LEN_AT) else { return Kind::Malformed };
    if version != Some(VERSION) {
        return Kind::Malformed;
    }
    let ours = usize::from(len) == CID_LEN && ours(LONG_CID_AT);
    match first & TYPE {
        INITIAL if ours => Kind::OursInitial,
        INITIAL if (LEAST_NEW_CID..=MOST_CID).contains(&len) && datagram.len() >= LEAST_NEW_DATAGRAM => {
            Kind::Newcomer
        }
        ZERO_RTT | INITIAL => Kind::Malformed,
        _ if ours => Kind::Ours,
        _ => Kind::Malformed,
    }
}

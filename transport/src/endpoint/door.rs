//! The door: who may begin a handshake now, decided before one costs anything.
//!
//! Rates count: in total, and for each address that has proved itself (for IPv6, each /64: that is what one subscriber holds). Addresses
//! from which a node of the job has come before draw on a reserve of their own, so that a flood of strangers
//! does not keep them out. A handshake that fails costs its address [`FAILURE_COST`] of them, down to a debt
//! that a minute or so pays off: the penalty box. Identities are held to a rate in the same way, and what a
//! peer is at fault for after it was admitted is charged to both.
//!
//! Invariants:
//!
//! 1. Nothing is decided for, stored of, or charged to an address that has not proved itself: who forges
//!    addresses makes no trouble for their owners. What unproved newcomers may have is a small rate for all of
//!    them together; beyond it they are asked to prove theirs.
//! 2. Handshakes begun in any span of `t` seconds are at most the bursts and rates of strangers, known
//!    addresses and unproved newcomers, added up.
//! 3. Memory is fixed: two tables of [`ADDRESSES`] addresses and one of [`IDENTITIES`] names, in which what was
//!    used longest ago makes room. Strangers never push out an address that is known.

use std::net::IpAddr;
use std::time::Duration;

use super::table::Table;
use crate::budget::{Bucket, Rate};
use crate::identity::SpiffeId;
use crate::subscriber::subscriber;

/// Addresses remembered of strangers, and as many of known ones: four times the largest job. An entry takes some 200 bytes.
const ADDRESSES: usize = 4096;
/// Identities remembered.
pub(super) const IDENTITIES: usize = 4096;
/// What a failed handshake costs its address: a stranger who fails gets a ninth of the rate of one who does not.
const FAILURE_COST: u32 = 8;
/// Deepest debt, as seconds of the rate that pays it off: a minute in the penalty box after the last failure.
const DEBT_SECONDS: u32 = 60;
/// Unproved newcomers a second, once the first few have come: a slow cluster start needs no Retry.
const UNPROVED_PER_SECOND: u32 = 4;

/// What the door keeps to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Handshakes of strangers, and again of known addresses.
    pub(super) total: Rate,
    /// Handshakes of one address.
    pub(super) per_address: Rate,
    /// Connections that one identity may begin.
    pub(super) per_peer: Rate,
    /// Handshakes in progress from which on every newcomer proves its address.
    pub(super) retry_after: usize,
}

/// What becomes of a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knock {
    /// It may begin its handshake.
    Admit,
    /// It must show first that it has the address it writes from.
    Prove,
    /// Its address has used up what it may have.
    AddressSpent,
    /// All newcomers together have.
    TotalSpent,
}

/// What one source of handshakes is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: IpAddr) -> Source {
        Source(subscriber(address))
    }
}

/// Rates and who has used up how much of them; time is handed in, as what has passed since some beginning.
#[derive(Debug)]
pub(super) struct Door {
    limits: Limits,
    strangers_total: Bucket,
    known_total: Bucket,
    unproved: Bucket,
    strangers: Table<Source, Bucket>,
    known: Table<Source, Bucket>,
    identities: Table<SpiffeId, Bucket>,
}

impl Door {
    pub(super) fn new(limits: Limits, now: Duration) -> Door {
        let burst = u32::try_from(limits.retry_after).unwrap_or(u32::MAX);
        let unproved = Rate { per_second: UNPROVED_PER_SECOND.min(burst), burst };
        Door {
            strangers_total: Bucket::full(limits.total, now),
            known_total: Bucket::full(limits.total, now),
            unproved: Bucket::full(unproved, now),
            strangers: Table::new(ADDRESSES),
            known: Table::new(ADDRESSES),
            identities: Table::new(IDENTITIES),
            limits,
        }
    }

    /// A newcomer at `address`, which it has proved to have or not, while so many handshakes are in progress.
    pub(super) fn knock(&mut self, now: Duration, address: IpAddr, proved: bool, pending: usize) -> Knock {
        if !proved {
            let at_once = pending < self.limits.retry_after && self.unproved.take(now);
            return if at_once { Knock::Admit } else { Knock::Prove };
        }
        let (source, rate) = (Source::of(address), self.limits.per_address);
        let (bucket, is_known) = match self.known.find(&source) {
            Some(bucket) => (bucket, true),
            None => (self.strangers.entry(&source, || Bucket::full(rate, now)), false),
        };
        if !bucket.has(now) {
            return Knock::AddressSpent;
        }
        let total = if is_known { &mut self.known_total } else { &mut self.strangers_total };
        if !total.take(now) {
            return Knock::TotalSpent;
        }
        bucket.take(now);
        Knock::Admit
    }

    /// A handshake from an address that was proved has failed.
    pub(super) fn failed(&mut self, now: Duration, address: IpAddr) {
        let (source, rate) = (Source::of(address), self.limits.per_address);
        let bucket = match self.known.find(&source) {
            Some(bucket) => bucket,
            None => self.strangers.entry(&source, || Bucket::full(rate, now)),
        };
        bucket.charge(now, FAILURE_COST, debt(rate));
    }

    /// A handshake has shown `peer` to be at `address`, which makes that address known and proved. Whether the
    /// peer may begin another connection.
    pub(super) fn authenticated(&mut self, now: Duration, address: IpAddr, peer: &SpiffeId) -> bool {
        let source = Source::of(address);
        let fresh = self.strangers.remove(&source);
        let rate = self.limits.per_address;
        self.known.entry(&source, || fresh.unwrap_or_else(|| Bucket::full(rate, now)));
        let rate = self.limits.per_peer;
        let may = self.identities.entry(peer, || Bucket::full(rate, now)).take(now);
        if !may {
            self.failed(now, address);
        }
        may
    }

    /// A peer that was admitted is at fault.
    pub(super) fn fault(&mut self, now: Duration, address: IpAddr, peer: &SpiffeId) {
        self.failed(now, address);
        let rate = self.limits.per_peer;
        self.identities.entry(peer, || Bucket::full(rate, now)).charge(now, FAILURE_COST, debt(rate));
    }
}

fn debt(rate: Rate) -> u32 {
    rate.per_second.saturating_mul(DEBT_SECONDS)
}

#[cfg(test)]
mod tests;

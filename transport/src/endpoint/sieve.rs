//! The sieve: drops datagrams that no honest node has sent before anything is computed for them.
//!
//! Every datagram is judged here by its first bytes and its source. Under a flood, the same rules are handed to the
//! kernel as a packet filter, which spares this process even taking the datagrams in; it is withdrawn when the flood
//! is over. A newcomer's first packet costs some tens of microseconds to answer, so those have a rate, in total and for
//! each source; in a flood of them the kernel draws lots.
//!
//! Invariants:
//!
//! 1. What belongs to a connection of ours always passes, if its network is allowed; connections that live notice
//!    nothing of a flood but its load.
//! 2. What passes of newcomers' and of stray packets keeps to their rates.
//! 3. Memory is fixed: sources share [`LANES`] rates by a keyed hash, and nothing is stored of any.
//! 4. What the kernel's program lets through at full pass is what [`packet::kind`] does, strays left out.
//! 5. A node that only dials lets no newcomer's packet pass.

mod cid;
mod packet;
mod program;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use packet::Kind;

use super::door::Source;
use crate::budget::{Bucket, Rate};
pub(super) use cid::{CidKey, Generator};
pub(super) use program::{Instruction, program};

/// Rates that sources share by hash.
const LANES: usize = 1024;
/// Packets that begin connections, in all: a cluster of a thousand nodes may start at once; after that, a fiftieth of a core.
const INITIALS: Rate = Rate { per_second: 1000, burst: 4096 };
/// The same for one source.
const INITIALS_OF_ONE: Rate = Rate { per_second: 200, burst: 4096 };
/// Packets of connections that this node does not know: as many as peers may send that it forgot.
const STRAYS: Rate = Rate { per_second: 100, burst: 1024 };
/// Datagrams dropped here, since the kernel last took a load off, that make it take another.
const RAISE_AFTER: u32 = 256;
/// Time without so many after which the kernel's filter is opened by one notch, to see whether the flood is over: a look costs
/// [`RAISE_AFTER`] datagrams.
pub(super) const LOWER_AFTER: Duration = Duration::from_millis(250);
/// The closest setting: of newcomers' packets one in 4,096 gets as far as here.
const CLOSEST: u32 = 13;

/// How many datagrams were dropped here, by reason. What the kernel drops is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SieveStats {
    /// From networks that are not allowed.
    pub not_allowed: u64,
    /// No QUIC of the version that is spoken.
    pub malformed: u64,
    /// Packets of no connection, beyond their rate.
    pub strays: u64,
    /// Newcomers' packets, beyond their rates, or at a node that only dials.
    pub newcomers: u64,
    /// Times that the kernel was told to filter, or to filter closer.
    pub raised: u64,
    /// How close the kernel filters now: 0 for not at all, 1 for everything but newcomers, and of those with each notch half.
    pub notch: u32,
}

/// Decides on datagrams; time is handed in.
#[derive(Debug)]
pub(super) struct Sieve {
    key: CidKey,
    allow: Vec<IpNet>,
    /// Whether newcomers have any business here.
    accepts: bool,
    hasher: RandomState,
    total: Bucket,
    lanes: Vec<Bucket>,
    strays: Bucket,
    stats: SieveStats,
    dropped: u32,
    since: Duration,
}

impl Sieve {
    /// For a node that `accepts` newcomers, or only dials.
    pub(super) fn new(key: CidKey, allow: Vec<IpNet>, accepts: bool, now: Duration) -> Sieve {
        Sieve {
            key,
            allow,
            accepts,
            hasher: RandomState::new(),
            total: Bucket::full(INITIALS, now),
            lanes: vec![Bucket::full(INITIALS_OF_ONE, now); LANES],
            strays: Bucket::full(STRAYS, now),
            stats: SieveStats::default(),
            dropped: 0,
            since: now,
        }
    }

    pub(super) fn stats(&self) -> SieveStats {
        self.stats
    }

    /// What the kernel should do now; none for letting everything through.
    pub(super) fn program(&self) -> Option<Vec<Instruction>> {
        let halvings = self.stats.notch.checked_sub(1)?;
        Some(program(self.key, &self.allow, halvings))
    }

    /// Whether a datagram may be looked at further.
    pub(super) fn passes(&mut self, now: Duration, source: IpAddr, datagram: &[u8]) -> bool {
        let kind = packet::kind(self.key, datagram);
        let source = source.to_canonical();
        let stats = &mut self.stats;
        let (passes, count) = if !self.allow.is_empty() && !self.allow.iter().any(|net| net.contains(&source))
        {
            (false, &mut stats.not_allowed)
        } else {
            match kind {
                Kind::Ours => return true,
                Kind::Malformed => (false, &mut stats.malformed),
                Kind::Stray => (self.strays.take(now), &mut stats.strays),
                Kind::Newcomer if !self.accepts => (false, &mut stats.newcomers),
                Kind::OursInitial | Kind::Newcomer => {
                    let lane = self.hasher.hash_one(Source::of(source)) as usize % LANES;
                    let own = self.lanes.get_mut(lane).is_none_or(|lane| lane.take(now));
                    (own && self.total.take(now), &mut stats.newcomers)
                }
            }
        };
        if !passes {
            *count += 1;
            self.dropped += 1;
        }
        passes
    }

    /// Called with every batch, and every [`LOWER_AFTER`]: whether [`Sieve::program`] has another answer than before.
    pub(super) fn adjusted(&mut self, now: Duration) -> bool {
        let stats = &mut self.stats;
        let elapsed = now.saturating_sub(self.since);
        if self.dropped >= RAISE_AFTER {
            (self.dropped, self.since) = (0, now);
            if stats.notch < CLOSEST {
                stats.notch += 1;
                stats.raised += 1;
                return true;
            }
        } else if elapsed >= LOWER_AFTER {
            (self.dropped, self.since) = (0, now);
            if stats.notch > 0 {
                stats.notch -= 1;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;

//! How fast one identity is heard, over all its connections together. Pure; time is handed in.
//!
//! Streams have a rate, and so has every kind of message whose honest frequency follows from time. What comes faster is not
//! refused but heard late: it keeps its credit meanwhile, so whoever floods runs out of credit and waits, and an honest burst
//! loses nothing. Who keeps on being late floods, and what waits behind its flood is late too: it is cut off. What follows from progress (pushes, pulls, reports of steps) has no rate here: whoever hears it knows what
//! the work can need.
//!
//! Invariants:
//!
//! 1. Of a kind with a rate, at most `burst + per_second * t` messages, and one for each stream, are heard in any `t` seconds.
//! 2. Who stays within the rate never waits.
//! 3. No wait is longer than `MOST_OWED` messages take.
//! 4. Memory is bounded by the kinds of the policy.
//! 5. Of what is late, no more than a burst and one a second is heard.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::budget::{Bucket, Rate};

/// Messages of one kind that may wait at a time, one for each stream: as many streams as one identity may have open.
const MOST_OWED: u32 = 1024;

/// Messages that may be late in all: half a second of one stream's, at the least rate there is, after a burst of many seconds'.
const LATE: Rate = Rate { per_second: 1, burst: 32 };

/// One identity's rates.
#[derive(Debug)]
pub struct Pace {
    streams: Bucket,
    late: Bucket,
    kinds: BTreeMap<u8, Bucket>,
}

impl Pace {
    /// With that rate of streams; kinds bring theirs.
    #[must_use]
    pub fn new(streams: Rate, now: Duration) -> Pace {
        Pace { streams: Bucket::full(streams, now), late: Bucket::full(LATE, now), kinds: BTreeMap::new() }
    }

    /// How long until the next stream may be taken.
    pub fn stream_due(&mut self, now: Duration) -> Duration {
        self.streams.wait(now).unwrap_or_default()
    }

    /// A stream was taken.
    pub fn stream_taken(&mut self, now: Duration) {
        self.streams.charge(now, 1, MOST_OWED);
    }

    /// A message is late; whether one more may be.
    pub fn late(&mut self, now: Duration) -> bool {
        self.late.take(now)
    }

    /// How long a message that has come must wait until it is heard.
    pub fn message(&mut self, now: Duration, kind: u8, rate: Rate) -> Duration {
        self.kinds.entry(kind).or_insert_with(|| Bucket::full(rate, now)).owe(now, MOST_OWED)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Invariant 2, and what a kind uses up is its own.
    #[test]
    fn a_burst_is_heard_at_once_and_then_the_rate_holds() {
        let mut pace = Pace::new(RATE, ms(0));
        let waits: Vec<Duration> = (0..8).map(|_| pace.message(ms(0), 7, RATE)).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 100, 200, 300].map(ms));
        assert_eq!(pace.message(ms(0), 8, RATE), ms(0), "another kind");
        assert_eq!(pace.message(ms(400), 7, RATE), ms(0));
        assert_eq!(pace.message(ms(400), 7, RATE), ms(100));
    }

    #[test]
    fn streams_wait_for_their_turn() {
        let mut pace = Pace::new(RATE, ms(0));
        for _ in 0..5 {
            assert_eq!(pace.stream_due(ms(0)), ms(0));
            pace.stream_taken(ms(0));
        }
        assert_eq!(pace.stream_due(ms(0)), ms(100));
        assert_eq!(pace.stream_due(ms(100)), ms(0));
    }

    /// Invariant 5.
    #[test]
    fn who_keeps_on_being_late_is_told_apart() {
        let mut pace = Pace::new(RATE, ms(0));
        assert_eq!((0..1000).filter(|_| pace.late(ms(0))).count(), 32);
        assert!(!pace.late(ms(999)) && pace.late(ms(1000)));
    }

    /// Invariant 3.
    #[test]
    fn no_wait_is_longer_than_its_bound() {
        let mut pace = Pace::new(RATE, ms(0));
        let longest = (0..10 * MOST_OWED).map(|_| pace.message(ms(0), 7, RATE)).max().unwrap();
        assert_eq!(longest, ms(100) * MOST_OWED);
    }

    proptest! {
        /// Invariants 1 and 2, for streams that send whenever they were heard, some of them after a pause.
        #[test]
        fn a_flood_is_heard_at_its_rate(
            streams in 1usize..8, pauses in prop::collection::vec(0u64..300, 1..200)
        ) {
            let mut pace = Pace::new(RATE, ms(0));
            let mut free = vec![ms(0); streams];
            let mut heard = Vec::new();
            for pause in pauses {
                let next = (0..streams).min_by_key(|s| free[*s]).unwrap();
                let now = free[next] + ms(pause);
                // Time does not go back for the rates that all streams share.
                let now = now.max(heard.last().map_or(ms(0), |(sent, _)| *sent));
                let at = now + pace.message(now, 7, RATE);
                free[next] = at;
                heard.push((now, at));
            }
            let mut times: Vec<Duration> = heard.iter().map(|(_, at)| *at).collect();
            times.sort();
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let allowed = 5.0 + 10.0 * (*to - *from).as_secs_f64() + streams as f64;
                    prop_assert!((last - first) as f64 <= allowed + 1e-6, "{first} {last}");
                }
            }
        }

        /// Invariant 2.
        #[test]
        fn who_keeps_to_the_rate_never_waits(gaps in prop::collection::vec(100u64..1000, 1..100)) {
            let mut pace = Pace::new(RATE, ms(0));
            let mut now = 0;
            for gap in gaps {
                now += gap;
                prop_assert_eq!(pace.message(ms(now), 7, RATE), ms(0));
            }
        }
    }
}

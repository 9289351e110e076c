//! Token buckets: how often something may happen, with time handed in.
//!
//! Invariants:
//!
//! 1. In any span of `t` seconds at most `burst + per_second * t` tokens are taken.
//! 2. A level is never above the burst and never deeper in debt than the holder allows.
//! 3. Time that stands still or goes back adds nothing.

use std::time::Duration;

/// Parts of a token that levels are counted in: what one a second gains in a microsecond.
const PARTS: i64 = 1_000_000;

/// How often: so many at once, and so many a second from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Tokens gained a second.
    pub per_second: u32,
    /// Most tokens held: what may happen at once after a quiet time.
    pub burst: u32,
}

impl Rate {
    fn full(self) -> i64 {
        i64::from(self.burst) * PARTS
    }
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    level: i64,
    at: Duration,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(rate: Rate, now: Duration) -> Bucket {
        Bucket { rate, level: rate.full(), at: now }
    }

    /// Takes one token if there is a whole one.
    pub fn take(&mut self, now: Duration) -> bool {
        self.refill(now);
        let has = self.level >= PARTS;
        if has {
            self.level -= PARTS;
        }
        has
    }

    /// Takes tokens whether there are any or not, down to `debt` below nothing.
    pub fn charge(&mut self, now: Duration, tokens: u32, debt: u32) {
        self.refill(now);
        let floor = -i64::from(debt) * PARTS;
        let charged = self.level.saturating_sub(i64::from(tokens) * PARTS);
        self.level = charged.max(floor.min(self.level));
    }

    /// Takes one token whether there is one or not, down to `debt` below nothing; how long until nothing is owed.
    pub fn owe(&mut self, now: Duration, debt: u32) -> Duration {
        self.charge(now, 1, debt);
        let owed = u64::try_from(-self.level).unwrap_or(0);
        Duration::from_micros(owed.div_ceil(u64::from(self.rate.per_second.max(1))))
    }

    /// Whether there is a whole token.
    pub fn has(&mut self, now: Duration) -> bool {
        self.refill(now);
        self.level >= PARTS
    }

    /// How long until there is a whole token; none when there never will be.
    pub fn wait(&mut self, now: Duration) -> Option<Duration> {
        self.refill(now);
        let missing = u64::try_from(PARTS - self.level).unwrap_or(0);
        if missing == 0 {
            return Some(Duration::ZERO);
        }
        let per_second = u64::from(self.rate.per_second);
        (per_second > 0 && self.rate.burst > 0).then(|| Duration::from_micros(missing.div_ceil(per_second)))
    }

    fn refill(&mut self, now: Duration) {
        let Some(elapsed) = now.checked_sub(self.at) else { return };
        let micros = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        let gained = micros.saturating_mul(i64::from(self.rate.per_second));
        self.level = self.level.saturating_add(gained).min(self.rate.full());
        // Only whole microseconds are used up, or many short spans would gain nothing.
        self.at += Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 4, burst: 3 };

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::full(RATE, at(0));
        assert_eq!([true, true, true, false], [(); 4].map(|()| bucket.take(at(0))));
        assert_eq!(bucket.wait(at(0)), Some(at(250)));
        assert!(!bucket.take(at(249)));
        assert!(bucket.take(at(250)));
        assert!(!bucket.has(at(499)) && bucket.has(at(500)));
    }

    #[test]
    fn debt_is_worked_off_and_bounded() {
        let mut bucket = Bucket::full(RATE, at(0));
        for _ in 0..100 {
            bucket.charge(at(0), 50, 8);
        }
        // Eight of debt and one to spend, at four a second.
        assert_eq!(bucket.wait(at(0)), Some(at(2250)));
        assert!(!bucket.take(at(2249)) && bucket.take(at(2250)));
    }

    /// Invariant 3.
    #[test]
    fn time_that_goes_back_adds_nothing() {
        let mut bucket = Bucket::full(RATE, at(1000));
        while bucket.take(at(1000)) {}
        assert!(!bucket.take(at(0)) && !bucket.take(at(1000)));
        assert!(bucket.take(at(1250)));
    }

    #[test]
    fn a_rate_of_nothing_gives_nothing() {
        let mut bucket = Bucket::full(Rate { per_second: 0, burst: 0 }, at(0));
        assert!(!bucket.take(at(0)) && !bucket.take(Duration::MAX));
        assert_eq!(bucket.wait(Duration::MAX), None);
    }

    proptest! {
        /// Invariants 1 and 2, for spans that start anywhere.
        #[test]
        fn no_span_has_more_than_its_share(
            rate in (0u32..2000, 0u32..50),
            steps in prop::collection::vec((0u64..300_000_000, 0u32..4), 1..200),
        ) {
            let rate = Rate { per_second: rate.0, burst: rate.1 };
            let mut bucket = Bucket::full(rate, Duration::ZERO);
            let (mut now, mut taken): (Duration, Vec<Duration>) = (Duration::ZERO, Vec::new());
            for (nanos, tries) in steps {
                now += Duration::from_nanos(nanos);
                for _ in 0..tries {
                    if bucket.take(now) {
                        taken.push(now);
                    }
                }
                prop_assert!(bucket.level <= rate.full() && bucket.level >= 0);
            }
            for (first, start) in taken.iter().enumerate() {
                for (last, end) in taken.iter().enumerate().skip(first) {
                    let span = (*end - *start).as_secs_f64() + 1e-6;
                    let most = f64::from(rate.burst) + f64::from(rate.per_second) * span;
                    prop_assert!((last - first + 1) as f64 <= most + 1e-3);
                }
            }
        }

        /// Invariant 2.
        #[test]
        fn charges_keep_to_the_debt(charges in prop::collection::vec((0u64..2000, any::<u32>(), 0u32..40), 1..50)) {
            let mut bucket = Bucket::full(RATE, Duration::ZERO);
            let (mut now, mut deepest) = (Duration::ZERO, 0);
            for (millis, tokens, debt) in charges {
                now += at(millis);
                deepest = deepest.max(debt);
                bucket.charge(now, tokens, debt);
                prop_assert!(bucket.level >= -i64::from(deepest) * PARTS && bucket.level <= RATE.full());
            }
        }
    }
}

//! How often somebody may knock: a bucket for everybody together, and one for each address.
//!
//! 1. In any time `t`, at most `burst + t * rate` knocks pass, in total and for each address that is remembered.
//! 2. At most [`MAX_ADDRESSES`] are remembered; an address that is not finds only the total in its way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::subscriber::subscriber;

/// Addresses remembered, at some 50 bytes each.
const MAX_ADDRESSES: usize = 4096;

/// So many at once, and so many a second from then on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) burst: f64,
    pub(super) per_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Duration,
}

impl Bucket {
    fn full(rate: Rate, now: Duration) -> Bucket {
        Bucket { left: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.left = (self.left + passed * rate.per_second).min(rate.burst);
        self.at = now;
    }
}

/// The buckets. Time is a span since any beginning.
#[derive(Debug)]
pub(super) struct Rates {
    total: Rate,
    each: Rate,
    all: Bucket,
    by_address: HashMap<IpAddr, Bucket>,
}

impl Rates {
    pub(super) fn new(total: Rate, each: Rate) -> Rates {
        Rates { total, each, all: Bucket::full(total, Duration::ZERO), by_address: HashMap::new() }
    }

    /// Whether a knock from `address` passes; one that does not costs nothing.
    pub(super) fn pass(&mut self, address: IpAddr, now: Duration) -> bool {
        let (total, each, address) = (self.total, self.each, subscriber(address));
        self.all.refill(total, now);
        if self.by_address.len() >= MAX_ADDRESSES && !self.by_address.contains_key(&address) {
            // Who has been quiet long enough to have everything again need not be remembered.
            self.by_address.retain(|_, bucket| {
                bucket.refill(each, now);
                bucket.left < each.burst
            });
        }
        if self.all.left < 1.0 {
            return false;
        }
        if self.by_address.len() < MAX_ADDRESSES || self.by_address.contains_key(&address) {
            let bucket = self.by_address.entry(address).or_insert_with(|| Bucket::full(each, now));
            bucket.refill(each, now);
            if bucket.left < 1.0 {
                return false;
            }
            bucket.left -= 1.0;
        }
        self.all.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: Rate = Rate { burst: 10.0, per_second: 5.0 };
    const EACH: Rate = Rate { burst: 3.0, per_second: 1.0 };

    fn passed(rates: &mut Rates, address: &str, now: u64) -> usize {
        let address: IpAddr = address.parse().unwrap();
        (0..100).filter(|_| rates.pass(address, Duration::from_secs(now))).count()
    }

    /// Invariant 1.
    #[test]
    fn one_address_and_all_together_are_held_to_their_rates() {
        let mut rates = Rates::new(TOTAL, EACH);
        assert_eq!(passed(&mut rates, "10.0.0.1", 0), 3);
        assert_eq!(passed(&mut rates, "10.0.0.2", 0), 3);
        assert_eq!(passed(&mut rates, "::ffff:10.0.0.2", 0), 0, "the same machine");
        assert_eq!(passed(&mut rates, "2001:db8::1", 0), 3);
        assert_eq!(passed(&mut rates, "2001:db8::2", 0), 0, "the same network");
        assert_eq!(passed(&mut rates, "10.0.0.3", 0), 1, "the total is spent");
        assert_eq!(passed(&mut rates, "10.0.0.1", 2), 2);
        assert_eq!(passed(&mut rates, "10.0.0.1", 1000), 3, "a bucket does not overflow");
    }

    /// Invariant 2.
    #[test]
    fn addresses_are_remembered_within_bounds() {
        let wide = Rate { burst: 1e9, per_second: 1e9 };
        let mut rates = Rates::new(wide, EACH);
        for number in 0..2 * MAX_ADDRESSES as u32 {
            assert!(rates.pass(IpAddr::from(number.to_be_bytes()), Duration::ZERO));
        }
        assert_eq!(rates.by_address.len(), MAX_ADDRESSES);
        assert!(rates.pass(IpAddr::from([9, 9, 9, 9]), Duration::from_secs(10)));
        assert_eq!(rates.by_address.len(), 1, "the quiet are forgotten");
    }
}

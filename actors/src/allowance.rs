//! What one member may still ask of a node: as much as the work that was done can need. Pure; time is handed in.
//!
//! How often an honest member speaks follows from the job and from how fast training goes, so an allowance grows with progress
//! (steps, versions, orders) and a little with time. A member that uses its allowance up says what no part of the work can need.
//!
//! Invariants:
//!
//! 1. At most `most` are taken beyond what was earned and what time gave.
//! 2. Whoever takes no more than was earned is never refused.
//! 3. Who is quiet saves up no more than `most`.

use std::time::Duration;

use testudo_transport::{Bucket, Rate};

/// Steps' worth that may be taken ahead of progress: workers may begin four steps ahead of the last complete one, and what
/// a lost worker had begun is done again.
const AHEAD: u64 = 8;

/// One member's allowance.
#[derive(Clone, Debug)]
pub struct Allowance {
    most: u64,
    left: u64,
    spare: Bucket,
}

impl Allowance {
    /// Full, where a step of training needs at most `a_step`, with `spare` for what comes beside progress: what is asked again.
    #[must_use]
    pub fn new(a_step: u64, spare: Rate, now: Duration) -> Allowance {
        let most = a_step.saturating_mul(AHEAD);
        Allowance { most, left: most, spare: Bucket::full(spare, now) }
    }

    /// Full again, where from now on a step needs `a_step`: members have changed, and what others had begun is done again.
    pub fn renew(&mut self, a_step: u64) {
        self.most = a_step.saturating_mul(AHEAD);
        self.left = self.most;
    }

    /// Progress was made that may need so many.
    pub fn earn(&mut self, count: u64) {
        self.left = self.left.saturating_add(count).min(self.most);
    }

    /// Takes one; whether there was one.
    pub fn take(&mut self, now: Duration) -> bool {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => self.spare.take(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPARE: Rate = Rate { per_second: 64, burst: 1024 };

    /// Invariants 1 and 3.
    #[test]
    fn a_flood_gets_what_is_allowed_and_no_more() {
        let now = Duration::from_secs(5);
        let mut allowance = Allowance::new(10, SPARE, now);
        let taken = |allowance: &mut Allowance, now| (0..100_000).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(&mut allowance, now), 80 + 1024);
        allowance.earn(10);
        assert_eq!(taken(&mut allowance, now), 10);
        assert_eq!(taken(&mut allowance, now + Duration::from_secs(1)), 64);
        allowance.earn(u64::MAX);
        assert_eq!(taken(&mut allowance, now), 80);
        allowance.renew(3);
        assert_eq!(taken(&mut allowance, now), 24);
    }

    proptest! {
        /// Invariant 2: steps of an honest worker, as far ahead of progress as it may be, whatever time passes.
        #[test]
        fn an_honest_member_is_never_refused(a_step in 1u64..50, gaps in prop::collection::vec(0u64..3, 1..200)) {
            let mut allowance = Allowance::new(a_step, SPARE, Duration::ZERO);
            let (mut done, mut begun) = (0, 0);
            for ahead in gaps {
                while begun < done + ahead {
                    for _ in 0..a_step {
                        prop_assert!(allowance.take(Duration::ZERO));
                    }
                    begun += 1;
                }
                if begun > done {
                    done += 1;
                    allowance.earn(a_step);
                }
            }
            prop_assert_eq!(allowance.spare, Bucket::full(SPARE, Duration::ZERO), "nothing of the spare was needed");
        }
    }
}

//! What each worker may still ask of a server: as much as the versions that there were can need, by the nodes that it holds.
//!
//! 1. Of each version of a slice a worker may push once for each node that it holds, and pull once, or twice where evaluations
//!    take the exact values as well; what it asks again, however often members change, has a little of its own.
//! 2. A worker that holds a lease is never refused for what another holds or does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use testudo_transport::Rate;

use crate::allowance::Allowance;
use crate::lease::Lease;
use crate::time::Clock;

/// Bytes a second that one worker may make a server take in, or send, for nothing. Whatever members do is allowed for otherwise.
const SPARE_BYTES: u32 = 8 << 20;
/// Requests a second, however small slices are: each costs some ten microseconds.
const SPARE_REQUESTS: u32 = 64;

#[derive(Debug)]
struct Part {
    allowance: Allowance,
    /// Requests that a version of a slice can need.
    of_slice: u64,
}

/// What each worker may still ask.
#[derive(Clone, Debug)]
pub(super) struct Allowances {
    clock: Clock,
    slices: u64,
    /// Pulls that a version of a slice can need.
    pulls: u64,
    spare: Rate,
    by_worker: Arc<Mutex<BTreeMap<u32, Part>>>,
}

impl Allowances {
    /// For a server of so many slices, of at most `slice_bytes` each. `exact` says whether versions are also pulled exactly.
    pub(super) fn new(slices: usize, slice_bytes: u32, exact: bool) -> Allowances {
        let per_second = (SPARE_BYTES / slice_bytes.max(1)).clamp(1, SPARE_REQUESTS);
        let spare = Rate { per_second, burst: 2 * per_second };
        let pulls = if exact { 2 } else { 1 };
        Allowances { clock: Clock::start(), slices: slices as u64, pulls, spare, by_worker: Arc::default() }
    }

    /// A slice has a new version.
    pub(super) fn earn(&self) {
        self.lock().values_mut().for_each(|part| part.allowance.earn(part.of_slice));
    }

    /// Members have changed: what others had begun is done again. Who has lost its leases keeps what it had, so that there are no
    /// more entries than the job has workers.
    pub(super) fn renew(&self, leases: &[Lease]) {
        let mut nodes: BTreeMap<u32, u64> = BTreeMap::new();
        leases.iter().for_each(|lease| *nodes.entry(lease.worker).or_default() += 1);
        let now = self.clock.now().0;
        let mut parts = self.lock();
        for (worker, nodes) in nodes {
            let of_slice = nodes + self.pulls;
            let a_step = of_slice.saturating_mul(self.slices);
            let fresh = || Part { allowance: Allowance::new(a_step, self.spare, now), of_slice };
            let part = parts.entry(worker).or_insert_with(fresh);
            part.of_slice = of_slice;
            part.allowance.renew(a_step);
        }
    }

    /// Takes one request of `worker`; whether it had one.
    pub(super) fn take(&self, worker: u32) -> bool {
        self.take_at(worker, self.clock.now().0)
    }

    fn take_at(&self, worker: u32, now: Duration) -> bool {
        self.lock().get_mut(&worker).is_some_and(|part| part.allowance.take(now))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Part>> {
        self.by_worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Node;

    fn lease(worker: u32, shard: u32) -> Lease {
        Lease { node: Node::leaf(shard), worker, since: 1, from_step: 0, alone_from: 0, to_step: None }
    }

    fn taken(allowances: &Allowances, worker: u32) -> usize {
        (0..10_000).take_while(|_| allowances.take_at(worker, Duration::ZERO)).count()
    }

    /// Invariants 1 and 2: eight steps' worth of two slices, by the nodes held, and what is spare.
    #[test]
    fn a_worker_may_ask_for_what_its_nodes_can_need() {
        let allowances = Allowances::new(2, 1 << 20, false);
        allowances.renew(&[lease(0, 0), lease(1, 1), lease(1, 2)]);
        let spare = 2 * 8;
        assert_eq!(taken(&allowances, 0), 8 * 2 * 2 + spare);
        assert_eq!(taken(&allowances, 1), 8 * 2 * 3 + spare, "another's requests are its own affair");
        assert_eq!(taken(&allowances, 2), 0, "it holds nothing");
        allowances.earn();
        assert_eq!((taken(&allowances, 0), taken(&allowances, 1)), (2, 3));
        // Worker 1 is lost: who takes its nodes over does their steps again, and it has nothing new.
        allowances.renew(&[lease(0, 0), lease(0, 1), lease(0, 2)]);
        assert_eq!((taken(&allowances, 0), taken(&allowances, 1)), (8 * 2 * 4, 0));
    }

    /// What is spare is counted in bytes where slices are large.
    #[test]
    fn large_slices_leave_less_to_spare() {
        let spare = |slice_bytes| Allowances::new(1, slice_bytes, false).spare.per_second;
        assert_eq!([64, 1 << 20, 16 << 20].map(spare), [64, 8, 1]);
    }

    /// Evaluations between steps pull exact values beside the encoded ones: any number of them leaves enough for the steps.
    #[test]
    fn exact_pulls_for_evaluations_are_allowed_for() {
        let steps = |exact| {
            let allowances = Allowances::new(40, 1 << 20, exact);
            allowances.renew(&[lease(0, 0)]);
            let now = allowances.clock.now().0;
            // A push, a pull and an exact pull of each slice.
            (0..200)
                .take_while(|_| {
                    let asked = (0..3 * 40).all(|_| allowances.take_at(0, now));
                    (0..40).for_each(|_| allowances.earn());
                    asked
                })
                .count()
        };
        assert_eq!(steps(true), 200);
        assert!(steps(false) < 40, "without, an honest worker would be cut off");
    }
}

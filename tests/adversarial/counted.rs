//! The oracle's metric and record: whom a node refused, by cause, as a collector that is no code of ours gets it while the attack
//! goes on, and that the audit log has as many in the end.
//!
//! 1. [`Counts::rise`]: by what an attack is refused as, and by no other, its victim's counts rise, and by exactly so many. Only
//!    handshakes that were late may come on top: whoever is not answered at once sends its first packet again, and what of it is
//!    found when the connection is over begins another, which nobody goes on with.
//! 2. [`Counts::recorded`]: what a node has counted under each cause is what the audit log has of it, whole.

use std::collections::BTreeMap;
use std::time::Duration;

use testudo_tests::collector::Collector;
use testudo_tests::live::{Live, Node, Plan, refusals, until, within};
use testudo_transport::Cause;

/// Long after a count has been exported.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts by cause.
pub(crate) type ByCause = BTreeMap<String, u64>;

/// What nodes count.
pub(crate) struct Counts(Collector);

impl Counts {
    /// Starts the collector; `None` if there is no interpreter for it and none is required.
    pub(crate) fn start() -> Option<Counts> {
        Collector::start().map(Counts)
    }

    /// `plan`, for a cluster whose nodes tell what they count.
    pub(crate) fn plan(&self, plan: Plan) -> Plan {
        Plan { environment: self.0.environment(), ..plan }
    }

    /// What `node` has refused so far, by cause.
    pub(crate) fn so_far(&self, node: &Node) -> ByCause {
        // The export after the next was begun when this was.
        let name = node.id.short();
        let after = self.0.exports(name) + 2;
        until("an export", || (self.0.exports(name) >= after).then_some(()));
        self.of(name)
    }

    /// What `attack` gives. By what it does, `node`'s counts of refusals have then risen by `expected`, and no others.
    pub(crate) fn rise<T>(&self, node: &Node, expected: &[(Cause, u64)], attack: impl FnOnce() -> T) -> T {
        let before = self.so_far(node);
        let done = attack();
        self.risen_since(node, before, expected);
        done
    }

    /// Since `before`, `node`'s counts have risen by `expected`, and no others.
    pub(crate) fn risen_since(&self, node: &Node, before: ByCause, expected: &[(Cause, u64)]) {
        let expected: ByCause = expected
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(cause, count)| (cause.as_str().to_owned(), *count))
            .collect();
        let risen = || self.risen_but_late(node, &before, |late| expected.contains_key(late));
        if within(PATIENCE, || (risen() == expected).then_some(())).is_none() {
            panic!("{} counted {:?} instead of {expected:?}", node.id.short(), risen());
        }
    }

    /// What a node has counted more since `before`, but for handshakes that were late, unless they are `expected` (invariant 1).
    fn risen_but_late(&self, node: &Node, before: &ByCause, expected: impl Fn(&str) -> bool) -> ByCause {
        let mut risen = risen(before, &self.of(node.id.short()));
        let late = Cause::Late.as_str();
        if !expected(late) {
            risen.remove(late);
        }
        risen
    }

    /// As [`rise`](Counts::rise), of refusals that may be counted under any of `causes`, and are `count` in all.
    pub(crate) fn rise_among<T>(
        &self,
        node: &Node,
        causes: &[Cause],
        count: u64,
        attack: impl FnOnce() -> T,
    ) -> T {
        let before = self.so_far(node);
        let done = attack();
        let risen = || self.risen_but_late(node, &before, |_| causes.contains(&Cause::Late));
        let all = || {
            let risen = risen();
            let only = risen.keys().all(|cause| causes.iter().any(|one| one.as_str() == cause));
            (only && risen.values().sum::<u64>() == count).then_some(())
        };
        if within(PATIENCE, all).is_none() {
            panic!("{} counted {:?} instead of {count} of {causes:?}", node.id.short(), risen());
        }
        done
    }

    /// Since `before`, `node` has counted more under one of `causes`, if there are any.
    pub(crate) fn more_since(&self, node: &Node, before: &ByCause, causes: &[Cause]) {
        if !self.is_more_within(PATIENCE, node, before, causes) {
            let risen = risen(before, &self.of(node.id.short()));
            panic!("{} counted {risen:?} and none of {causes:?}", node.id.short());
        }
    }

    /// Whether that is so within `patience`.
    pub(crate) fn is_more_within(
        &self,
        patience: Duration,
        node: &Node,
        before: &ByCause,
        causes: &[Cause],
    ) -> bool {
        let one = || {
            let risen = risen(before, &self.of(node.id.short()));
            causes.iter().any(|cause| risen.contains_key(cause.as_str())).then_some(())
        };
        causes.is_empty() || within(patience, one).is_some()
    }

    /// Series of refusals that `node` has exported at once.
    pub(crate) fn series(&self, node: &Node) -> usize {
        self.0.newest(node.id.short(), "testudo.refusals").len()
    }

    /// Another count of a node, its series added up.
    pub(crate) fn number(&self, node: &Node, metric: &str) -> f64 {
        self.0.newest(node.id.short(), metric).values().sum()
    }

    /// Ends the run: what each node counted, from its first refusal to its last, is in the audit log under the same cause.
    pub(crate) fn recorded(&self, live: Live) {
        // A server tells the scheduler with its heartbeats: what it counts after the last one is in no log.
        std::thread::sleep(Duration::from_millis(3 * live.site.job.heartbeat_ms));
        let names: Vec<String> = live.nodes().iter().map(|node| node.id.short().to_owned()).collect();
        let recorded = refusals(&live.finish());
        for name in names {
            let told = recorded.get(&name).cloned().unwrap_or_default();
            if within(PATIENCE, || (self.of(&name) == told).then_some(())).is_none() {
                panic!("{name} counted {:?}, and the audit log has {told:?}", self.of(&name));
            }
        }
    }

    fn of(&self, node: &str) -> ByCause {
        let mut counts = ByCause::new();
        for (series, count) in self.0.newest(node, "testudo.refusals") {
            let cause = series.split(',').find_map(|pair| pair.strip_prefix("cause=")).unwrap_or_default();
            // A count of refusals is far below 2^53.
            *counts.entry(cause.to_owned()).or_default() += count as u64;
        }
        counts
    }
}

fn risen(before: &ByCause, now: &ByCause) -> ByCause {
    let risen = |(cause, count): (&String, &u64)| {
        let risen = count.saturating_sub(before.get(cause).copied().unwrap_or_default());
        (risen > 0).then(|| (cause.clone(), risen))
    };
    now.iter().filter_map(risen).collect()
}

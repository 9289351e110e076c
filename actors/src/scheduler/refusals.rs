//! Whom nodes refused, on its way into the audit log. Pure.
//!
//! 1. No count that a node reports is lost: what cannot be named any more is counted under `others`.
//! 2. Of each node there is one record in [`EVERY`] at most, whatever it refuses, and one of bounded length.
//! 3. A report of causes that are none, or too long, is its sender's fault.

use std::collections::BTreeMap;
use std::time::Duration;

use testudo_transport::Cause;
use testudo_transport::refusals::MAX_NAMED;

use crate::audit::{Entry, Refusal};
use crate::message::RefusalReport;
use crate::time::Time;

/// Between two records.
pub(super) const EVERY: Duration = Duration::from_secs(10);

/// Bytes of a name at most: an identity's short form has 75.
const NAME: usize = 80;

/// Lines of a report at most: names, and one for each cause.
const LINES: usize = MAX_NAMED + 32;

/// Who is counted when there are too many to name.
const OTHERS: &str = "others";

type Counts = BTreeMap<(String, String), u64>;

/// What is to be recorded.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    next: Time,
    pending: BTreeMap<String, Counts>,
}

impl RefusalLog {
    /// Adds what `node` reports.
    ///
    /// # Errors
    /// What is wrong with it (invariant 3).
    pub(super) fn add(&mut self, node: &str, report: RefusalReport) -> Result<(), String> {
        let is_cause = |word: &str| Cause::ALL.iter().any(|cause| cause.as_str() == word);
        let good = |r: &Refusal| {
            is_cause(&r.cause) && r.who.len() <= NAME && !r.who.contains(char::is_control) && r.count > 0
        };
        if report.refused.len() > LINES || !report.refused.iter().all(good) {
            return Err("a report of refusals that makes no sense".into());
        }
        let counts = self.pending.entry(node.to_owned()).or_default();
        for Refusal { cause, who, count } in report.refused {
            let mut key = (cause, who);
            if counts.len() >= LINES && !counts.contains_key(&key) {
                key.1 = OTHERS.to_owned();
            }
            let sum = counts.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
        Ok(())
    }

    /// The records that are due at `now`.
    pub(super) fn due(&mut self, now: Time) -> Vec<Entry> {
        if now < self.next || self.pending.is_empty() {
            return Vec::new();
        }
        self.next = now.after(EVERY);
        self.all()
    }

    /// All that is left, at the end of a run.
    pub(super) fn all(&mut self) -> Vec<Entry> {
        let pending = std::mem::take(&mut self.pending);
        let entry = |(node, counts): (String, Counts)| {
            let refused = counts.into_iter().map(|((cause, who), count)| Refusal { cause, who, count });
            Entry::Refusals { node, refused: refused.collect() }
        };
        pending.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[(&str, &str, u64)]) -> RefusalReport {
        let line = |(cause, who, count): &(&str, &str, u64)| Refusal {
            cause: (*cause).to_owned(),
            who: (*who).to_owned(),
            count: *count,
        };
        RefusalReport { refused: lines.iter().map(line).collect() }
    }

    fn seconds(n: u64) -> Time {
        Time::default().after(Duration::from_secs(n))
    }

    fn counts(entries: &[Entry]) -> u64 {
        let of = |entry: &Entry| match entry {
            Entry::Refusals { refused, .. } => refused.iter().map(|r| r.count).sum(),
            _ => 0,
        };
        entries.iter().map(of).sum()
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_flood_makes_few_records_and_loses_no_count() {
        let mut log = RefusalLog::default();
        let (mut records, mut counted) = (0, 0);
        for tick in 0..100 {
            for n in 0..50 {
                let who = format!("10.0.{tick}.{n}");
                log.add("server/0", report(&[("certificate", &who, 2)])).unwrap();
            }
            let due = log.due(seconds(tick));
            records += due.len();
            counted += counts(&due);
            for entry in due {
                let bytes = format!("{entry:?}").len();
                assert!(bytes < 32 << 10, "{bytes}");
            }
        }
        counted += counts(&log.all());
        assert_eq!((records, counted), (10, 100 * 50 * 2));
        assert!(log.due(seconds(1000)).is_empty());
    }

    #[test]
    fn the_first_refusal_is_recorded_at_once() {
        let mut log = RefusalLog::default();
        log.add("server/0", report(&[("mac", "worker/1", 1)])).unwrap();
        log.add("worker/0", report(&[("mac", "server/1", 1)])).unwrap();
        assert_eq!(log.due(seconds(0)).len(), 2);
        log.add("server/0", report(&[("mac", "worker/1", 1)])).unwrap();
        assert!(log.due(seconds(9)).is_empty());
        assert_eq!(log.due(seconds(10)).len(), 1);
    }

    /// Invariant 3.
    #[test]
    fn reports_that_make_no_sense_are_refused() {
        let long = "x".repeat(NAME + 1);
        for bad in [("no such", "a", 1), ("mac", &long, 1), ("mac", "a\n", 1), ("mac", "a", 0)] {
            assert!(RefusalLog::default().add("server/0", report(&[bad])).is_err(), "{bad:?}");
        }
        let many = vec![("mac", "a", 1); LINES + 1];
        assert!(RefusalLog::default().add("server/0", report(&many)).is_err());
    }
}

//! What the audit log of a cluster under attack says of whom it refused.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use testudo_transport::Role;

use super::{Live, last, within};

/// Refusals of each node, by cause, summed over an audit log's records.
pub type Refusals = BTreeMap<String, BTreeMap<String, u64>>;

impl Live {
    /// Waits until the audit log has refusals for each of these causes.
    ///
    /// # Panics
    /// When one is not recorded within a minute: with what is.
    pub fn recorded(&self, causes: &[&str]) {
        let found = || {
            let all = refusals(&self.audit_log());
            causes.iter().all(|cause| all.values().any(|node| node.contains_key(*cause))).then_some(())
        };
        if within(Duration::from_secs(60), found).is_none() {
            let text = self.audit_log();
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("refusals")).collect();
            panic!("not all of {causes:?} are recorded, but {}", last(&lines.join("\n"), 4_000));
        }
    }

    /// How many records of refusals the audit log has.
    #[must_use]
    pub fn refusal_records(&self) -> usize {
        records(&self.audit_log()).count()
    }

    /// The audit log as it is now.
    #[must_use]
    pub fn audit_log(&self) -> String {
        std::fs::read_to_string(self.run_dir(Role::Scheduler, 0).join("audit.log")).unwrap_or_default()
    }
}

/// What an audit log says of refusals.
///
/// # Panics
/// When a record of refusals has another form than `docs/audit.md` says.
#[must_use]
pub fn refusals(log: &str) -> Refusals {
    let mut sums = Refusals::new();
    for record in records(log) {
        let body = &record["body"];
        let of_node = sums.entry(body["node"].as_str().unwrap().to_owned()).or_default();
        for refused in body["refused"].as_array().unwrap() {
            *of_node.entry(refused["cause"].as_str().unwrap().to_owned()).or_default() +=
                refused["count"].as_u64().unwrap();
        }
    }
    sums
}

/// The records of refusals that are whole.
fn records(log: &str) -> impl Iterator<Item = Value> {
    let lines = log.lines().filter(|line| line.contains("\"kind\":\"refusals\""));
    lines.filter_map(|line| serde_json::from_str(line).ok())
}

//! The rows about the audit log and the run directory.

use super::rules::FRACTION;
use super::{Absent, Base, Key, Rule};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "audit.hash_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("1"),
        applies: None,
        doc: "Steps between hashes of the parameters in the audit log; the first and the last are hashed whatever this is, but for 0: then none are.",
    },
    Key {
        path: "audit.countersign_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("100"),
        applies: None,
        doc: "Steps after which every server and worker signs the head of the audit log, so that a log that is cut later has them against it; 0 for never.",
    },
    Key {
        path: "audit.witness_rate",
        rule: FRACTION,
        absent: Absent::Is("0.01"),
        applies: None,
        doc: "Share of the parameters' values whose updates the scheduler computes a second time, from what workers tell it, so that a server that applies wrong updates is named and the run ends; 0 for none. At most 16,384 values are chosen, by chance, anew for each run.",
    },
    Key {
        path: "output.dir",
        rule: Rule::Path { base: Base::Current },
        absent: Absent::Is("\"runs\""),
        applies: None,
        doc: "Folder in which each run makes its own directory, `<job>-<UTC time>`.",
    },
];

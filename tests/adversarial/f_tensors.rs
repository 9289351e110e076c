//! Class F, tensors: contributions that are not finite, not of the slice's length, not for it, not for now, or not the worker's.
//!
//! The attacker is a worker of the job, played in Python with aioquic: it joins, is leased its part, and pushes lies for the first
//! step, to which the honest workers contribute meanwhile. Each is refused by a typed answer, its place stays free, and when it
//! leaves, the others do its part: the run has the bits of an undisturbed one.
//!
//! What the wire has no place for needs no case: shapes (only lengths travel), names of tensors, sparse rows. Finite lies under a
//! valid lease (huge norms, flipped signs) are `f_liars.rs`.

use std::collections::BTreeMap;

use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Live, Plan, until};
use testudo_transport::Role;

use crate::PROGRAM;
use crate::hostile::{HOSTILE, join, leave, slice_of};

/// By lie: the server's answer, as the attacker reads it off the wire.
const LIES: [(&str, &str); 22] = [
    ("NaN", "not finite"),
    ("a signalling NaN", "not finite"),
    ("infinity", "not finite"),
    ("minus infinity", "not finite"),
    ("no values", "wrong length"),
    ("a value too few", "wrong length"),
    ("a byte too few", "wrong length"),
    ("an unknown parameter", "unknown slice"),
    ("an unknown slice", "unknown slice"),
    ("an unknown codec", "unknown codec"),
    ("the last codec", "unknown codec"),
    ("another's shards", "no lease"),
    ("no shard", "no lease"),
    ("shards that no tree has", "no lease"),
    ("all shards", "no lease"),
    ("a future step", "step ahead"),
    ("the last step there can be", "step ahead"),
    ("a future epoch", "no lease"),
    ("the epoch before the first", "no lease"),
    ("a pull of an unknown parameter", "unknown slice"),
    ("a pull of a version to come", "not yet possible"),
    ("a pull of the last version", "not yet possible"),
];

#[test]
fn class_f_tensors() {
    let Some(attacker) = Attacker::start() else { return };
    let plan = Plan { workers: 3, absent: vec![HOSTILE], lost: 1, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, plan, |live| {
        join(&attacker, live);
        for index in [0, 1] {
            let found = attacker.attack("worker.pushes", slice_of(live, live.node(Role::Server, index)));
            let found: BTreeMap<String, String> = serde_json::from_value(found).unwrap();
            let expected: BTreeMap<String, String> =
                LIES.iter().map(|(lie, answer)| ((*lie).to_owned(), (*answer).to_owned())).collect();
            assert_eq!(found, expected);
        }
        leave(&attacker);
    });
    live.case("a push for a step that is gone, under a lease that has moved", |live| {
        until("the lease to move", || (live.report().workers_lost == 1).then_some(()));
        let answer = attacker.attack("worker.late", slice_of(live, live.node(Role::Server, 0)));
        let answer = answer.as_str().unwrap_or_default().to_owned();
        assert!(answer.contains("leases have moved") || answer == "no lease", "{answer}");
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["request"]));
    live.finish();
}

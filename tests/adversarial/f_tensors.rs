//! Class F, tensors: contributions that are not finite, not of the slice's length, not for it, not for now, or not the worker's.
//!
//! The attacker is a worker of the job, played in Python with aioquic: it joins, is leased its part, and pushes lies for the first
//! step, to which the honest workers contribute meanwhile. Each is refused by a typed answer, its place stays free, and when it
//! leaves, the others do its part: the run has the bits of an undisturbed one. Or the attacker has the key and the secret of a worker
//! that is honest, and lies beside it while training goes on: the place of what is refused is free for what the worker pushes next.
//!
//! What the wire has no place for needs no case: shapes (only lengths travel), names of tensors, sparse rows. Finite lies under a
//! valid lease (huge norms, flipped signs) are `f_liars.rs`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testudo_tests::attacker::Attacker;
use testudo_tests::flood::inside::Inside;
use testudo_tests::live::{Live, Plan, until};
use testudo_transport::{Cause, Role};

use crate::PROGRAM;
use crate::counted::Counts;
use crate::hostile::{HOSTILE, beside, join, leave, slice_of};

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

/// Of [`LIES`], those that are told by their form: they are lies whatever step it is.
const BY_FORM: std::ops::Range<usize> = 4..20;

/// Lies about the step that begins, and about those before and after it, told before a worker has contributed to it.
const BETWEEN: [(&str, &str); 8] = [
    LIES[0],
    LIES[1],
    LIES[2],
    LIES[3],
    ("other values than the step before's", "conflict"),
    ("a step that is gone", "step gone"),
    ("the first step", "step gone"),
    ("the next step", "step ahead"),
];

/// Steps between which lies are told.
const ROUNDS: u64 = 5;

fn told(answers: Value) -> BTreeMap<String, String> {
    serde_json::from_value(answers).unwrap()
}

fn expected(lies: &[(&str, &str)]) -> BTreeMap<String, String> {
    lies.iter().map(|(lie, answer)| ((*lie).to_owned(), (*answer).to_owned())).collect()
}

/// How many of them are pushes: a pull of what cannot be is answered, and not counted, because honest workers may be late.
fn pushes(lies: &[(&str, &str)]) -> u64 {
    lies.iter().filter(|(lie, _)| !lie.starts_with("a pull")).count() as u64
}

#[test]
fn class_f_tensors() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let plan = Plan { workers: 3, absent: vec![HOSTILE], lost: 1, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |live| {
        join(&attacker, live);
        for index in [0, 1] {
            let node = live.node(Role::Server, index);
            let found = counts.rise(node, &[(Cause::Request, pushes(&LIES))], || {
                attacker.attack("worker.pushes", slice_of(live, node))
            });
            assert_eq!(told(found), expected(&LIES));
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
    counts.recorded(live);
}

/// Under the live lease of a worker that trains on, with its key and its secret: the lies beside its honest pushes, step after step.
#[test]
fn class_f_lies_beside_honest_pushes() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let inside = Inside::default();
    let plan = Plan { inside: Some((0, inside.clone())), ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    beside(&attacker, &live, &inside);
    for index in [0, 1] {
        live.case(&format!("what has not the form of a contribution, to server {index}"), |live| {
            let (node, lies) = (live.node(Role::Server, index), &LIES[BY_FORM]);
            let mut order = slice_of(live, node);
            order["ahead"] = json!(live.site.job.max_steps.unwrap() + 1);
            let found = counts
                .rise(node, &[(Cause::Request, pushes(lies))], || attacker.attack("worker.by_form", order));
            let mut expected = expected(lies);
            expected.insert(LIES[21].0.to_owned(), LIES[21].1.to_owned());
            assert_eq!(told(found), expected);
        });
    }
    for round in 0..ROUNDS {
        live.between(&format!("lies between two steps, round {round}"), |live, version| {
            for index in [0, 1] {
                let node = live.node(Role::Server, index);
                let mut order = slice_of(live, node);
                order["version"] = version.into();
                let found = counts.rise(node, &[(Cause::Request, pushes(&BETWEEN))], || {
                    attacker.attack("worker.between", order)
                });
                assert_eq!(told(found), expected(&BETWEEN));
            }
        });
    }
    live.case("the audit log has the refusals", |live| live.recorded(&["request"]));
    counts.recorded(live);
}

//! Class B, authorization: roles that say what is not theirs, workers without a lease, with an old one, or under another's name.
//!
//! The attackers are aioquic with good certificates of every role, and a third worker of the job, played in Python: it joins,
//! is leased its part, and leaves; and somebody who speaks beside an honest worker, with its key and secret. What a scheduler or a
//! server may not say to whoever dialled it is `tests/tests/roles.rs`. Messages under another worker's name are class D's "another's name as the sender". The third
//! worker's work goes to the other two, which changes no bit.

use serde_json::{Value, json};
use testudo_actors::policy;
use testudo_tests::attacker::Attacker;
use testudo_tests::flood::inside::Inside;
use testudo_tests::live::{Closed, Live, Plan, until};
use testudo_transport::{Cause, CloseCode, Role, Rule};

use crate::PROGRAM;
use crate::counted::Counts;
use crate::crowd::Crowd;
use crate::hostile::{HOSTILE, join, leave, order_beside, slice_of};

/// Attackers that try roles at the same time.
const TRYING: usize = 4;

#[test]
fn class_b_authorization() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    // Roles are tried as fast as that goes: how fast strangers may come is class E's.
    let limits = "handshakes_per_second = 100000";
    let plan = Plan { workers: 3, absent: vec![HOSTILE], lost: 1, limits, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |live| {
        join(&attacker, live);
        // A message that a server took, again on another stream of the connection.
        let mut order = slice_of(live, live.node(Role::Server, 1));
        order.as_object_mut().unwrap().remove("size");
        let found = counts.rise(live.node(Role::Server, 1), &[(Cause::Mac, 1)], || {
            attacker.attack("worker.other_stream", order)
        });
        let closed: Closed = serde_json::from_value(found["closed"].clone()).unwrap();
        assert_eq!(found["first"], 24, "it was taken once: {found}");
        assert!(closed.is(CloseCode::Mac), "{closed:?}");
        leave(&attacker);
    });
    live.case("a push with a lease that has moved", |live| {
        until("the lease to move", || (live.report().workers_lost == 1).then_some(()));
        let order = slice_of(live, live.node(Role::Server, 0));
        let answer = attacker.attack("worker.late", order);
        let answer = answer.as_str().unwrap_or_default().to_owned();
        assert!(answer.contains("leases have moved") || answer == "no lease", "{answer}");
    });
    live.case("a push without a lease", |live| {
        let mut order = live.order(live.node(Role::Server, 0));
        order["name"] = format!("{}/77", live.stem("worker")).into();
        let found = counts.rise(live.node(Role::Server, 0), &[(Cause::Request, 1)], || {
            attacker.attack("worker.unleased", order)
        });
        closed_for_policy(&found, "workers that hold a lease");
    });
    live.case("a push as the first word", |live| {
        let node = live.node(Role::Server, 0);
        let found = counts.rise(node, &[(Cause::Message, 1)], || {
            attacker.attack("worker.without_hello", live.order_as(node, 0))
        });
        closed_for_policy(&found, "is a hello");
    });
    let Some(crowd) = Crowd::start(TRYING) else { return };
    // A server hears nobody but workers that hold a lease, so it may turn the others away before they have said a word.
    for (role, words, causes) in [
        (Role::Scheduler, "may not", &[Cause::Policy][..]),
        (Role::Server, "", &[Cause::Policy, Cause::Request]),
    ] {
        live.case(&format!("every wrong role at the {role}"), |live| {
            wrong_roles(&crowd, &counts, live, (role, words, causes));
        });
    }
    live.case("the audit log has the refusals", |live| {
        live.recorded(&["policy", "mac", "request", "message"]);
    });
    counts.recorded(live);
}

/// Whoever has a leased worker's key and secret is heard by servers: what is not a worker's to say is refused all the same.
#[test]
fn class_b_a_worker_with_a_lease_says_what_is_not_a_workers() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let inside = Inside::default();
    // A fault costs an identity nine connections: with the default rate, this one would be shut out after the first few.
    let limits = "connections_per_peer = 1000";
    let plan = Plan { inside: Some((0, inside.clone())), limits, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    let rules = policy::rules(live.site.job.slice_bytes);
    let wrong = rules.iter().filter(|rule| !allowed(rule, Role::Worker, Role::Server));
    let kinds: Vec<u8> = wrong.map(|rule| rule.kind).collect();
    assert!(
        kinds.len() > 30 && kinds.len() + 3 == rules.len(),
        "hello, push and pull are a worker's: {kinds:?}"
    );
    for index in [0, 1] {
        live.case(&format!("every kind that is not a worker's, at server {index}"), |live| {
            let node = live.node(Role::Server, index);
            let mut order = order_beside(live, node, (0, &inside));
            order["kinds"] = json!(kinds);
            let found = counts.rise(node, &[(Cause::Policy, kinds.len() as u64)], || {
                attacker.attack("worker.wrong_kinds", order)
            });
            let found: Vec<(u8, Option<Closed>)> = serde_json::from_value(found).unwrap();
            let good = |closed: &Closed| closed.is(CloseCode::Policy) && closed.reason.contains("may not");
            let wrong: Vec<_> =
                found.iter().filter(|(_, closed)| !closed.as_ref().is_some_and(good)).collect();
            assert!(wrong.is_empty() && found.len() == kinds.len(), "{wrong:#?}");
        });
    }
    live.case("the audit log has the refusals", |live| live.recorded(&["policy"]));
    counts.recorded(live);
}

fn allowed(rule: &Rule, from: Role, to: Role) -> bool {
    rule.from.admits(from) && rule.to.admits(to)
}

fn closed_for_policy(found: &Value, words: &str) {
    let closed: Closed = serde_json::from_value(found.clone()).unwrap();
    assert!(closed.is(CloseCode::Policy) && closed.reason.contains(words), "{closed:?}");
}

/// Every message of the table from every role that may not say it to `to`, and every one that may not be said to `to`.
fn wrong_roles(crowd: &Crowd, counts: &Counts, live: &Live, (to, words, causes): (Role, &str, &[Cause])) {
    let rules = policy::rules(live.site.job.slice_bytes);
    let of = |rule: &Rule| Role::ALL.into_iter().filter(|from| !allowed(rule, *from, to)).collect::<Vec<_>>();
    let attempts: Vec<(String, u8)> =
        rules.iter().flat_map(|r| of(r).into_iter().map(|from| (from.to_string(), r.kind))).collect();
    assert!(attempts.len() > 100, "{} are not every wrong role", attempts.len());
    let node = live.node(to, 0);
    let part = attempts.len().div_ceil(crowd.len());
    let order = |nth: usize| {
        let mut order = live.order(node);
        order["stem"] = format!("spiffe://{}/job/{}", live.site.job.trust_domain, live.site.job.name).into();
        order["first"] = (1000 * (nth + 1)).into();
        order["attempts"] = attempts.chunks(part).nth(nth).map_or_else(|| json!([]), |part| json!(part));
        order.as_object_mut().unwrap().remove("name");
        order
    };
    let found =
        counts.rise_among(node, causes, attempts.len() as u64, || crowd.attack("worker.roles", order));
    let found: Vec<(String, u8, Option<Closed>)> = found
        .into_iter()
        .flat_map(|found| serde_json::from_value::<Vec<(String, u8, Option<Closed>)>>(found).unwrap())
        .collect();
    assert_eq!(found.len(), attempts.len());
    let good = |closed: &Closed| closed.is(CloseCode::Policy) && closed.reason.contains(words);
    let wrong: Vec<_> = found.iter().filter(|(_, _, closed)| !closed.as_ref().is_some_and(good)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

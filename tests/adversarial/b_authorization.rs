//! Class B, authorization: roles that say what is not theirs, workers without a lease, with an old one, or under another's name.
//!
//! The attackers are aioquic with good certificates of every role, and a third worker of the job, played in Python: it joins,
//! is leased its part, and leaves. Messages under another worker's name are class D's "another's name as the sender". The third
//! worker's work goes to the other two, which changes no bit.

use serde_json::{Value, json};
use testudo_actors::policy;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Closed, Live, Plan, until};
use testudo_transport::{CloseCode, Role, Rule};

use crate::PROGRAM;
use crate::hostile::{HOSTILE, join, leave, slice_of};

#[test]
fn class_b_authorization() {
    let Some(attacker) = Attacker::start() else { return };
    let plan = Plan { workers: 3, absent: vec![HOSTILE], lost: 1, ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, plan, |live| {
        join(&attacker, live);
        // A message that a server took, again on another stream of the connection.
        let mut order = slice_of(live, live.node(Role::Server, 1));
        order.as_object_mut().unwrap().remove("size");
        let found = attacker.attack("worker.other_stream", order);
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
        closed_for_policy(&attacker.attack("worker.unleased", order), "workers that hold a lease");
    });
    live.case("a push as the first word", |live| {
        let order = live.order_as(live.node(Role::Server, 0), 0);
        closed_for_policy(&attacker.attack("worker.without_hello", order), "is a hello");
    });
    for (role, words) in [(Role::Scheduler, "may not"), (Role::Server, "")] {
        live.case(&format!("every wrong role at the {role}"), |live| {
            wrong_roles(&attacker, live, role, words)
        });
    }
    live.case("the audit log has the refusals", |live| live.recorded(&["policy", "mac"]));
    live.finish();
}

fn closed_for_policy(found: &Value, words: &str) {
    let closed: Closed = serde_json::from_value(found.clone()).unwrap();
    assert!(closed.is(CloseCode::Policy) && closed.reason.contains(words), "{closed:?}");
}

/// Every message of the table from every role that may not say it to `to`, and every one that may not be said to `to`. A server
/// hears nobody but workers that hold a lease, whatever they say.
fn wrong_roles(attacker: &Attacker, live: &Live, to: Role, words: &str) {
    let allowed = |rule: &Rule, from: Role| rule.from.admits(from) && rule.to.admits(to);
    let rules = policy::rules(live.site.job.slice_bytes);
    let of = |rule: &Rule| Role::ALL.into_iter().filter(|from| !allowed(rule, *from)).collect::<Vec<_>>();
    let attempts: Vec<(String, u8)> =
        rules.iter().flat_map(|r| of(r).into_iter().map(|from| (from.to_string(), r.kind))).collect();
    assert!(attempts.len() > 100, "{} are not every wrong role", attempts.len());
    let node = live.node(to, 0);
    let mut order = live.order(node);
    order["stem"] = format!("spiffe://{}/job/{}", live.site.job.trust_domain, live.site.job.name).into();
    order["first"] = 100.into();
    order["attempts"] = json!(attempts);
    order.as_object_mut().unwrap().remove("name");
    let found: Vec<(String, u8, Option<Closed>)> =
        serde_json::from_value(attacker.attack("worker.roles", order)).unwrap();
    assert_eq!(found.len(), attempts.len());
    let good = |closed: &Closed| closed.is(CloseCode::Policy) && closed.reason.contains(words);
    let wrong: Vec<_> = found.iter().filter(|(_, _, closed)| !closed.as_ref().is_some_and(good)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

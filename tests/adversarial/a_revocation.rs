//! Class A, revocation: a node whose certificate is taken back, before it dials and while it is connected, and lists of revoked
//! certificates that may not be taken.
//!
//! Attacker and lists are made in Python, with aioquic and cryptography; an operator hands the lists in, as `testudo revoke` does.
//! A list in force that ends trusts nobody, so the run would end with it: that is `transport/tests/revocation.rs`.

use serde_json::{Value, json};
use testudo_actors::operator::Line;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Closed, Live, Node, Plan};
use testudo_tests::member::in_time;
use testudo_transport::{Cause, CloseCode, Role};

use crate::PROGRAM;
use crate::counted::Counts;

/// TLS's alert for it (RFC 8446, section 6.2), as QUIC closes a connection with it.
const CERTIFICATE_REVOKED: u64 = 256 + 44;

/// The nodes of the attack, beyond the workers that train.
const NAMES: [&str; 3] = ["70", "71", "72"];

struct Scene<'a> {
    attacker: &'a Attacker,
    counts: &'a Counts,
    serials: Vec<String>,
}

impl Scene<'_> {
    fn crl(&self, live: &Live, number: u64, revoked: usize, more: &[&str]) -> Vec<u8> {
        let mut order = json!({
            "ca": live.folder().join("ca"),
            "number": number,
            "serials": self.serials[..revoked],
        });
        for what in more {
            order[*what] = true.into();
        }
        let hex = self.attacker.attack("revocation.crl", order);
        let hex = hex.as_str().unwrap().as_bytes();
        hex.chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn dial(&self, live: &Live, node: &Node, name: &str) -> (bool, Option<Closed>) {
        let order = json!({"target": node.target(), "name": named(live, name), "expect": node.id.as_str()});
        let found = self.attacker.attack("revocation.dial", order);
        (found["admitted"] == true, serde_json::from_value(found["closed"].clone()).unwrap())
    }

    /// Nobody gets in with the certificate of `name`, anywhere, and everybody says why and counts it.
    fn refused_everywhere(&self, live: &Live, name: &str) {
        for node in live.nodes() {
            let (admitted, closed) =
                self.counts.rise(node, &[(Cause::Revoked, 1)], || self.dial(live, node, name));
            assert!(!admitted, "{name} at {}", node.id.short());
            let closed = closed.unwrap();
            assert_eq!(closed.code, CERTIFICATE_REVOKED, "{name} at {}: {closed:?}", node.id.short());
        }
    }
}

fn named(live: &Live, name: &str) -> String {
    format!("{}/{name}", live.stem("worker"))
}

/// An operator hands a list in, and every node has it in force: servers hear of it a moment after the operator does.
fn put_in_force(live: &Live, number: u64, crl: Vec<u8>) -> String {
    let answer = hand_in(live, crl).unwrap();
    for node in live.nodes() {
        node.logs(0, &["list of revoked certificates in force", &format!("number={number} ")]);
    }
    answer
}

/// An operator hands a list in.
fn hand_in(live: &Live, crl: Vec<u8>) -> Result<String, String> {
    let network = live.site.network(&live.site.identity(Role::Operator, "revokes"));
    let scheduler = live.node(Role::Scheduler, 0);
    live.site.runtime.block_on(in_time("an answer", async {
        let mut line = Line::dial(&network, &scheduler.address.to_string(), &scheduler.id).await.unwrap();
        line.revoke(crl).await.unwrap()
    }))
}

#[test]
fn class_a_revocation() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let mut live = Live::start_with(PROGRAM, counts.plan(Plan::default()), |_| ());
    let names: Vec<String> = NAMES.iter().map(|name| named(&live, name)).collect();
    let order = json!({"ca": live.folder().join("ca"), "names": names});
    let serials: Value = attacker.attack("revocation.enrol", order);
    let scene =
        Scene { attacker: &attacker, counts: &counts, serials: serde_json::from_value(serials).unwrap() };

    live.case("good until it is revoked", |live| {
        let (admitted, closed) = scene.dial(live, live.node(Role::Scheduler, 0), "71");
        assert!(admitted, "{closed:?}");
    });
    live.case("revoked before it dials", |live| {
        let answer = put_in_force(live, 1, scene.crl(live, 1, 1, &[]));
        assert!(answer.contains("1 revoked"), "{answer}");
        scene.refused_everywhere(live, "70");
    });
    live.case("revoked while it is connected", |live| {
        let node = live.node(Role::Scheduler, 0);
        let order = json!({"name": named(live, "71"), "expect": node.id.as_str()});
        let closed = counts.rise(node, &[(Cause::Revoked, 1)], || {
            put_in_force(live, 2, scene.crl(live, 2, 2, &[]));
            attacker.attack("revocation.cut_off", order)
        });
        let closed: Closed = serde_json::from_value(closed).unwrap();
        assert!(closed.is(CloseCode::Untrusted) && closed.reason.contains("revoked"), "{closed:?}");
        scene.refused_everywhere(live, "71");
    });
    for (what, number, how, words) in [
        ("another CA's list", 9, &["forged"][..], "not of the job's CA"),
        ("a list that has ended", 9, &["ended"], "ended"),
        ("a list without a number", 9, &["unnumbered"], "no number"),
        ("an older list", 1, &[], "number"),
    ] {
        live.case(what, |live| {
            let answer = hand_in(live, scene.crl(live, number, 3, how)).unwrap_err();
            assert!(answer.contains(words), "{answer}");
        });
    }
    live.case("no list at all", |live| {
        for bytes in [vec![], vec![0x30; 64], vec![0xff; 200_000]] {
            let answer = hand_in(live, bytes).unwrap_err();
            assert!(answer.contains("malformed"), "{answer}");
        }
    });
    live.case("the list in force stays", |live| {
        scene.refused_everywhere(live, "70");
        // Who was on the lists that were not taken is as good as before.
        let (admitted, closed) = scene.dial(live, live.node(Role::Scheduler, 0), "72");
        assert!(admitted, "{closed:?}");
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["revoked"]));
    counts.recorded(live);
}

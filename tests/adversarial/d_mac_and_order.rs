//! Class D, MAC and order: messages that were changed, repeated, moved, reordered, dropped, thrown back or sealed under another key.
//!
//! The attacker is the one of class C: a node with a good certificate, its own QUIC and its own sealing. TLS does not protect
//! against it, the MAC does. A message repeated on another stream is class B's, which has a worker that servers hear on many
//! streams.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Live, Plan};
use testudo_transport::{CloseCode, Role};

use crate::PROGRAM;
use crate::counted::Counts;
use crate::crowd::Crowd;
use crate::frames::{Expected, cause, refused};

const MAC: CloseCode = CloseCode::Mac;
const IDENTITY: CloseCode = CloseCode::Identity;
const POLICY: CloseCode = CloseCode::Policy;

/// Attackers that flip bits at the same time, by turns: bits are some thousand, and each takes a connection.
const FLIPPING: usize = 6;

/// Case, code, words of the reason.
const CASES: [Expected; 12] = [
    ("a message again on its stream", MAC, "message 1 of its stream"),
    ("a message of another connection", MAC, "message 0 of its stream"),
    ("two messages in the wrong order", MAC, "message 0 of its stream"),
    ("a message that was dropped", MAC, "message 0 of its stream"),
    ("an answer thrown back", POLICY, "may not"),
    ("the other end's credit thrown back", MAC, "message 1 of its stream"),
    ("another job's key", MAC, "message 0 of its stream"),
    ("the key of the other direction", MAC, "message 0 of its stream"),
    ("the key of swapped ends", MAC, "message 0 of its stream"),
    ("no MAC", MAC, "message 0 of its stream"),
    ("another's name as the sender", IDENTITY, "claims to come from"),
    ("another's name as the receiver", IDENTITY, "not this node"),
];

/// The order to flip every bit whose turn it is: the `nth` attacker's.
fn flips(live: &Live, nth: usize) -> Value {
    let mut order = live.order(live.node(Role::Scheduler, 0));
    order["stem"] = live.stem("worker").into();
    // Names of one length, so that all flip the same bits.
    order["first"] = (10_000 + nth * 1000).into();
    (order["bit"], order["step"]) = (nth.into(), FLIPPING.into());
    order.as_object_mut().unwrap().remove("name");
    order
}

#[test]
fn class_d_mac_and_order() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    // Bits are flipped as fast as that goes: how fast strangers may come is class E's.
    let plan = Plan { limits: "handshakes_per_second = 100000", ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    live.case("forged, repeated and moved messages", |live| {
        // The joins that were taken before what was forged: one was repeated, the answer to one thrown back.
        let answered = refused(&attacker, &counts, live, ("order", 2000), &CASES, 2);
        assert!(answered.is_empty(), "{answered:?}");
    });
    let Some(crowd) = Crowd::start(FLIPPING) else { return };
    live.case("flipped bits", |live| {
        let node = live.node(Role::Scheduler, 0);
        let before = counts.so_far(node);
        let found = crowd.attack("frames.flips", |nth| flips(live, nth));
        let mut codes: BTreeMap<String, u64> = BTreeMap::new();
        for found in &found {
            assert_eq!(found["taken"], json!([]), "{found}");
            for (code, count) in found["codes"].as_object().unwrap() {
                *codes.entry(code.clone()).or_default() += count.as_u64().unwrap();
            }
        }
        let (bits, refused) = (found[0]["bytes"].as_u64().unwrap() * 8, codes.values().sum::<u64>());
        assert_eq!(refused, bits, "{codes:?}");
        let mac = CloseCode::Mac.number().to_string();
        assert!(codes[&mac] > refused / 2, "most change what the MAC covers: {codes:?}");
        // As many are counted, each under the cause of its code.
        let counted = |code: CloseCode| codes.get(&code.number().to_string()).copied().unwrap_or_default();
        let codes =
            [CloseCode::Framing, CloseCode::Policy, CloseCode::Credit, CloseCode::Mac, CloseCode::Identity];
        let expected: Vec<_> = codes.map(|code| (cause(code, ""), counted(code))).into();
        counts.risen_since(node, before, &expected);
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["mac", "envelope", "policy"]));
    counts.recorded(live);
}

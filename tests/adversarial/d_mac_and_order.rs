//! Class D, MAC and order: messages that were changed, repeated, moved, reordered, dropped, thrown back or sealed under another key.
//!
//! The attacker is the one of class C: a node with a good certificate, its own QUIC and its own sealing. TLS does not protect
//! against it, the MAC does. A message repeated on another stream is class B's, which has a worker that servers hear on many
//! streams. Every single bit is flipped at the link, in `transport/tests/session.rs`; here every thirteenth, on the wire.

use serde_json::json;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::Live;
use testudo_transport::{CloseCode, Role};

use crate::PROGRAM;
use crate::frames::{Expected, refused};

const MAC: CloseCode = CloseCode::Mac;
const IDENTITY: CloseCode = CloseCode::Identity;
const POLICY: CloseCode = CloseCode::Policy;

/// Between two bits that are flipped: no multiple of eight, so that each place in a byte comes up.
const STEP: u64 = 13;

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

#[test]
fn class_d_mac_and_order() {
    let Some(attacker) = Attacker::start() else { return };
    let mut live = Live::start(PROGRAM);
    live.case("forged, repeated and moved messages", |live| {
        let answered = refused(&attacker, live, "order", 2000, &CASES);
        assert!(answered.is_empty(), "{answered:?}");
    });
    live.case("flipped bits", |live| {
        let mut order = live.order(live.node(Role::Scheduler, 0));
        order["stem"] = live.stem("worker").into();
        order["first"] = 3000.into();
        order["step"] = STEP.into();
        order.as_object_mut().unwrap().remove("name");
        let found = attacker.attack("frames.flips", order);
        assert_eq!(found["taken"], json!([]), "{found}");
        let refused: u64 = found["codes"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(refused, (found["bytes"].as_u64().unwrap() * 8).div_ceil(STEP), "{found}");
        assert!(
            found["codes"]["6"].as_u64().unwrap() > refused / 2,
            "most change what the MAC covers: {found}"
        );
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["mac", "envelope", "policy"]));
    live.finish();
}

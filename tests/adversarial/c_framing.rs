//! Class C, framing: bytes that are no messages, and messages that lie about their lengths, from a node that holds a good
//! certificate.
//!
//! The attacker is aioquic with a wire format of its own (`tests/python/attacks/wire.py`), the MAC's key included: it derives TLS's
//! exporter secret from aioquic's key schedule. The victim is the scheduler, which hears every member of the job; what it does
//! with frames is the transport's work, the same in every node.

use serde_json::json;
use testudo_tests::attacker::Attacker;
use testudo_tests::flood::inside::Inside;
use testudo_tests::live::{Live, Plan};
use testudo_transport::{CloseCode, Role};

use crate::PROGRAM;
use crate::counted::Counts;
use crate::frames::{Expected, refused};
use crate::hostile::order_beside;

const FRAMING: CloseCode = CloseCode::Framing;
const POLICY: CloseCode = CloseCode::Policy;
const CREDIT: CloseCode = CloseCode::Credit;

/// Streams on which a push comes a byte a second, and how many seconds at least: longer than a first word may take.
const SLOW: u64 = 12;
const SECONDS: u64 = 12;

/// Case, code, words of the reason.
const CASES: [Expected; 32] = [
    ("a payload of 2^32 bytes", POLICY, "4294967296 bytes of payload"),
    ("a payload of 2^64 - 1 bytes", POLICY, "18446744073709551615 bytes of payload"),
    ("a header of 2^32 - 1 bytes", POLICY, "4294967295 bytes of header"),
    ("both at once", POLICY, "at most"),
    ("half a prelude", FRAMING, "inside a message"),
    ("an end inside the header", FRAMING, "inside a message"),
    ("an end inside the MAC", FRAMING, "inside a message"),
    ("a reset inside a message", FRAMING, "abandoned"),
    ("wire version 0", FRAMING, "wire version 0"),
    ("wire version 2", FRAMING, "wire version 2"),
    ("wire version 255", FRAMING, "wire version 255"),
    ("flags", FRAMING, "wire flags"),
    ("an unknown kind", POLICY, "kind 99"),
    ("the last kind", POLICY, "kind 255"),
    ("the transport's own kind", POLICY, "kind 0"),
    ("HTTP", FRAMING, "wire version 71"),
    ("a header of nothing", FRAMING, "does not decode"),
    ("an envelope that is longer than the header", FRAMING, "does not decode"),
    ("an envelope of 2^64 - 1 bytes", FRAMING, "does not decode"),
    ("a varint that is not the shortest", FRAMING, "canonical"),
    ("a varint without end", FRAMING, "does not decode"),
    ("a text that is no UTF-8", FRAMING, "does not decode"),
    ("bytes after the message", FRAMING, "malformed"),
    ("a text of 2^60 bytes in the message", FRAMING, "malformed"),
    ("a list of 2^60 items", FRAMING, "malformed"),
    ("a million items, none of which is there", FRAMING, "malformed"),
    ("a million empty items", FRAMING, "malformed"),
    ("a payload where none may be", POLICY, "1 bytes of payload"),
    ("credit that is taken back", CREDIT, "took back"),
    ("credit with trailing bytes", FRAMING, "canonical"),
    ("another message on the credit stream", CREDIT, "not credit"),
    ("an end of the credit stream", CREDIT, "ended it"),
];

#[test]
fn class_c_framing() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let inside = Inside::default();
    let plan = Plan { inside: Some((0, inside.clone())), ..Plan::default() };
    let mut live = Live::start_with(PROGRAM, counts.plan(plan), |_| ());
    live.case("pushes of a byte a second begin on many streams", |live| {
        let mut order = order_beside(live, live.node(Role::Server, 0), (0, &inside));
        order["streams"] = SLOW.into();
        assert_eq!(attacker.attack("frames.drip", order), SLOW);
    });
    live.case("frames that lie", |live| {
        // The one that is answered is turned away, because the job has all its members.
        let answered = refused(&attacker, &counts, live, ("framing", 1000), &CASES, 1);
        // What comes slowly and is good is waited for, and answered by the refusal of a join.
        assert_eq!(answered, ["a byte at a time"]);
    });
    live.case("pushes of a byte a second went on all the while", |live| {
        let found = counts.rise(live.node(Role::Server, 0), &[], || {
            attacker.attack("frames.dripped", json!({"least": SECONDS}))
        });
        assert!(found["said"].as_u64() >= Some(SECONDS) && found["closed"].is_null(), "{found}");
    });
    live.case("the audit log has the refusals", |live| live.recorded(&["framing", "policy", "credit"]));
    counts.recorded(live);
}

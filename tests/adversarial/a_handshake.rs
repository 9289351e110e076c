//! Class A, handshake and identity: whoever has no good certificate of this job, for itself, is refused before it says a word.
//!
//! The attacker is PyPI's aioquic, with certificates that PyPI's cryptography makes under the job's own CA key; it shares no
//! code with Testudo. TLS refuses with an alert, which QUIC carries as code 256 + alert (RFC 9001, section 4.8).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Closed, Live, Node, Plan, until};
use testudo_tests::member::in_time;
use testudo_transport::{
    Cause, CloseCode, ConnectError, Endpoint, KeyExchange, PkiError, Role, TransportConfig,
};

use crate::PROGRAM;
use crate::counted::Counts;

/// TLS alerts (RFC 8446, section 6), as QUIC closes a connection with them.
const HANDSHAKE_FAILURE: u64 = 256 + 40;
const BAD_CERTIFICATE: u64 = 256 + 42;
const UNSUPPORTED_CERTIFICATE: u64 = 256 + 43;
const CERTIFICATE_EXPIRED: u64 = 256 + 45;
const CERTIFICATE_UNKNOWN: u64 = 256 + 46;
const UNKNOWN_CA: u64 = 256 + 48;
const DECRYPT_ERROR: u64 = 256 + 51;
const PROTOCOL_VERSION: u64 = 256 + 70;
const CERTIFICATE_REQUIRED: u64 = 256 + 116;
const NO_APPLICATION_PROTOCOL: u64 = 256 + 120;
/// QUIC's own code for what no other names (RFC 9000, section 20.1).
const PROTOCOL_VIOLATION: u64 = 0x0a;

/// By certificate: the code that the attacker is told, and words of the reason.
const CERTIFICATES: [(&str, u64, &str); 39] = [
    ("no certificate", CERTIFICATE_REQUIRED, "no certificates"),
    ("self-signed", UNKNOWN_CA, "UnknownIssuer"),
    ("of a foreign CA of the same name", DECRYPT_ERROR, "BadSignature"),
    ("expired", CERTIFICATE_EXPIRED, "certificate expired"),
    ("not yet valid", CERTIFICATE_EXPIRED, "not valid yet"),
    ("with a CA flag", CERTIFICATE_UNKNOWN, "CaUsedAsEndEntity"),
    ("for clients alone", CERTIFICATE_UNKNOWN, "server authentication"),
    ("for servers alone", UNSUPPORTED_CERTIFICATE, "client authentication"),
    ("for signing code", UNSUPPORTED_CERTIFICATE, "client authentication"),
    ("for any use", UNSUPPORTED_CERTIFICATE, "client authentication"),
    ("for no stated use", CERTIFICATE_UNKNOWN, "not both serverAuth and clientAuth"),
    ("that may sign certificates", CERTIFICATE_UNKNOWN, "signing certificates"),
    ("without a URI", CERTIFICATE_UNKNOWN, "no URI name"),
    ("with a DNS name alone", CERTIFICATE_UNKNOWN, "no URI name"),
    ("with two URIs", CERTIFICATE_UNKNOWN, "more than one URI name"),
    ("with the same URI twice", CERTIFICATE_UNKNOWN, "more than one URI name"),
    ("with a percent-escaped URI", CERTIFICATE_UNKNOWN, "%"),
    ("with a percent-escaped slash", CERTIFICATE_UNKNOWN, "%2f"),
    ("with dot segments", CERTIFICATE_UNKNOWN, ".."),
    ("with an empty segment", CERTIFICATE_UNKNOWN, "Malformed"),
    ("with a query", CERTIFICATE_UNKNOWN, "?admin"),
    ("in capitals", CERTIFICATE_UNKNOWN, "Malformed"),
    ("of another job", CERTIFICATE_UNKNOWN, "a node of job `toy`"),
    ("of another trust domain", CERTIFICATE_UNKNOWN, "in `test.local`"),
    ("of an unknown role", CERTIFICATE_UNKNOWN, "root"),
    ("with a leading zero", CERTIFICATE_UNKNOWN, "00"),
    ("with an unknown critical extension", CERTIFICATE_UNKNOWN, "UnsupportedCriticalExtension"),
    ("that is no certificate", BAD_CERTIFICATE, "BadEncoding"),
    ("with a byte too many", BAD_CERTIFICATE, "BadEncoding"),
    ("cut short", BAD_CERTIFICATE, "BadEncoding"),
    ("with a flipped bit in its signature", DECRYPT_ERROR, "BadSignature"),
    ("with another's key", DECRYPT_ERROR, "BadSignature"),
    ("under a node's certificate", CERTIFICATE_UNKNOWN, "is not a CA's"),
    ("under a CA below the job's", CERTIFICATE_UNKNOWN, "more than the CA allows"),
    ("under a foreign CA's", CERTIFICATE_UNKNOWN, "more than the CA allows"),
    ("followed by 4 more", CERTIFICATE_UNKNOWN, "more than 4 certificates"),
    ("of 20 KiB", CERTIFICATE_UNKNOWN, "at most 16384 are read"),
    ("followed by 100 more", CERTIFICATE_UNKNOWN, "more than 4 certificates"),
    ("followed by 2000 more", PROTOCOL_VIOLATION, "HandshakePayloadTooLarge"),
];

/// By what is unusual about a handshake under a good certificate.
const PROTOCOLS: [(&str, u64, &str); 7] = [
    ("of HTTP/3", NO_APPLICATION_PROTOCOL, "known protocol"),
    ("of no protocol", NO_APPLICATION_PROTOCOL, "known protocol"),
    ("of another version", NO_APPLICATION_PROTOCOL, "known protocol"),
    ("of 500 protocols", NO_APPLICATION_PROTOCOL, "known protocol"),
    ("of TLS 1.2", PROTOCOL_VERSION, "Tls12"),
    ("by another group", HANDSHAKE_FAILURE, "NoKxGroupsInCommon"),
    ("that takes SHA-1 alone", HANDSHAKE_FAILURE, "NoSignatureSchemesInCommon"),
];

/// Handshakes that begin and go no further.
const STALLED: u64 = 10;
/// Datagrams of noise, of each of two sorts.
const NOISE: u64 = 300;

#[test]
fn class_a_handshake_and_identity() {
    let (Some(attacker), Some(counts)) = (Attacker::start(), Counts::start()) else { return };
    let mut live = Live::start_with(PROGRAM, counts.plan(Plan::default()), |_| ());
    for (role, index) in [(Role::Scheduler, 0), (Role::Server, 1)] {
        live.case(&format!("strangers at the {role}"), |live| {
            let node = live.node(role, index);
            all_refused(&attacker, &counts, live, node, "handshake.strangers", &CERTIFICATES);
        });
    }
    live.case("other protocols", |live| {
        let node = live.node(Role::Server, 0);
        all_refused(&attacker, &counts, live, node, "handshake.protocols", &PROTOCOLS);
    });
    live.case("a good certificate is let in, and gets no ticket to resume", |live| {
        let node = live.node(Role::Server, 0);
        // No worker of the job, so it may never have a lease, and servers serve nobody else.
        let found = counts.rise(node, &[], || attacker.attack("handshake.resumption", live.order(node)));
        assert_eq!(found, json!({"admitted": true, "tickets": 0}));
    });
    live.case("stalled handshakes", |live| {
        let node = live.node(Role::Server, 1);
        let before = strangers(live, node);
        let order = json!({"target": node.target(), "count": STALLED});
        counts.rise(node, &[(Cause::Late, STALLED)], || {
            assert_eq!(
                attacker.attack("handshake.stalled", order),
                STALLED,
                "each was answered, and waited for"
            );
            until("the deadline of every handshake", || {
                (strangers(live, node) >= before + STALLED).then_some(())
            });
        });
    });
    live.case("noise", |live| {
        let node = live.node(Role::Scheduler, 0);
        let dropped = || counts.number(node, "testudo.datagrams.dropped");
        let before = dropped();
        attacker.attack("handshake.noise", json!({"target": node.target(), "count": NOISE}));
        // By the node, until it has the kernel drop the rest uncounted. Nobody is named for it, so no record is made of it.
        until("noise in the metrics", || (dropped() > before).then_some(()));
        // Some of it begins handshakes that fail. Whoever comes after it is let in when all of it was looked at, and counted.
        let found = attacker.attack("handshake.resumption", live.order(node));
        assert_eq!(found["admitted"], true, "{found}");
    });
    live.case("impostors of a server are not dialled", |live| impostors(&attacker, live));
    live.case("a live node's key: joining", |live| {
        let node = live.node(Role::Scheduler, 0);
        let before = live.report().joins_refused;
        let mut order = live.order_as(node, 0);
        order["release"] = testudo_actors::node::RELEASE.into();
        order["fingerprint"] = testudo_kernels::fingerprint().into();
        let answer =
            counts.rise(node, &[(Cause::Join, 1)], || attacker.attack("handshake.join_as_another", order));
        assert!(answer["reason"].as_str().unwrap_or_default().contains("takes part already"), "{answer}");
        until("the refusal to be counted", || (live.report().joins_refused > before).then_some(()));
    });
    live.case("a live node's key: speaking to a server", |live| {
        let node = live.node(Role::Server, 0);
        let since = node.log().len();
        let closed = counts.rise(node, &[(Cause::Incarnation, 1)], || {
            attacker.attack("handshake.hello_as_another", live.order_as(node, 0))
        });
        let closed: Closed = serde_json::from_value(closed).unwrap();
        assert!(closed.is(CloseCode::Admission), "{closed:?}");
        assert!(closed.reason.contains("another incarnation"), "{closed:?}");
        node.logs(since, &["another incarnation", "worker/0"]);
    });
    live.case("the audit log has the refusals", |live| {
        live.recorded(&["certificate", "handshake", "late", "join", "incarnation"]);
    });
    counts.recorded(live);
}

/// Has every case of `expected` tried at `node`: the attacker is told why each is refused, and the node counts it.
fn all_refused(
    attacker: &Attacker,
    counts: &Counts,
    live: &Live,
    node: &Node,
    attack: &str,
    expected: &[(&str, u64, &str)],
) {
    let before = strangers(live, node);
    let of = |cause| expected.iter().filter(|(_, code, _)| cause_of(*code) == cause).count() as u64;
    let counted = [Cause::Certificate, Cause::Handshake].map(|cause| (cause, of(cause)));
    let found = counts.rise(node, &counted, || attacker.attack(attack, live.order(node)));
    let mut found: BTreeMap<String, Option<Closed>> = serde_json::from_value(found).unwrap();
    let mut wrong = Vec::new();
    for (what, code, words) in expected {
        match found.remove(*what).flatten() {
            Some(closed) if closed.code == *code && closed.reason.contains(words) => {}
            other => wrong.push(format!("{what}: {other:?} instead of {code} with {words:?}")),
        }
    }
    wrong.extend(found.into_keys().map(|what| format!("{what}: nobody says how it should end")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all = before + expected.len() as u64;
    until("every refusal to be counted", || (strangers(live, node) >= all).then_some(()));
}

/// What a newcomer whose handshake ends with that code is counted as.
fn cause_of(code: u64) -> Cause {
    match code {
        PROTOCOL_VERSION | HANDSHAKE_FAILURE | NO_APPLICATION_PROTOCOL | PROTOCOL_VIOLATION => {
            Cause::Handshake
        }
        _ => Cause::Certificate,
    }
}

/// Dials servers that show bad certificates; each is refused for what is wrong with it, and not for being unreachable.
fn impostors(attacker: &Attacker, live: &Live) {
    let server = live.node(Role::Server, 0).id.clone();
    let ports = attacker
        .attack("handshake.impostors", json!({"ca": live.folder().join("ca"), "name": server.as_str()}));
    let ports: BTreeMap<String, u16> = serde_json::from_value(ports).unwrap();
    assert!(ports.len() > 30, "{ports:?}");
    let identity = live.site.identity(Role::Worker, "1");
    let wrong = live.site.runtime.block_on(async {
        let config = TransportConfig {
            key_exchange: KeyExchange::PqFirst,
            handshake_timeout: Duration::from_secs(30),
            ..TransportConfig::default()
        };
        let dialling = Endpoint::bind(&config, (*identity).clone(), live.site.policy.clone()).unwrap();
        let mut wrong = Vec::new();
        for (what, port) in ports {
            let dialled = in_time(&what, dialling.connect(([127, 0, 0, 1], port).into(), &server)).await;
            match dialled {
                Err(ConnectError::Untrusted { .. }) => {}
                // A signature that the certificate's key did not make is refused by TLS itself.
                Err(ConnectError::Refused { why, .. })
                    if what == "with another's key" && why.contains("BadSignature") => {}
                other => wrong.push(format!("{what}: {other:?}")),
            }
        }
        // An honest node under another name is not the one that was dialled.
        let honest = live.node(Role::Server, 1);
        match dialling.connect(honest.address, &server).await {
            Err(ConnectError::Untrusted { why: PkiError::Unexpected { found, .. }, .. })
                if found == honest.id.as_str() => {}
            other => wrong.push(format!("another server: {other:?}")),
        }
        wrong
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `node` told of newcomers that it did not let in.
fn strangers(live: &Live, node: &Node) -> u64 {
    live.load(node).refused.strangers
}

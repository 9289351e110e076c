//! Golden vectors: the wire format is what these files say. The test checks that the code produces and reads
//! exactly them, and an independent decoder in Python checks them without any of the code.
//!
//! `TESTUDO_WRITE_GOLDEN=1` writes them anew. The decoder runs when `TESTUDO_PYTHON` names an interpreter
//! that has the package `blake3`; with `TESTUDO_REQUIRE_PYTHON=1` its absence is a failure.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{ACK, BEAT, PUSH, policy};
use serde_json::{Value, json};
use testudo_transport::session::{
    CREDIT_KIND, ConnectionSecret, Direction, Gate, Grant, Inbound, Opener, Prelude, RENEWAL_KIND, Renewed,
    STREAM_KEY_DOMAIN, Sealer, Stream, exporter_context,
};
use testudo_transport::{Address, CreditConfig, Envelope, Grants, Role, SpiffeId, encode};

struct Vector {
    name: &'static str,
    direction: Direction,
    stream: u64,
    sequence: u64,
    kind: u8,
    request: u64,
    traceparent: Option<[u8; 25]>,
    body: Vec<u8>,
    payload: Vec<u8>,
}

fn initiator() -> SpiffeId {
    SpiffeId::new("testudo.test", "mnist", Role::Worker, "0").unwrap()
}

fn acceptor() -> SpiffeId {
    SpiffeId::new("testudo.test", "mnist", Role::Server, "0").unwrap()
}

fn secret() -> [u8; 32] {
    std::array::from_fn(|n| n as u8)
}

fn vectors() -> Vec<Vector> {
    use Direction::{FromAcceptor, FromInitiator};
    let floats: Vec<u8> = [1.0f32, -2.5, 0.0, 3.25].iter().flat_map(|x| x.to_le_bytes()).collect();
    let long: Vec<u8> = (0..3_000u32).map(|n| (n * 7 % 256) as u8).collect();
    let grants = Grants {
        control: Grant { bytes: 4 << 20, messages: 1024 },
        data: Grant { bytes: 32 << 20, messages: 4096 },
    };
    // A certificate and a signature are bytes to the wire; these are none.
    let renewed = Renewed { certificate: (0..200).collect(), signature: vec![0x30; 70] };
    let trace = Some(std::array::from_fn(|n| 0xa0 + n as u8));
    let vector =
        |name, direction, stream, sequence, kind, request, traceparent, body: &[u8], payload: &[u8]| Vector {
            name,
            direction,
            stream,
            sequence,
            kind,
            request,
            traceparent,
            body: body.to_vec(),
            payload: payload.to_vec(),
        };
    vec![
        vector("empty", FromInitiator, 0, 0, BEAT, 0, None, b"", b""),
        vector("body", FromInitiator, 0, 1, BEAT, 300, None, b"\x01\x02\x03", b""),
        vector("payload", FromInitiator, 4, 0, PUSH, 1, None, b"\x05", &floats),
        vector("traced", FromInitiator, 4, 1, PUSH, u64::MAX, trace, b"", &floats),
        vector("long", FromInitiator, (1 << 32) + 8, 1000, PUSH, 2, None, b"slice", &long),
        vector("reply", FromAcceptor, 4, 0, ACK, 1, None, b"\x00", b"\xff"),
        vector("credit", FromInitiator, 2, 0, CREDIT_KIND, 0, None, &encode(&grants), b""),
        vector("renewal", FromInitiator, 2, 1, RENEWAL_KIND, 0, None, &encode(&renewed), b""),
        vector("credit-back", FromAcceptor, 3, 7, CREDIT_KIND, 0, None, &encode(&grants), b""),
    ]
}

fn build(vector: &Vector) -> Value {
    let (from, to) = ends(vector.direction);
    let (from, to) = (Address::from(from), Address::from(to));
    let Vector { request, traceparent, kind, .. } = *vector;
    let envelope = Envelope { from: from.clone(), to: to.clone(), request, traceparent };
    let header = [encode(&envelope), vector.body.clone()].concat();
    let prelude = Prelude {
        kind,
        header_len: u32::try_from(header.len()).unwrap(),
        payload_len: vector.payload.len() as u64,
    };
    let payload_hash = blake3::hash(&vector.payload);
    let secret = ConnectionSecret::new(secret());
    let key = secret.stream_key(vector.direction, vector.stream);
    let key_hex = hex(key.expose());
    let mac = key.mac(vector.sequence, &prelude.encode(), &header, payload_hash.as_bytes());
    let frame = [&prelude.encode()[..], &header, &vector.payload, mac.as_bytes()].concat();
    json!({
        "name": vector.name,
        "exporter_secret": hex(&self::secret()),
        "exporter_context": hex(&exporter_context(&initiator(), &acceptor())),
        "job": initiator().job(),
        "initiator": initiator().as_str(),
        "acceptor": acceptor().as_str(),
        "stream_key_domain": hex(STREAM_KEY_DOMAIN),
        "direction": match vector.direction { Direction::FromInitiator => 0, Direction::FromAcceptor => 1 },
        "stream": vector.stream.to_string(),
        "sequence": vector.sequence.to_string(),
        "stream_key": key_hex,
        "kind": kind,
        "from": from.to_string(),
        "to": to.to_string(),
        "request": request.to_string(),
        "traceparent": traceparent.map(|bytes| hex(&bytes)),
        "body": hex(&vector.body),
        "payload": hex(&vector.payload),
        "payload_hash": hex(payload_hash.as_bytes()),
        "mac": hex(mac.as_bytes()),
        "frame": hex(&frame),
    })
}

fn ends(direction: Direction) -> (SpiffeId, SpiffeId) {
    match direction {
        Direction::FromInitiator => (initiator(), acceptor()),
        Direction::FromAcceptor => (acceptor(), initiator()),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_code_writes_exactly_the_golden_bytes() {
    for vector in vectors() {
        let path = folder().join(format!("{}.json", vector.name));
        let built = build(&vector);
        if std::env::var_os("TESTUDO_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, serde_json::to_string_pretty(&built).unwrap() + "\n").unwrap();
        }
        let stored = std::fs::read_to_string(&path)
            .unwrap_or_else(|why| panic!("{}: {why}; write it with TESTUDO_WRITE_GOLDEN=1", path.display()));
        assert_eq!(serde_json::from_str::<Value>(&stored).unwrap(), built, "{}", vector.name);
    }
    let stored = std::fs::read_dir(folder()).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let count = stored.filter(|path| path.extension().is_some_and(|end| end == "json")).count();
    assert_eq!(count, vectors().len(), "vectors that no test writes");
}

#[test]
fn the_code_reads_the_golden_bytes() {
    let wide = CreditConfig { bytes: 1 << 40, messages: 1 << 20 };
    for vector in vectors() {
        let stored = std::fs::read_to_string(folder().join(format!("{}.json", vector.name))).unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let text = |field: &str| stored[field].as_str().unwrap().to_owned();
        let secret: [u8; 32] = unhex(&text("exporter_secret")).try_into().unwrap();
        let key = || ConnectionSecret::new(secret).stream_key(vector.direction, vector.stream);
        let credit = Inbound::new(wide, wide);
        credit.take_due().unwrap();
        let (from, to) = ends(vector.direction);
        let stream = if [CREDIT_KIND, RENEWAL_KIND].contains(&vector.kind) {
            Stream::Credit
        } else {
            Stream::messages()
        };
        let gate = Gate { policy: policy(), from, to, credit: Arc::clone(&credit), stream };
        let mut opener = Opener::new(key(), gate);

        // Messages before it on its stream, so that its sequence number is the next.
        let (from, to) = ends(vector.direction);
        let envelope = Envelope { from: from.into(), to: to.into(), request: 0, traceparent: None };
        let header = encode(&envelope);
        let header_len = u32::try_from(header.len()).unwrap();
        let mut sealer = Sealer::new(key());
        for _ in 0..vector.sequence {
            let prelude = Prelude { kind: vector.kind, header_len, payload_len: 0 }.encode();
            let mac = sealer.seal(&prelude, &header, blake3::hash(b"").as_bytes());
            for part in [&prelude[..], &header, &mac] {
                assert_eq!(opener.handle(part), Ok(part.len()));
            }
            opener.poll().unwrap();
        }

        let frame = unhex(&text("frame"));
        assert_eq!(opener.handle(&frame), Ok(frame.len()), "{}", vector.name);
        let message = opener.poll().unwrap();
        assert_eq!((message.kind, message.envelope.request), (vector.kind, vector.request));
        assert_eq!(
            (message.envelope.from.to_string(), message.envelope.to.to_string()),
            (text("from"), text("to"))
        );
        assert_eq!(message.envelope.traceparent, vector.traceparent);
        assert_eq!((hex(&message.body), hex(message.payload.as_bytes())), (text("body"), text("payload")));
        assert_eq!(hex(&message.payload_hash), text("payload_hash"));
    }
}

#[test]
fn an_independent_decoder_agrees() {
    let required = std::env::var_os("TESTUDO_REQUIRE_PYTHON").is_some_and(|value| value == "1");
    let Some(python) = std::env::var_os("TESTUDO_PYTHON") else {
        assert!(!required, "TESTUDO_REQUIRE_PYTHON is set, but TESTUDO_PYTHON names no interpreter");
        println!("skipped: TESTUDO_PYTHON names no interpreter");
        return;
    };
    let has_blake3 = Command::new(&python).args(["-c", "import blake3"]).output();
    if !has_blake3.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(!required, "{} cannot import blake3: {has_blake3:?}", Path::new(&python).display());
        println!("skipped: {} cannot import blake3", Path::new(&python).display());
        return;
    }
    let output = Command::new(&python).arg(folder().join("decode.py")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.ends_with(": good")).count(), vectors().len(), "{said}");
}

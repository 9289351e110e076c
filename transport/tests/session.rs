//! Attacks on the session: whatever is done to the bytes, nothing comes out but what was sealed, in order.
//! Numbers in the names' comments are the invariants of `testudo_transport::session`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::{ACK, BEAT, PUSH, PUSH_LIMIT, id, policy};
use proptest::prelude::*;
use testudo_transport::session::{
    ConnectionSecret, Direction, Gate, Inbound, Opener, Prelude, Sealer, Stream,
};
use testudo_transport::{
    Address, Class, CreditConfig, Envelope, Fault, Message, Role, SpiffeId, Violation, encode,
};

const SECRET: [u8; 32] = [7; 32];
const STREAM: u64 = 4;

fn wide() -> CreditConfig {
    CreditConfig { bytes: 1 << 40, messages: 1 << 40 }
}

fn ledger() -> Arc<Inbound> {
    let ledger = Inbound::new(wide(), wide());
    ledger.take_due().unwrap();
    ledger
}

fn worker() -> SpiffeId {
    id(Role::Worker, 0)
}

fn server() -> SpiffeId {
    id(Role::Server, 0)
}

fn gate(stream: Stream) -> Gate {
    Gate { policy: policy(), from: worker(), to: server(), credit: ledger(), stream }
}

fn opener_for(secret: [u8; 32], direction: Direction, stream: u64) -> Opener {
    let key = ConnectionSecret::new(secret).stream_key(direction, stream);
    Opener::new(key, gate(Stream::messages()))
}

fn opener() -> Opener {
    opener_for(SECRET, Direction::FromInitiator, STREAM)
}

fn sealer() -> Sealer {
    Sealer::new(ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM))
}

fn envelope() -> Envelope {
    Envelope { from: worker().into(), to: server().into(), request: 9, traceparent: None }
}

fn frame_with(sealer: &mut Sealer, kind: u8, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = u32::try_from(header.len()).unwrap();
    let prelude = Prelude { kind, header_len, payload_len: payload.len() as u64 }.encode();
    let mac = sealer.seal(&prelude, header, blake3::hash(payload).as_bytes());
    [&prelude[..], header, payload, &mac].concat()
}

fn frame(sealer: &mut Sealer, body: &[u8], payload: &[u8]) -> Vec<u8> {
    frame_with(sealer, PUSH, &[encode(&envelope()), body.to_vec()].concat(), payload)
}

/// Feeds bytes in pieces; gives the messages that came out and the fault that ended it, if one did.
fn feed<'a>(
    opener: &mut Opener,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Message>, Option<Fault>) {
    let mut messages = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            match opener.handle(piece) {
                Ok(used) => piece = &piece[used..],
                Err(fault) => return (messages, Some(fault)),
            }
            messages.extend(opener.poll());
        }
    }
    (messages, None)
}

fn refusal(opener: &mut Opener, bytes: &[u8]) -> Fault {
    let (messages, fault) = feed(opener, [bytes]);
    assert!(messages.is_empty(), "a message came out");
    fault.expect("no refusal")
}

#[test]
fn a_sealed_message_opens() {
    let bytes = frame(&mut sealer(), b"body", b"payload");
    let mut opener = opener();
    let (messages, fault) = feed(&mut opener, [&bytes[..]]);
    assert_eq!(fault, None);
    let [message] = &messages[..] else { panic!("one message") };
    assert_eq!((message.kind, message.body.as_slice()), (PUSH, &b"body"[..]));
    assert_eq!(message.envelope, envelope());
    assert_eq!(message.payload.as_bytes(), b"payload");
    assert_eq!(message.payload_hash, *blake3::hash(b"payload").as_bytes());
    assert_eq!(opener.opened_len(), bytes.len() as u64);
    assert_eq!(opener.finish(), Ok(()));
}

/// Invariant 1: each bit in turn.
#[test]
fn no_flipped_bit_gets_through() {
    let good = frame(&mut sealer(), b"body", b"some payload");
    let trailer = frame(&mut sealer(), b"", b"");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // What follows on the stream completes whatever length the flipped bit announces.
        bad.extend_from_slice(&trailer);
        bad.resize(bad.len() + 1024, 0);
        let mut opener = opener();
        let (messages, fault) = feed(&mut opener, [&bad[..]]);
        assert!(messages.is_empty(), "bit {bit} flipped, and a message came out");
        assert!(fault.is_some() || opener.finish() == Err(Fault::Truncated), "bit {bit} flipped, no refusal");
    }
}

/// Invariant 1.
#[test]
fn replayed_reordered_and_dropped_messages_are_refused() {
    let mut sealer = sealer();
    let frames: Vec<Vec<u8>> = (0..3).map(|n| frame(&mut sealer, &[n], &[n; 10])).collect();
    for order in [&[0, 0][..], &[0, 1, 0], &[0, 1, 1], &[1], &[0, 2], &[2, 1, 0], &[0, 1, 2, 2]] {
        let (messages, fault) = feed(&mut opener(), order.iter().map(|n| &frames[*n][..]));
        let good = order.iter().zip(0..).take_while(|(n, place)| *n == place).count();
        assert_eq!(messages.len(), good, "{order:?}");
        assert_eq!(fault, Some(Fault::Mac { sequence: good as u64 }), "{order:?}");
    }
}

/// Invariant 1.
#[test]
fn messages_of_other_streams_directions_and_connections_are_refused() {
    let bytes = frame(&mut sealer(), b"", b"x");
    let mac = Fault::Mac { sequence: 0 };
    let from = Direction::FromInitiator;
    assert_eq!(refusal(&mut opener_for(SECRET, from, STREAM + 4), &bytes), mac);
    assert_eq!(refusal(&mut opener_for(SECRET, from.reverse(), STREAM), &bytes), mac);
    assert_eq!(refusal(&mut opener_for([8; 32], from, STREAM), &bytes), mac);
}

/// Invariant 3.
#[test]
fn after_a_refusal_nothing_opens() {
    let mut sealer = sealer();
    let (first, second) = (frame(&mut sealer, b"", b"1"), frame(&mut sealer, b"", b"2"));
    let mut opener = opener();
    assert_eq!(refusal(&mut opener, &second), Fault::Mac { sequence: 0 });
    assert_eq!(refusal(&mut opener, &first), Fault::Mac { sequence: 0 });
    assert_eq!(opener.finish(), Err(Fault::Mac { sequence: 0 }));
}

#[test]
fn every_truncation_is_found() {
    let bytes = frame(&mut sealer(), b"body", b"payload");
    for len in 1..bytes.len() {
        let mut opener = opener();
        let (messages, fault) = feed(&mut opener, [&bytes[..len]]);
        assert!(messages.is_empty() && fault.is_none());
        assert_eq!(opener.finish(), Err(Fault::Truncated), "{len} bytes");
    }
    assert_eq!(opener().finish(), Ok(()));
}

/// Invariant 2: what is announced costs nothing until it is checked, and little until it arrives.
#[test]
fn announced_lengths_allocate_nothing() {
    for (header_len, payload_len) in
        [(u32::MAX, 0), (0, u64::MAX), (u32::MAX, u64::MAX), (100, 1 << 32), (100, PUSH_LIMIT + 1), (1025, 0)]
    {
        let mut opener = opener();
        let prelude = Prelude { kind: PUSH, header_len, payload_len }.encode();
        let fault = refusal(&mut opener, &prelude);
        assert!(
            matches!(fault, Fault::Policy(Violation::Header { .. } | Violation::Payload { .. })),
            "{fault:?}"
        );
        assert_eq!(opener.buffered(), 0);
    }
    let mut opener = opener();
    let prelude = Prelude { kind: PUSH, header_len: 100, payload_len: PUSH_LIMIT }.encode();
    assert_eq!(opener.handle(&prelude), Ok(16));
    assert!(opener.buffered() <= 64 << 10, "{} bytes for an announcement", opener.buffered());
    assert_eq!(opener.handle(&[0; 100]), Ok(100));
    for arrived in 1..=64usize {
        opener.handle(&[0; 16 << 10]).unwrap();
        let (arrived, held) = (arrived << 14, opener.buffered());
        assert!(held <= (4 * arrived).max(64 << 10), "{held} bytes held, {arrived} arrived");
    }
}

/// Invariant 2.
#[test]
fn versions_flags_kinds_and_roles_are_checked_first() {
    let prelude = |kind| Prelude { kind, header_len: 10, payload_len: 0 }.encode();
    let mut version = prelude(PUSH);
    version[0] = 2;
    assert!(matches!(refusal(&mut opener(), &version), Fault::Prelude(_)));
    let mut flags = prelude(PUSH);
    flags[3] = 1;
    assert!(matches!(refusal(&mut opener(), &flags), Fault::Prelude(_)));
    for kind in [0, 4, 200, 255] {
        assert_eq!(refusal(&mut opener(), &prelude(kind)), Fault::Policy(Violation::UnknownKind(kind)));
    }
    assert!(matches!(refusal(&mut opener(), &prelude(ACK)), Fault::Policy(Violation::From { .. })));
}

#[test]
fn a_stream_keeps_the_class_of_its_first_message() {
    let mut sealer = sealer();
    let push = frame(&mut sealer, b"", b"");
    let beat = frame_with(&mut sealer, BEAT, &encode(&envelope()), b"");
    let mut opener = opener();
    let (messages, fault) = feed(&mut opener, [&push[..], &beat]);
    assert_eq!(messages.len(), 1);
    assert_eq!(fault, Some(Fault::MixedClasses { expected: Class::Data, found: Class::Control }));
}

#[test]
fn envelopes_that_lie_are_refused() {
    let seal = |envelope: &Envelope| frame_with(&mut sealer(), PUSH, &encode(envelope), b"");
    let other = |role, index| Address::from(id(role, index));
    let from = |from| seal(&Envelope { from, ..envelope() });
    let to = |to| seal(&Envelope { to, ..envelope() });
    for bytes in [from(other(Role::Worker, 1)), from(other(Role::Server, 0)), from(other(Role::Scheduler, 0))]
    {
        assert!(matches!(refusal(&mut opener(), &bytes), Fault::From { .. }));
    }
    for bytes in [to(other(Role::Server, 1)), to(other(Role::Worker, 0))] {
        assert!(matches!(refusal(&mut opener(), &bytes), Fault::To { .. }));
    }
    // A part that the node does not have does not even decode.
    let part = Address { id: worker(), part: Some(Role::Worker) };
    assert!(matches!(refusal(&mut opener(), &from(part)), Fault::Header(_)));
}

#[test]
fn headers_that_are_not_canonical_are_refused() {
    let good = encode(&envelope());
    let seal = |header: &[u8]| frame_with(&mut sealer(), PUSH, header, b"");
    assert_eq!(feed(&mut opener(), [&seal(&good)[..]]).1, None);
    assert!(matches!(refusal(&mut opener(), &seal(b"")), Fault::Header(_)));
    assert!(matches!(refusal(&mut opener(), &seal(&good[..good.len() - 1])), Fault::Header(_)));
    // The first byte is the length of an address; the same length in two bytes means the same.
    let mut padded = good.clone();
    padded[0] |= 0x80;
    padded.insert(1, 0);
    assert!(matches!(refusal(&mut opener(), &seal(&padded)), Fault::Header(_)));
}

#[test]
fn credit_is_charged_from_the_prelude_and_held_by_the_payload() {
    let bytes = frame(&mut sealer(), b"", &[1; 100]);
    let ledger = ledger();
    let key = ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM);
    let mut opener = Opener::new(key, Gate { credit: ledger.clone(), ..gate(Stream::messages()) });
    opener.handle(&bytes[..16]).unwrap();
    assert_eq!(ledger.outstanding(Class::Data).bytes, bytes.len() as u64);
    let (mut messages, _) = feed(&mut opener, [&bytes[16..]]);
    let message = messages.pop().unwrap();
    assert_eq!(ledger.outstanding(Class::Data).messages, 1);
    assert!(message.payload.is_charged());
    assert_eq!(message.payload.into_words().unwrap().len(), 25);
    assert_eq!(ledger.outstanding(Class::Data).messages, 0);
    assert_eq!(ledger.outstanding(Class::Data).bytes, 0);
}

#[test]
fn a_refused_message_gives_its_credit_back() {
    let mut bytes = frame(&mut sealer(), b"", &[1; 100]);
    *bytes.last_mut().unwrap() ^= 1;
    let ledger = ledger();
    let key = ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM);
    let mut opener = Opener::new(key, Gate { credit: ledger.clone(), ..gate(Stream::messages()) });
    refusal(&mut opener, &bytes);
    assert_eq!(ledger.outstanding(Class::Data).messages, 0);
}

#[test]
fn an_overrun_is_refused_from_the_prelude() {
    let small = CreditConfig { bytes: 1000, messages: 2 };
    let ledger = Inbound::new(wide(), small);
    let gate = || Gate { credit: ledger.clone(), ..gate(Stream::messages()) };
    let open = || {
        let key = ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM);
        Opener::new(key, gate())
    };
    let prelude = |payload_len| Prelude { kind: PUSH, header_len: 100, payload_len }.encode();
    assert!(matches!(refusal(&mut open(), &prelude(0)), Fault::Credit(_)), "before the first grant");
    ledger.take_due().unwrap();
    assert!(matches!(refusal(&mut open(), &prelude(853)), Fault::Credit(_)), "1001 bytes of 1000");
    assert_eq!(open().handle(&prelude(852)), Ok(16));
}

#[test]
fn only_credit_goes_on_the_credit_stream() {
    let key = || ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM);
    for prelude in [
        Prelude { kind: PUSH, header_len: 100, payload_len: 0 },
        Prelude { kind: 0, header_len: 100, payload_len: 1 },
        Prelude { kind: 0, header_len: 1025, payload_len: 0 },
    ] {
        let mut opener = Opener::new(key(), gate(Stream::Credit));
        assert!(matches!(refusal(&mut opener, &prelude.encode()), Fault::CreditStream(_)));
    }
}

/// The same from the other side: kind 0 on a stream of messages.
#[test]
fn credit_goes_on_no_other_stream() {
    let bytes = frame_with(&mut sealer(), 0, &encode(&envelope()), b"");
    assert_eq!(refusal(&mut opener(), &bytes), Fault::Policy(Violation::UnknownKind(0)));
}

#[test]
fn payloads_around_every_buffer_boundary_arrive_whole() {
    let mut sealer = sealer();
    let mut opener = opener();
    let step = 64 << 10;
    for len in [0, 1, 3, 4, 5, step - 1, step, step + 1, 2 * step - 1, 2 * step, 2 * step + 1, 5 * step + 3] {
        let payload: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
        let bytes = frame(&mut sealer, b"", &payload);
        let (messages, fault) = feed(&mut opener, bytes.chunks(8191));
        assert_eq!(fault, None, "{len} bytes");
        assert_eq!(messages[0].payload.as_bytes(), payload, "{len} bytes");
        assert_eq!(messages[0].payload_hash, *blake3::hash(&payload).as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_the_bytes_gives_the_same_messages(
        sizes in prop::collection::vec((0usize..40, 0usize..200_000), 1..4),
        cuts in prop::collection::vec(1usize..70_000, 1..40),
    ) {
        let mut sealer = sealer();
        let messages: Vec<(Vec<u8>, Vec<u8>)> =
            sizes.iter().map(|(body, payload)| (vec![3; *body], vec![5; *payload])).collect();
        let stream: Vec<u8> =
            messages.iter().flat_map(|(body, payload)| frame(&mut sealer, body, payload)).collect();
        let (mut rest, mut pieces, mut cuts) = (&stream[..], Vec::new(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        let mut opener = opener();
        let (opened, fault) = feed(&mut opener, pieces);
        prop_assert_eq!(fault, None);
        prop_assert_eq!(opened.len(), messages.len());
        for (opened, (body, payload)) in opened.iter().zip(&messages) {
            prop_assert_eq!(&opened.body, body);
            prop_assert_eq!(opened.payload.as_bytes(), &payload[..]);
        }
        prop_assert_eq!(opener.finish(), Ok(()));
    }

    #[test]
    fn a_few_bytes_at_a_time_give_the_same_message(cuts in prop::collection::vec(1usize..5, 1..20)) {
        let bytes = frame(&mut sealer(), b"body", b"a short payload");
        let (mut rest, mut pieces, mut cuts) = (&bytes[..], Vec::new(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        let (opened, fault) = feed(&mut opener(), pieces);
        prop_assert_eq!(fault, None);
        prop_assert_eq!(opened[0].payload.as_bytes(), b"a short payload");
    }

    #[test]
    fn random_bytes_never_open(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let (messages, _) = feed(&mut opener(), [&bytes[..]]);
        prop_assert!(messages.is_empty());
    }

    #[test]
    fn random_bytes_after_a_good_prelude_never_open(
        bytes in prop::collection::vec(any::<u8>(), 0..600), header_len in 0u32..300, payload_len in 0u64..300,
    ) {
        let prelude = Prelude { kind: PUSH, header_len, payload_len }.encode();
        let (messages, _) = feed(&mut opener(), [&prelude[..], &bytes]);
        prop_assert!(messages.is_empty());
    }
}

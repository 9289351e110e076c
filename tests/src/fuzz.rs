//! What the fuzzers run: one function a target, which takes any bytes and panics where a promise does not hold.
//!
//! `tests/fuzz` gives each to libFuzzer; `tests/tests/fuzz_corpus.rs` runs the committed corpora through them in every
//! `cargo test`. None may panic, hang, or hold memory that its input does not justify.

mod audit;
mod files;
mod papers;
mod program;
pub mod seeds;

pub use audit::audit;
pub use files::{bundle, checkpoint};
pub use papers::{chain, crl, request, token};
pub use program::program;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use testudo::config::Config;
use testudo_actors::{SignedJob, message, policy};
use testudo_kernels::Codec;
use testudo_transport::session::{
    ConnectionSecret, Direction, Gate, Inbound, Opener, PRELUDE_LEN, Prelude, Sealer, Stream,
};
use testudo_transport::{
    Address, CreditConfig, Envelope, Expected, Fault, Identity, JobCa, Policy, Role, SpiffeId, Trust,
    decode_canonical, encode, pki,
};

/// A target.
pub type Target = fn(&[u8]);

/// Every target, under the name of its corpus and of its binary.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame),
    ("header", header),
    ("config", config),
    ("codecs", codecs),
    ("certificate", certificate),
    ("checkpoint", checkpoint),
    ("bundle", bundle),
    ("audit", audit),
    ("crl", crl),
    ("request", request),
    ("token", token),
    ("chain", chain),
    ("program", program),
];

/// The secret of the connection that the fuzzers speak on: seeds are sealed under it.
const SECRET: [u8; 32] = [7; 32];
const STREAM: u64 = 4;

/// Most payload memory that an opener may hold for bytes that have not come: its first buffer.
const FIRST_BUFFER: usize = 64 << 10;
/// How much larger than what came an opener's buffer may be.
const GROWTH: usize = 4;

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| Arc::new(policy::policy(1 << 20).unwrap()));

fn id(role: Role, name: &str) -> SpiffeId {
    SpiffeId::new("t", "j", role, name).unwrap()
}

fn gate() -> Gate {
    let wide = CreditConfig { bytes: 1 << 40, messages: 1 << 40 };
    let credit = Inbound::new(wide, wide);
    let _ = credit.take_due();
    let (from, to) = (id(Role::Worker, "0"), id(Role::Server, "0"));
    Gate { policy: Arc::clone(&POLICY), from, to, credit, stream: Stream::messages() }
}

fn opener() -> Opener {
    Opener::new(ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM), gate())
}

/// A sealer whose messages [`frame`]'s opener takes.
#[must_use]
pub fn sealer() -> Sealer {
    Sealer::new(ConnectionSecret::new(SECRET).stream_key(Direction::FromInitiator, STREAM))
}

/// One message as it stands on the wire.
#[must_use]
pub fn sealed(sealer: &mut Sealer, kind: u8, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = u32::try_from(header.len()).unwrap();
    let prelude = Prelude { kind, header_len, payload_len: payload.len() as u64 }.encode();
    let mac = sealer.seal(&prelude, header, blake3::hash(payload).as_bytes());
    [&prelude[..], header, payload, &mac].concat()
}

/// An envelope from the worker of these tests to their server.
#[must_use]
pub fn envelope() -> Envelope {
    let (from, to) = (id(Role::Worker, "0"), id(Role::Server, "0"));
    Envelope { from: from.into(), to: to.into(), request: 9, traceparent: None }
}

/// What comes over a stream. The first byte says in pieces of which length.
///
/// No message comes out but one that begins as a sealed one does, memory follows what came, and a refusal lasts.
pub fn frame(input: &[u8]) {
    let Some((&first, bytes)) = input.split_first() else { return };
    let mut opener = opener();
    let mut fed = 0;
    for mut piece in bytes.chunks(usize::from(first).max(1)) {
        while !piece.is_empty() {
            match opener.handle(piece) {
                Ok(used) => {
                    assert!(used > 0 || opener.poll().is_some(), "neither bytes taken nor a message given");
                    fed += used;
                    piece = &piece[used..];
                    if let Some(message) = opener.poll() {
                        assert!(opener.opened_len() <= fed as u64, "more came out than went in");
                        assert_eq!(
                            message.payload_hash,
                            *blake3::hash(message.payload.as_bytes()).as_bytes()
                        );
                    }
                }
                Err(fault) => {
                    assert_eq!(opener.handle(piece), Err(fault), "a refusal that does not last");
                    return;
                }
            }
            let most = FIRST_BUFFER.max(GROWTH * fed.next_multiple_of(4));
            assert!(opener.buffered() <= most, "{} bytes held for {fed}", opener.buffered());
        }
    }
    assert!(matches!(opener.finish(), Ok(()) | Err(Fault::Truncated)));
}

/// What an authenticated peer says: the first byte is a message's kind, the rest its header, sealed as that peer would
/// seal it; and the header's body by itself.
pub fn header(input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    let mut opener = opener();
    let wire = sealed(&mut sealer(), kind, bytes, &[]);
    let mut rest = &wire[..];
    while !rest.is_empty() {
        match opener.handle(rest) {
            Ok(used) => rest = &rest[used..],
            Err(fault) => {
                assert!(!matches!(fault, Fault::Mac { .. }), "a good MAC refused");
                break;
            }
        }
        if let Some(message) = opener.poll() {
            assert_eq!(message.envelope.from.id, id(Role::Worker, "0"), "another's name got through");
            let whole = [encode(&message.envelope), message.body.clone()].concat();
            assert_eq!(whole, bytes, "a header has two spellings");
        }
    }
    if let Some(Ok(again)) = message::reencode(kind, bytes) {
        assert_eq!(again, bytes, "a body of kind {kind} has two spellings");
    }
}

/// A cluster file. What is accepted is written out to a file that is accepted and means the same.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path = Path::new("/cluster/cluster.toml");
    match Config::parse::<&str>(text, path, &[]) {
        Ok(config) => {
            let Ok(written) = config.to_toml() else { return };
            let again = Config::parse::<&str>(&written, path, &[]);
            let again = again.unwrap_or_else(|e| panic!("the effective file is refused: {e}\n{written}"));
            assert_eq!(again.to_toml().ok(), Some(written), "the effective file means something else");
        }
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// Every codec, with parameters for those that have some.
const WIRE: [Codec; 7] = [
    Codec::F32,
    Codec::F16,
    Codec::Bf16,
    Codec::Int8,
    Codec::TwoBit { threshold: 0.5 },
    Codec::OneBit { threshold: 0.0 },
    Codec::TopK { fraction: 0.25 },
];

/// Bytes that decode are decoded to the same numbers when these are encoded, and by some codecs to the same bytes.
fn wire_codec(codec: Codec, bytes: &[u8]) {
    // The number of elements is what the length may stand for; only some lengths stand for one.
    let elements = (0..=bytes.len() * 8).rev().find(|n| codec.encoded_len(*n) == bytes.len());
    let Some(elements) = elements else { return };
    let mut values = vec![0.0; elements];
    if codec.decode(bytes, &mut values).is_err() {
        return;
    }
    let (mut again, mut residual) = (vec![0; bytes.len()], vec![0.0; elements]);
    let encoded = codec.encode_feedback(&values, &mut residual, &mut again);
    let is_finite = values.iter().all(|value: &f32| value.is_finite());
    assert_eq!(encoded.is_ok(), is_finite || !codec.feeds_back(), "{codec}: {encoded:?}");
    match codec {
        Codec::F32 | Codec::TwoBit { .. } | Codec::OneBit { .. } => {
            assert_eq!(again, bytes, "{codec} changes what it carries");
        }
        // NaN may lose its payload.
        Codec::F16 | Codec::Bf16 if is_finite => assert_eq!(again, bytes, "{codec} changes what it carries"),
        Codec::TopK { .. } if is_finite => {
            let mut back = vec![0.0; elements];
            codec.decode(&again, &mut back).unwrap();
            let equal = back.iter().zip(&values).all(|(a, b)| a == b);
            assert!(equal && residual.iter().all(|left| *left == 0.0), "{codec} changes what it carries");
        }
        _ => {}
    }
}

/// Numbers and structures: wire codecs, a prelude, a signed job, addresses.
pub fn codecs(input: &[u8]) {
    let Some((&id, bytes)) = input.split_first() else { return };
    if let Some(codec) = WIRE.into_iter().find(|codec| codec.id() == id) {
        wire_codec(codec, bytes);
    }
    if let Some(Ok(prelude)) = bytes.first_chunk::<PRELUDE_LEN>().map(Prelude::decode) {
        assert_eq!(prelude.encode()[..], bytes[..PRELUDE_LEN]);
    }
    if let Ok(job) = SignedJob::from_bytes(bytes) {
        assert_eq!(job.to_bytes(), bytes, "a signed job has two spellings");
        assert!(job.open(&NODE).is_err(), "a job that no operator signed");
    }
    if let Ok(address) = decode_canonical::<Address>(bytes) {
        assert_eq!(encode(&address), bytes);
    }
}

static CA: LazyLock<JobCa> =
    LazyLock::new(|| JobCa::create("t", "j", std::time::Duration::from_secs(3600)).unwrap());
static NODE: LazyLock<Identity> =
    LazyLock::new(|| CA.issue(&id(Role::Worker, "0"), std::time::Duration::from_secs(3600)).unwrap());

/// Certificates and the identities in them: DER, PEM and SPIFFE IDs.
pub fn certificate(input: &[u8]) {
    let trust = CA.trust();
    assert!(trust.verify(input, &Expected::Member).is_err(), "a certificate that the CA did not sign");
    assert!(trust.verify_signature(input, &Expected::Member, b"message", input).is_err());
    let _ = (pki::describe(input), Trust::from_pem(input));
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(found) = SpiffeId::parse(text)
    {
        assert_eq!(found.to_string(), text, "an identity has two spellings");
        assert_eq!(SpiffeId::new(found.trust_domain(), found.job(), found.role(), found.name()), Ok(found));
    }
}

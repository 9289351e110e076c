//! The rows about slices, streams and credit.

use super::rules::DAY_MS;
use super::{Absent, Applies, Key, Rule};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "transport.slice_bytes",
        rule: Rule::Integer { min: 64, max: 16 << 20 },
        absent: Absent::Is("1048576"),
        applies: None,
        doc: "Bytes of f32 in a slice at most, a multiple of 4: the unit in which tensors travel and are updated.",
    },
    Key {
        path: "transport.push_codec",
        rule: Rule::Choice(&["f32", "f16", "bf16", "int8", "2bit", "1bit", "topk"]),
        absent: Absent::Is("\"f32\""),
        applies: None,
        doc: "How gradients travel from workers to servers: see [codecs](codecs.md). All but `f32` lose something, and encode every logical shard by itself: let there be as many of them as workers. `int8`, `2bit`, `1bit` and `topk` keep what they lose in residuals at the workers, which have a part in checkpoints then.",
    },
    Key {
        path: "transport.push_threshold",
        rule: Rule::Number { min: -1e30, above: false, max: 1e30, below: false },
        absent: Absent::ByKind {
            selector: "transport.push_codec",
            cases: &[("1bit", "0.0")],
            otherwise: "0.5",
        },
        applies: Some(Applies { selector: "transport.push_codec", kinds: &["2bit", "1bit"] }),
        doc: "With `2bit`, what is emitted of an element, up or down, and the magnitude from which on it is: above 0. With `1bit`, what an element must exceed to go up by one. In units of a logical shard's gradient, which is a sum over its examples.",
    },
    Key {
        path: "transport.push_fraction",
        rule: Rule::Number { min: 0.0, above: true, max: 0.5, below: false },
        absent: Absent::Is("0.01"),
        applies: Some(Applies { selector: "transport.push_codec", kinds: &["topk"] }),
        doc: "The share of a slice's elements that `topk` sends; at least one.",
    },
    Key {
        path: "transport.pull_codec",
        rule: Rule::Choice(&["f32", "f16", "bf16", "int8"]),
        absent: Absent::Is("\"f32\""),
        applies: None,
        doc: "How parameters travel from servers to workers. Servers keep, update, hash and export them as f32; workers compute with what they decode, all with the same.",
    },
    Key {
        path: "transport.lanes",
        rule: Rule::Integer { min: 1, max: 16 },
        absent: Absent::Is("2"),
        applies: None,
        doc: "Streams a connection opens for each priority class; a lost packet holds up one stream only.",
    },
    Key {
        path: "transport.max_in_flight_bytes",
        rule: Rule::Integer { min: 1 << 16, max: 1 << 32 },
        absent: Absent::Is("67108864"),
        applies: None,
        doc: "Bytes that one peer may have on their way to a node that has not taken them yet: its credit, and the memory it can occupy. At least four thirds of `transport.slice_bytes` and 4 KiB.",
    },
    Key {
        path: "transport.max_in_flight_messages",
        rule: Rule::Integer { min: 16, max: 1 << 20 },
        absent: Absent::Is("4096"),
        applies: None,
        doc: "Messages that one peer may have on their way to a node that has not taken them yet.",
    },
    Key {
        path: "transport.key_exchange",
        rule: Rule::Choice(&["pq-only", "pq-first"]),
        absent: Absent::Is("\"pq-only\""),
        applies: None,
        doc: "With `pq-only`, peers agree on keys by X25519MLKEM768 alone; `pq-first` prefers it and takes X25519 from peers that lack it.",
    },
    Key {
        path: "transport.idle_timeout_ms",
        rule: Rule::Integer { min: 100, max: DAY_MS },
        absent: Absent::Is("10000"),
        applies: None,
        doc: "Milliseconds without a packet after which a connection is closed; at least twice `cluster.heartbeat_ms`.",
    },
];

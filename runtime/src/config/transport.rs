//! `[transport]`: what travels, in which form (`docs/codecs.md`), and how much at a time.

use serde::Serialize;

/// `[transport]`: sizes and limits of what travels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transport {
    /// Bytes of f32 in a slice at most; a multiple of 4.
    pub slice_bytes: u32,
    /// How gradients travel.
    #[serde(flatten)]
    pub push: PushCodec,
    /// How parameters travel.
    pub pull_codec: PullCodec,
    /// Streams for each priority class.
    pub lanes: u16,
    /// A peer's credit in bytes.
    pub max_in_flight_bytes: u64,
    /// A peer's credit in messages.
    pub max_in_flight_messages: u32,
    /// How peers agree on keys.
    pub key_exchange: KeyExchange,
    /// Milliseconds without a packet after which a connection closes.
    pub idle_timeout_ms: u64,
}

/// How peers agree on keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyExchange {
    /// X25519MLKEM768 alone.
    PqOnly,
    /// X25519MLKEM768 first, X25519 for those that lack it.
    PqFirst,
}

/// How gradients travel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "push_codec", rename_all = "lowercase")]
pub enum PushCodec {
    /// As they are.
    F32,
    /// As IEEE 754 binary16.
    F16,
    /// As bfloat16.
    Bf16,
    /// Eight bits each, with error feedback.
    Int8,
    /// Two bits each, with error feedback.
    #[serde(rename = "2bit")]
    TwoBit {
        /// What is emitted, and from which magnitude on.
        push_threshold: f64,
    },
    /// One bit each, with error feedback.
    #[serde(rename = "1bit")]
    OneBit {
        /// What an element must exceed.
        push_threshold: f64,
    },
    /// The largest alone, with error feedback.
    TopK {
        /// The share that is sent.
        push_fraction: f64,
    },
}

/// How parameters travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PullCodec {
    /// As they are.
    F32,
    /// As IEEE 754 binary16.
    F16,
    /// As bfloat16.
    Bf16,
    /// Eight bits each.
    Int8,
}

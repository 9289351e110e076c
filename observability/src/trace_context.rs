//! The W3C trace context (<https://www.w3.org/TR/trace-context/>): which trace a message belongs to.
//!
//! Every message header carries the 25 bytes of a [`TraceParent`]: trace-id (16), parent-id (8) and
//! flags (1), in that order. The text form is the specification's `traceparent` header:
//! `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, 55 characters.
//!
//! Invariants:
//! 1. A [`TraceParent`] never holds an all-zero trace-id or parent-id; both are refused on the way in
//!    (specification, sections 3.2.2.3 and 3.2.2.4).
//! 2. Bytes and text round-trip exactly; hex digits are lower case and upper case is refused.
//! 3. Text of version `ff` is refused; of version `00`, anything but exactly 55 characters; of a later
//!    version, the first 55 characters are read and the rest must begin with `-` (section 4).
//! 4. Flag bits this version does not define are dropped, never passed on.
//!
//! A peer's bytes are input: they decide which trace a span is shown under and nothing else.

use std::fmt;
use std::str::FromStr;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing_opentelemetry::{OpenTelemetrySpanExt as _, SetParentError};

/// Length of the binary form in bytes.
pub const BINARY_LENGTH: usize = 25;
/// Length of the version `00` text form in characters (all ASCII).
pub const TEXT_LENGTH: usize = 55;
/// Flag bit: the caller may have recorded this trace.
pub const FLAG_SAMPLED: u8 = 0x01;
/// Flag bit: the trace-id's low 7 bytes are random (level 2 of the specification).
pub const FLAG_RANDOM: u8 = 0x02;

const KNOWN_FLAGS: u8 = FLAG_SAMPLED | FLAG_RANDOM;

/// A place in a trace: the trace and the span that caused what follows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TraceParent {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// Why bytes or text are not a trace context, or why a span cannot take one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceContextError {
    /// The trace-id is all zeros.
    #[error("trace context refused: the trace-id is all zeros")]
    ZeroTraceId,
    /// The parent-id is all zeros.
    #[error("trace context refused: the parent-id is all zeros")]
    ZeroParentId,
    /// The text is too short, or too long for its version.
    #[error("traceparent refused: {found} characters, expected {TEXT_LENGTH}")]
    Length {
        /// How many bytes the text has.
        found: usize,
    },
    /// A `-` is missing or in the wrong place, or a character is not a lower-case hex digit.
    #[error(
        "traceparent refused: bad character at offset {offset}; the form is 00-<32 hex>-<16 hex>-<2 hex>, in lower case"
    )]
    Character {
        /// Byte offset of the first bad character.
        offset: usize,
    },
    /// Version `ff`, which the specification forbids.
    #[error("traceparent refused: version ff is not allowed")]
    ForbiddenVersion,
    /// The span already has its identity; a parent must be set before the span is entered.
    #[error("the span has started: set its remote parent right after creating it, before entering it")]
    SpanStarted,
    /// The span is filtered out, or OpenTelemetry is off in this process.
    #[error("the span records nothing: it is filtered out, or OpenTelemetry is off")]
    NotRecorded,
}

impl TraceParent {
    /// Reads the binary form: trace-id, parent-id, flags.
    ///
    /// # Errors
    /// An all-zero trace-id or parent-id.
    pub fn from_bytes(bytes: [u8; BINARY_LENGTH]) -> Result<Self, TraceContextError> {
        let mut trace_id = [0; 16];
        let mut parent_id = [0; 8];
        let (first, rest) = bytes.split_at(16);
        let (second, flags) = rest.split_at(8);
        trace_id.copy_from_slice(first);
        parent_id.copy_from_slice(second);
        Self::from_parts(trace_id, parent_id, flags.first().copied().unwrap_or(0))
    }

    /// Builds one from its three fields.
    ///
    /// # Errors
    /// An all-zero trace-id or parent-id.
    pub fn from_parts(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Result<Self, TraceContextError> {
        if trace_id == [0; 16] {
            return Err(TraceContextError::ZeroTraceId);
        }
        if parent_id == [0; 8] {
            return Err(TraceContextError::ZeroParentId);
        }
        Ok(Self { trace_id, parent_id, flags: flags & KNOWN_FLAGS })
    }

    /// The binary form: trace-id, parent-id, flags.
    pub fn to_bytes(self) -> [u8; BINARY_LENGTH] {
        let mut bytes = [0; BINARY_LENGTH];
        let (first, rest) = bytes.split_at_mut(16);
        let (second, third) = rest.split_at_mut(8);
        first.copy_from_slice(&self.trace_id);
        second.copy_from_slice(&self.parent_id);
        third.copy_from_slice(&[self.flags]);
        bytes
    }

    /// The trace-id, never all zeros.
    pub const fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The parent-id (the id of the calling span), never all zeros.
    pub const fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Whether the caller may have recorded the trace.
    pub const fn is_sampled(&self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }

    fn to_span_context(self) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace_id),
            SpanId::from_bytes(self.parent_id),
            TraceFlags::new(self.flags),
            true,
            TraceState::default(),
        )
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = TraceContextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let length = TraceContextError::Length { found: bytes.len() };
        let Some((head, tail)) = bytes.split_at_checked(TEXT_LENGTH) else {
            return Err(length);
        };
        let mut fields = Fields { bytes: head, at: 0 };
        let [version] = fields.hex::<1>()?;
        if version == 0xff {
            return Err(TraceContextError::ForbiddenVersion);
        }
        match tail.first() {
            None => {}
            Some(_) if version == 0 => return Err(length),
            Some(b'-') => {}
            Some(_) => return Err(TraceContextError::Character { offset: TEXT_LENGTH }),
        }
        fields.dash()?;
        let trace_id = fields.hex::<16>()?;
        fields.dash()?;
        let parent_id = fields.hex::<8>()?;
        fields.dash()?;
        let [flags] = fields.hex::<1>()?;
        // Of a later version's flags only the sampled bit keeps its meaning (section 4.2).
        let flags = if version == 0 { flags } else { flags & FLAG_SAMPLED };
        Self::from_parts(trace_id, parent_id, flags)
    }
}

/// A cursor over the text form.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn next(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn dash(&mut self) -> Result<(), TraceContextError> {
        match self.next() {
            b'-' => Ok(()),
            _ => Err(TraceContextError::Character { offset: self.at - 1 }),
        }
    }

    fn digit(&mut self) -> Result<u8, TraceContextError> {
        match self.next() {
            byte @ b'0'..=b'9' => Ok(byte - b'0'),
            byte @ b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(TraceContextError::Character { offset: self.at - 1 }),
        }
    }

    fn hex<const N: usize>(&mut self) -> Result<[u8; N], TraceContextError> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = (self.digit()? << 4) | self.digit()?;
        }
        Ok(out)
    }
}

/// The current `tracing` span as the 25 bytes a message carries; `None` outside any recorded span or
/// where OpenTelemetry is off.
pub fn current_traceparent() -> Option<[u8; BINARY_LENGTH]> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    TraceParent::from_parts(span.trace_id().to_bytes(), span.span_id().to_bytes(), span.trace_flags().to_u8())
        .ok()
        .map(TraceParent::to_bytes)
}

/// Makes the span that `traceparent` names (in another process) the parent of `span`. Call it right
/// after creating `span`, before entering it.
///
/// # Errors
/// Bytes with an all-zero id; a span that has started, is filtered out, or lives in a process where
/// OpenTelemetry is off. None of these needs more than a log line: the span is then a root.
pub fn set_remote_parent(
    span: &tracing::Span,
    traceparent: [u8; BINARY_LENGTH],
) -> Result<(), TraceContextError> {
    let parent = TraceParent::from_bytes(traceparent)?;
    let context = Context::new().with_remote_span_context(parent.to_span_context());
    span.set_parent(context).map_err(|error| match error {
        SetParentError::AlreadyStarted => TraceContextError::SpanStarted,
        _ => TraceContextError::NotRecorded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification, section 3.2.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn example_bytes() -> [u8; BINARY_LENGTH] {
        let mut bytes = [0; BINARY_LENGTH];
        bytes[..16].copy_from_slice(&0x4bf92f3577b34da6a3ce929d0e0e4736_u128.to_be_bytes());
        bytes[16..24].copy_from_slice(&0x00f067aa0ba902b7_u64.to_be_bytes());
        bytes[24] = 1;
        bytes
    }

    /// Invariant 2.
    #[test]
    fn specification_example_round_trips() {
        let parsed: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!(parsed.to_bytes(), example_bytes());
        assert_eq!(parsed.to_string(), EXAMPLE);
        assert!(parsed.is_sampled());
        assert_eq!(TraceParent::from_bytes(example_bytes()).unwrap(), parsed);
        let unsampled: TraceParent = EXAMPLE.replace("-01", "-00").parse().unwrap();
        assert!(!unsampled.is_sampled());
    }

    /// Invariant 1.
    #[test]
    fn zero_ids_are_refused() {
        let mut bytes = example_bytes();
        bytes[..16].fill(0);
        assert_eq!(TraceParent::from_bytes(bytes), Err(TraceContextError::ZeroTraceId));
        let mut bytes = example_bytes();
        bytes[16..24].fill(0);
        assert_eq!(TraceParent::from_bytes(bytes), Err(TraceContextError::ZeroParentId));
        assert_eq!(
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".parse::<TraceParent>(),
            Err(TraceContextError::ZeroTraceId)
        );
        assert_eq!(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".parse::<TraceParent>(),
            Err(TraceContextError::ZeroParentId)
        );
    }

    /// Invariants 2 and 3: every single-character change to punctuation, case or length is refused.
    #[test]
    fn malformed_text_is_refused() {
        for offset in 0..TEXT_LENGTH {
            for bad in ["g", "A", " ", "_", "\u{0}"] {
                let mut text = EXAMPLE.to_string();
                text.replace_range(offset..=offset, bad);
                assert_eq!(
                    text.parse::<TraceParent>(),
                    Err(TraceContextError::Character { offset }),
                    "{text:?}"
                );
            }
        }
        for length in 0..TEXT_LENGTH {
            assert_eq!(
                EXAMPLE[..length].parse::<TraceParent>(),
                Err(TraceContextError::Length { found: length })
            );
        }
        assert_eq!(
            format!("{EXAMPLE}-00").parse::<TraceParent>(),
            Err(TraceContextError::Length { found: 58 })
        );
        assert_eq!(
            EXAMPLE.replacen("00", "ff", 1).parse::<TraceParent>(),
            Err(TraceContextError::ForbiddenVersion)
        );
        assert!("é".repeat(40).parse::<TraceParent>().is_err());
    }

    /// Invariant 3: a later version is read as far as this one goes.
    #[test]
    fn later_versions_are_read() {
        let later = EXAMPLE.replacen("00", "cc", 1);
        assert_eq!(later.parse::<TraceParent>().unwrap().to_bytes(), example_bytes());
        assert_eq!(format!("{later}-what-else").parse::<TraceParent>().unwrap().to_bytes(), example_bytes());
        assert_eq!(
            format!("{later}.what-else").parse::<TraceParent>(),
            Err(TraceContextError::Character { offset: TEXT_LENGTH })
        );
    }

    /// Invariant 4.
    #[test]
    fn unknown_flags_are_dropped() {
        let mut bytes = example_bytes();
        bytes[24] = 0xff;
        assert_eq!(TraceParent::from_bytes(bytes).unwrap().to_bytes()[24], 0x03);
        assert_eq!(EXAMPLE.replace("-01", "-ff").parse::<TraceParent>().unwrap().to_bytes()[24], 0x03);
        assert_eq!(
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff"
                .parse::<TraceParent>()
                .unwrap()
                .to_bytes()[24],
            0x01
        );
    }

    #[test]
    fn without_opentelemetry_there_is_no_context() {
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            let span = tracing::info_span!("step");
            assert_eq!(set_remote_parent(&span, example_bytes()), Err(TraceContextError::NotRecorded));
            let _entered = span.enter();
            assert_eq!(current_traceparent(), None);
        });
    }
}

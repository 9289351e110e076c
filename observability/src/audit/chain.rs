//! The chain: one line after the other.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Base64, Hex, Signer};

/// Bytes of a line at most, its line feed included: certificates, which are the longest that a record holds, take a few
/// thousand.
pub const MAX_LINE: usize = 64 << 10;

/// The kind of a signature's record.
pub const SIGNATURE: &str = "signature";

/// Domain separation of a record's hash.
const RECORD: &[u8] = b"testudo audit record, format 1\0";

/// Domain separation of what is signed.
const SIGNED: &[u8] = b"testudo audit signature, format 1\0";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its place, from 0.
    pub seq: u64,
    /// The hash of the line before it; zeros in the first.
    pub prev: Hex,
    /// Milliseconds since 1970.
    pub at: u64,
    /// What it tells of.
    pub kind: String,
    /// What it tells; its members in alphabetical order.
    pub body: Map<String, Value>,
}

/// The body of a record of kind [`SIGNATURE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Over [`signed_bytes`] of that record.
    pub signature: Base64,
}

/// Why a record cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// It has no JSON form of a kind and a body.
    #[error("a record that cannot be written: {0}")]
    Form(String),
    /// It is longer than any record may be.
    #[error("a record of {0} bytes; {MAX_LINE} at most are written")]
    TooLong(usize),
    /// There is no signature.
    #[error("the audit log cannot be signed: {0}")]
    Signing(String),
}

/// Why a line does not follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is longer than any line.
    #[error("it is longer than {MAX_LINE} bytes")]
    TooLong,
    /// It is no record.
    #[error("it is no record: {0}")]
    Form(String),
    /// It says the same as a record, but not in the writer's spelling.
    #[error("it is not in the form that a record is written in")]
    Spelling,
    /// A line is missing, or is in another's place.
    #[error("it is record {found}, and record {expected} is due: a record was dropped, added or moved")]
    Sequence {
        /// The place that it names.
        found: u64,
        /// Its place.
        expected: u64,
    },
    /// The line before it is not the one that it followed when it was written.
    #[error("it does not follow the record before it: that one was changed, or this one is another log's")]
    Link,
    /// It is older than the line before it.
    #[error("it is older than the record before it")]
    Time,
}

/// What was written so far, in a few bytes. Pure.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Chain {
    next: u64,
    head: [u8; 32],
    at: u64,
}

impl Chain {
    /// The chain of no record.
    #[must_use]
    pub fn new() -> Chain {
        Chain::default()
    }

    /// How many records there are: the next one's place.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The last record's hash, which names the whole chain; zeros before the first.
    #[must_use]
    pub fn head(&self) -> Hex {
        Hex(self.head)
    }

    /// Adds a record of what happened at `at`, milliseconds since 1970; the answer is its line, with the line feed. `entry`
    /// has a JSON form with the members `kind` (text) and `body` (an object).
    ///
    /// # Errors
    /// [`AuditError`]; the chain is as it was then.
    pub fn append(&mut self, at: u64, entry: &impl Serialize) -> Result<String, AuditError> {
        let form = |why: String| AuditError::Form(why);
        let value = serde_json::to_value(entry).map_err(|e| form(e.to_string()))?;
        let Value::Object(mut members) = value else { return Err(form("no object".into())) };
        let (Some(Value::String(kind)), Some(Value::Object(body))) =
            (members.remove("kind"), members.remove("body"))
        else {
            return Err(form("no kind and body".into()));
        };
        self.add(Record { seq: self.next, prev: self.head(), at: at.max(self.at), kind, body })
    }

    /// Adds a signature over everything so far.
    ///
    /// # Errors
    /// [`AuditError`]; the chain is as it was then.
    pub fn sign(&mut self, at: u64, signer: &dyn Signer) -> Result<String, AuditError> {
        let at = at.max(self.at);
        let message = signed_bytes(self.next, &self.head(), at);
        let signature = Base64(signer.sign(&message).map_err(AuditError::Signing)?);
        let body =
            serde_json::to_value(Signature { signature }).map_err(|e| AuditError::Form(e.to_string()))?;
        let Value::Object(body) = body else { return Err(AuditError::Form("no object".into())) };
        self.add(Record { seq: self.next, prev: self.head(), at, kind: SIGNATURE.to_owned(), body })
    }

    fn add(&mut self, record: Record) -> Result<String, AuditError> {
        let mut line = serde_json::to_string(&record).map_err(|e| AuditError::Form(e.to_string()))?;
        if line.len() >= MAX_LINE {
            return Err(AuditError::TooLong(line.len()));
        }
        self.advance(&record, line.as_bytes());
        line.push('\n');
        Ok(line)
    }

    /// Reads the next line, without its line feed.
    ///
    /// # Errors
    /// [`Broken`]; nothing that comes after it can be trusted, and the chain is as it was.
    pub fn follow(&mut self, line: &[u8]) -> Result<Record, Broken> {
        if line.len() >= MAX_LINE {
            return Err(Broken::TooLong);
        }
        let record: Record = serde_json::from_slice(line).map_err(|e| Broken::Form(e.to_string()))?;
        if record.seq != self.next {
            return Err(Broken::Sequence { found: record.seq, expected: self.next });
        }
        if record.prev.0 != self.head {
            return Err(Broken::Link);
        }
        if record.at < self.at {
            return Err(Broken::Time);
        }
        // Members said twice, in another order, or in another spelling would let two readers see two things.
        if serde_json::to_vec(&record).ok().as_deref() != Some(line) {
            return Err(Broken::Spelling);
        }
        self.advance(&record, line);
        Ok(record)
    }

    fn advance(&mut self, record: &Record, line: &[u8]) {
        self.next += 1;
        self.head = record_hash(line).0;
        self.at = record.at;
    }
}

/// The hash that the record after it names `line` by; without its line feed.
#[must_use]
pub fn record_hash(line: &[u8]) -> Hex {
    let mut hasher = blake3::Hasher::new();
    hasher.update(RECORD);
    hasher.update(line);
    Hex(*hasher.finalize().as_bytes())
}

/// What a signature is over: its own place, the hash of the line before it, and its own time.
#[must_use]
pub fn signed_bytes(seq: u64, prev: &Hex, at: u64) -> Vec<u8> {
    [SIGNED, &seq.to_be_bytes(), &prev.0, &at.to_be_bytes()].concat()
}

#[cfg(test)]
#[path = "chain/tests.rs"]
mod tests;

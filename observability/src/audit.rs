//! The audit log: an append-only chain of records, signed at intervals.
//!
//! A log is lines of JSON, one record a line, written once and never changed. Each names the BLAKE3 hash of the line before
//! it, so a record stands for everything before it; a signature, which is a record too, is over the chain up to itself. This
//! module is the pure part: [`Chain`] makes and follows lines, [`Scribe`] decides when a signature is due. Keys are behind
//! [`Signer`]; files, certificates and what the records mean are others' business.
//!
//! Promises, cited by number in the tests:
//!
//! 1. A line that was changed, dropped, put elsewhere or added is found by [`Chain::follow`], at the latest at the line after
//!    it; the head of the chain, or a signature over it, covers the last one.
//! 2. A line has one spelling: what follows the chain is byte for byte what a writer would have written.
//! 3. No line is longer than [`MAX_LINE`], neither written nor read.
//! 4. No record stays without a signature for longer than [`SIGN_AFTER_MS`], nor more than [`SIGN_EVERY`] of them.
//! 5. Times never run backwards.

mod bytes;
mod chain;
mod scribe;

pub use bytes::{Base64, Hex};
pub use chain::{
    AuditError, Broken, Chain, MAX_LINE, Record, SIGNATURE, Signature, record_hash, signed_bytes,
};
pub use scribe::{SIGN_AFTER_MS, SIGN_EVERY, Scribe};

/// Signs the chain.
pub trait Signer: Send {
    /// A signature over `message`.
    ///
    /// # Errors
    /// The text says why there is none.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String>;
}

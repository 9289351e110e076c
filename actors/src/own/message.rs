//! What actors of one's own say: types with a kind on the wire and a limit.

use serde::Serialize;
use serde::de::DeserializeOwned;
use testudo_transport::Class;

/// The first kind that a message of one's own may have.
pub const FIRST_KIND: u8 = 128;
/// The last one.
pub const LAST_KIND: u8 = 190;
/// An answer's kind is its question's and this.
pub(super) const TO_ANSWER: u8 = 64;
/// The most bytes that a message or an answer may be given.
pub const MOST_BYTES: u32 = 1 << 20;

/// A message, encoded by postcard. Both ends are built from the same type: one that has changed takes another kind.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// Its kind on the wire, [`FIRST_KIND`] to [`LAST_KIND`]; no other message of the program has it.
    const KIND: u8;
    /// Its name, for logs and errors.
    const NAME: &'static str;
    /// Bytes of it, encoded, at most; up to [`MOST_BYTES`].
    const MOST: u32 = 1 << 10;
    /// The lane that it travels in: [`Class::Control`] is for what is small and must not wait behind tensors.
    const CLASS: Class = Class::Data;
    /// What it is answered with, if it is asked; what each item of a stream is, if it opens one. `()` for what is only told.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
    /// Bytes of an answer, encoded, at most; up to [`MOST_BYTES`].
    const MOST_ANSWER: u32 = 1 << 10;
}

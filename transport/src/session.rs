//! The session: what makes bytes on a stream into messages from a peer. Pure state machines, without I/O,
//! clock or randomness; the shell feeds them bytes and carries out what they say.
//!
//! One message on the wire, little-endian:
//!
//! ```text
//! prelude  version u8 | kind u8 | flags u16 | header length u32 | payload length u64      16 bytes
//! header   postcard(Envelope), then the kind's own fields
//! payload  raw bytes
//! mac      BLAKE3 keyed by the stream's key, of
//!          sequence u64 | prelude | header | BLAKE3(payload)                              32 bytes
//! ```
//!
//! Invariants:
//!
//! 1. [`Opener`] yields a message only if its MAC verifies under the key of this connection, direction and
//!    stream, and the next sequence number: nothing replayed, reordered, dropped, reflected or moved to
//!    another stream or connection is ever yielded.
//! 2. Nothing is allocated for a message before version, flags, kind, roles, lengths and credit are checked;
//!    after that, buffers grow with the bytes that arrive (at most to four times as much).
//! 3. After the first refusal an [`Opener`] refuses everything, and says the same.
//! 4. A class's outstanding bytes and messages never exceed what was granted: the sender waits, and the
//!    receiver takes an overrun for a fault.
//!
//! The payload enters the MAC by its hash, so it is hashed once and that hash also serves duplicate
//! detection, signatures and the audit log.

mod credit;
mod gate;
mod keys;
mod open;
mod pace;
mod prelude;
mod renewal;
mod seal;

pub(crate) use credit::largest_message;
pub use credit::{Charge, Grant, Grants, Inbound, Outbound, Overrun, Take, Turn};
pub use gate::{Gate, Stream};
pub use keys::{
    ConnectionSecret, Direction, EXPORTER_LABEL, RENEWAL_DOMAIN, STREAM_KEY_DOMAIN, StreamKey,
    exporter_context,
};
pub use open::Opener;
pub use pace::Pace;
pub use prelude::{MAC_LEN, PRELUDE_LEN, Prelude, PreludeError, VERSION, frame_len};
pub use renewal::{RENEWAL_KIND, RENEWAL_MAX_HEADER, Renewed};
pub use seal::{EMPTY_PAYLOAD_HASH, Sealer};

/// The kind of the transport's own messages, which carry credit.
pub const CREDIT_KIND: u8 = 0;

/// Most bytes of header on a credit message: an envelope and four numbers, with room to spare.
pub const CREDIT_MAX_HEADER: u32 = 1024;

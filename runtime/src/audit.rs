//! The audit log of a run: `audit.log` in its directory.
//!
//! The scheduler's process writes it ([`writer`]), with a key that the job's CA certified for this and nothing else; anybody
//! reads and checks it ([`verify`](mod@verify)). The chain itself is `testudo_observability::audit`, what the records say
//! `testudo_actors::audit`, and `docs/audit.md` tells people all of it.
//!
//! Promises, cited by number in the tests:
//!
//! 1. A record that was changed, dropped, moved or added, and a log that was cut, is found by [`verify()`]: by the chain, by a
//!    signature, or because the log does not come to its end. Cut at a point where it once was whole, it is found by who knows
//!    a later head: `--expect-head`, or `summary.json`.
//! 2. A resumed run goes on with the same chain. Its new CA and its new key stand in the chain's first record after that.
//! 3. A log that is damaged is not gone on with.
//! 4. One process at a time writes a log. After the run, a command that deletes goes on with it under the same key; what was
//!    printed of the run's end stays true: its head is in the log still.
//! 5. What the log says agrees with what lies beside it: signed job, summary, checkpoints.

mod compare;
mod found;
mod lines;
pub mod verify;
pub mod writer;

use std::path::PathBuf;

pub use verify::{Options, Verified, read, verify};
pub use writer::{AuditHandle, AuditLog, Begun, go_on};

/// What is wrong with an audit log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditLogError {
    /// The operating system refused.
    #[error("{}: {what}", path.display())]
    File {
        /// The log.
        path: PathBuf,
        /// What could not be done, and why.
        what: String,
    },
    /// A record is not what was written.
    #[error("{}, line {line}: {what}", path.display())]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// The log is whole as far as it goes, and does not go to its end.
    #[error("{}: {what}", path.display())]
    Incomplete {
        /// The log.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// What lies beside the log is not what it says.
    #[error("{}: {what}", path.display())]
    Differs {
        /// The file beside it.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The key at hand is not the log's.
    #[error("{}: {what}", path.display())]
    Key {
        /// The log.
        path: PathBuf,
        /// Why it is not.
        what: String,
    },
    /// A record cannot be written.
    #[error(transparent)]
    Record(#[from] testudo_observability::audit::AuditError),
}

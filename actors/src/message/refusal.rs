//! Why a server does not take a push or answer a pull: the sender is told, in a fixed set of reasons.

use serde::{Deserialize, Serialize};

/// Why a push is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PushRefusal {
    /// No parameters yet.
    #[error("the server has not been told of the job's membership yet")]
    NotInitialised,
    /// No such slice here.
    #[error("this server keeps no such slice")]
    UnknownSlice,
    /// A codec that the job does not use.
    #[error("codec {0} is not the job's")]
    UnknownCodec(u8),
    /// The payload's length is not the slice's.
    #[error("the slice takes {expected} bytes, {found} came")]
    WrongLength {
        /// Bytes the slice takes.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Not a node of the reduction tree, or not this worker's in this epoch and step.
    #[error("the worker holds no lease on these shards in the current membership epoch")]
    NoLease,
    /// The round is over and gone.
    #[error("the slice is at version {version} already")]
    StepGone {
        /// The slice's version.
        version: u64,
    },
    /// The slice has not got there.
    #[error("the slice is at version {version} still")]
    StepAhead {
        /// The slice's version.
        version: u64,
    },
    /// NaN or infinity.
    #[error(
        "element {element} of the slice is not finite: training has diverged (a lower learning rate may help)"
    )]
    NotFinite {
        /// The first such element, counted within the slice.
        element: u64,
    },
    /// A second, different value for the same place.
    #[error("another value was accepted for these shards: equal hardware must compute equal gradients")]
    Conflict,
    /// The node covers shards of which some are accepted.
    #[error("some of these shards have contributed already")]
    Overlap,
    /// Bytes that no encoder of the job's codec writes.
    #[error("the payload is no encoding of the slice in the job's codec")]
    Malformed,
}

/// Why a pull is not answered with a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PullRefusal {
    /// No parameters yet.
    #[error("the server has not initialised its parameters yet")]
    NotInitialised,
    /// No such slice here.
    #[error("this server keeps no such slice")]
    UnknownSlice,
    /// Too old.
    #[error("that version is gone; the slice is at version {version}")]
    Gone {
        /// The slice's version.
        version: u64,
    },
    /// More than one step ahead.
    #[error("that version is not possible yet; the slice is at version {version}")]
    NotYetPossible {
        /// The slice's version.
        version: u64,
    },
    /// More pulls wait at this server than it holds for one worker.
    #[error("too many pulls of this worker wait")]
    TooManyWaiting,
}

//! What nodes report, inside several messages.

use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::tree::Node;

/// A head of the audit log: a record, and its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadName {
    /// The record's place.
    pub record: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// What has become of a node's part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartOutcome {
    /// It is stored. Where follows from the step, the node's role and its index.
    Written {
        /// Its size as stored.
        bytes: u64,
        /// BLAKE3 of its bytes as stored.
        blake3: [u8; 32],
        /// Slices in it; of a worker's, logical shards.
        slices: u32,
    },
    /// The one before was still being written when it fell due.
    Skipped,
    /// It could not be stored; why, for the operator.
    Failed(String),
}

/// The loss of one tree node in one step: sums, folded in the tree's order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeLoss {
    /// The node.
    pub node: Node,
    /// Sum of its examples' losses, over all their targets.
    pub loss_sum: f64,
    /// How many targets were classified right.
    pub correct: u64,
    /// Examples counted; 0 when a step was found complete after its worker died before it could report.
    pub examples: u64,
}

/// Where a worker's step went, in microseconds, and when: moments are counted back from when this is said, and that is by the worker's own clock,
/// which begins at any time: from the delays of its words, the scheduler knows how it compares to its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Forward and backward passes.
    pub compute_us: u64,
    /// From the end of the backward pass until every push was acknowledged.
    pub send_us: u64,
    /// Waiting for the step's parameters before it began.
    pub wait_us: u64,
    /// How long ago all of the step's parameters were there.
    pub ready_ago_us: u64,
    /// How long ago its computing began.
    pub began_ago_us: u64,
    /// When this is said.
    pub said_at_us: u64,
}

/// When a server worked for a step that it has completed, in microseconds, counted back from when this is said, as in [`StepTimes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedStep {
    /// The step, from 0.
    pub step: u64,
    /// How long ago the first contribution to it came.
    pub first_ago_us: u64,
    /// How long ago the last one came.
    pub last_ago_us: u64,
    /// How long ago all of the server's slices were updated, and who waited for them was answered.
    pub done_ago_us: u64,
    /// When this is said, by the server's own clock.
    pub said_at_us: u64,
}

/// How what a server keeps of one tensor is spread at one version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorHistograms {
    /// The parameter, in the model's order.
    pub parameter: u32,
    /// Of the gradient that the last update was given, over the number of targets; `None` where there is no gradient.
    pub gradient: Option<Histogram>,
    /// Of the values.
    pub values: Histogram,
}

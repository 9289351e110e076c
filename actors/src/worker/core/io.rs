//! What the worker's core is told, what it wants done, and why it cannot go on.

use testudo_kernels::{Codec, Distortion};

use crate::message::{
    Evaluate, EvaluationResult, Export, Heartbeat, Membership, NodeDone, NodeLoss, Pull, PullRefusal, Push,
    PushRefusal, ServerMember,
};
use crate::placement::SliceId;
use crate::tree::Node;

/// What happened. `V` is a slice's values.
#[derive(Debug)]
pub enum Input<V> {
    /// The scheduler named a membership epoch.
    Membership(Membership),
    /// The leases hold for more steps.
    Extended {
        /// Of this epoch.
        epoch: u64,
        /// Steps below this one may be begun.
        until: u64,
    },
    /// Every server is connected.
    Connected,
    /// A version of a slice arrived.
    Slice {
        /// The slice.
        slice: SliceId,
        /// The version.
        version: u64,
        /// The wire codec's id.
        codec: u8,
        /// The values.
        values: V,
        /// The payload's length in bytes.
        bytes: u64,
    },
    /// A server refused a pull.
    PullRefused {
        /// The slice.
        slice: SliceId,
        /// The version asked for.
        version: u64,
        /// Why.
        reason: PullRefusal,
    },
    /// The arithmetic has one slice of a node's gradient.
    Gradient {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The slice.
        slice: SliceId,
        /// The values.
        values: V,
    },
    /// The arithmetic has finished a node.
    Computed {
        /// The step.
        step: u64,
        /// The node's loss.
        loss: NodeLoss,
        /// Microseconds it took.
        compute_us: u64,
        /// What the push codec lost of it.
        pushed: Distortion,
    },
    /// A server stored a push.
    Accepted {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The slice.
        slice: SliceId,
    },
    /// A server refused a push.
    Refused {
        /// The step.
        step: u64,
        /// The node.
        node: Node,
        /// The slice.
        slice: SliceId,
        /// Why.
        reason: PushRefusal,
    },
    /// The scheduler wants part of the test set evaluated.
    Evaluate(Evaluate),
    /// The arithmetic has evaluated it.
    Evaluated(EvaluationResult),
    /// The scheduler wants the final model.
    Export(Export),
    /// A timeout that [`WorkerCore::poll_timeout`](super::WorkerCore::poll_timeout) asked for may have passed.
    Tick,
}

/// What must be done.
#[derive(Debug, PartialEq)]
pub enum Effect<V> {
    /// Dial these servers, then say [`Input::Connected`].
    Connect(Vec<ServerMember>),
    /// Send a push to a server.
    Push {
        /// The server.
        server: u32,
        /// The message.
        push: Push,
        /// The values.
        values: V,
    },
    /// Send a pull to a server.
    Pull {
        /// The server.
        server: u32,
        /// The message.
        pull: Pull,
    },
    /// Put an arrived slice into the next version.
    Install {
        /// The slice.
        slice: SliceId,
        /// What its values are encoded in.
        codec: Codec,
        /// The values.
        values: V,
    },
    /// Keep a slice of the adopted version's exact parameters, which servers keep, for evaluating and exporting.
    InstallExact {
        /// The slice.
        slice: SliceId,
        /// The values, as `f32`.
        values: V,
    },
    /// The next version is complete: compute with it from now on.
    Adopt {
        /// Its number.
        version: u64,
    },
    /// Compute gradients of these nodes with the adopted parameters.
    Compute {
        /// The step.
        step: u64,
        /// The nodes.
        nodes: Vec<Node>,
    },
    /// Evaluate part of the test set with the adopted parameters, exact if that is how they are there.
    Evaluate(Evaluate),
    /// Hash the same parameters, and write them if asked.
    Export(Export),
    /// Say that a lost worker contributed something else than this one computes in its place.
    Differs {
        /// The server that has it.
        server: String,
        /// The parameter's name.
        parameter: String,
        /// The slice.
        slice: SliceId,
        /// The step.
        step: u64,
        /// The node.
        node: Node,
    },
    /// Tell the scheduler that nodes are done; the shell fills the traffic in.
    Report(NodeDone),
    /// Tell the scheduler the evaluation's result.
    Result(EvaluationResult),
    /// Tell the scheduler that this worker lives.
    Heartbeat(Heartbeat),
}

/// Why a worker cannot go on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkerError {
    /// A server refused a push that must be possible.
    #[error("{server} refused the push of {parameter} (slice {}) in step {step}: {reason}", slice.index)]
    Refused {
        /// The server.
        server: String,
        /// The parameter's name.
        parameter: String,
        /// The slice.
        slice: SliceId,
        /// The step.
        step: u64,
        /// Why.
        reason: PushRefusal,
    },
    /// A server refused a pull that must be possible.
    #[error("{server} refused version {version} of {parameter} (slice {}): {reason}", slice.index)]
    PullRefused {
        /// The server.
        server: String,
        /// The parameter's name.
        parameter: String,
        /// The slice.
        slice: SliceId,
        /// The version.
        version: u64,
        /// Why.
        reason: PullRefusal,
    },
    /// A server answered with what was not asked for.
    #[error("{server} sent {what} of {slice}, which was not asked for")]
    Unasked {
        /// The server.
        server: String,
        /// What it sent.
        what: String,
        /// Of which slice.
        slice: SliceId,
    },
}

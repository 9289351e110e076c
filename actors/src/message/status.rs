//! How a run and its nodes are doing, and how a run ended.

use serde::{Deserialize, Serialize};

use super::Member;
use crate::placement::SliceId;
use crate::tree::Node;

/// What a node waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The slice.
    pub slice: SliceId,
    /// The step whose contributions are missing, or whose result is awaited.
    pub step: u64,
    /// At a server: a tree node that has not contributed.
    pub missing: Option<Node>,
}

/// What a node holds for its peers, and what its door has seen since it is up. The reasons are a fixed set: no peer can
/// add one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes of messages that arrived and are not done with.
    pub held_bytes: u64,
    /// Bytes that peers may occupy, by the credit they were granted.
    pub promised_bytes: u64,
    /// Bytes that may be promised.
    pub budget_bytes: u64,
    /// Connections open.
    pub connections: u32,
    /// Pushes without an answer: what a worker has under way, and what a server has still to add up.
    pub pushes: u32,
    /// Pulls without an answer: what a worker waits for, and what a server has yet to have the next version of.
    pub pulls: u32,
    /// What was refused.
    pub refused: Refused,
    /// Microseconds that a server has spent on adding up and updating since it is up; 0 of others.
    pub busy_us: u64,
}

/// What a node refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Datagrams that no node of the job can have sent: other networks', other protocols'.
    pub datagrams: u64,
    /// First packets beyond what one address, or all, may send.
    pub knocks: u64,
    /// Handshakes beyond what one address, or all, may begin.
    pub handshakes: u64,
    /// Handshakes that failed: certificate, identity, protocol, deadline.
    pub strangers: u64,
    /// Connections beyond a limit in number or in memory.
    pub full: u64,
    /// Connections that were closed because their peer broke the protocol.
    pub faults: u64,
    /// Newcomers whose identity was shut out for what it did before.
    pub shut_out: u64,
}

impl Refused {
    /// Every reason with its count, in a fixed order.
    #[must_use]
    pub fn reasons(&self) -> [(&'static str, u64); 7] {
        [
            ("datagrams", self.datagrams),
            ("knocks", self.knocks),
            ("handshakes", self.handshakes),
            ("strangers", self.strangers),
            ("full", self.full),
            ("faults", self.faults),
            ("shut out", self.shut_out),
        ]
    }
}

/// One node, as the scheduler knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which.
    pub member: Member,
    /// Counts the times that this identity has joined, from 1.
    pub incarnation: u64,
    /// Milliseconds since it was last heard.
    pub heard_ms: u64,
    /// The step a worker is in, or the lowest version among a server's slices.
    pub step: u64,
    /// Logical shards that it holds leases on.
    pub shards: u32,
    /// What it waits for.
    pub waiting: Option<String>,
    /// What it says of its load.
    pub load: Load,
}

/// When a complete step was worked on, node by node. Moments are microseconds since the scheduler opened the step, which is when it let
/// workers begin it, by the scheduler's clock. The quickest of a node's last words says how its clock compares: what even that one took on
/// its way is part of every moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// The step, from 0.
    pub step: u64,
    /// Microseconds since the step before was complete.
    pub duration_us: u64,
    /// What each worker that took part reported, in the order of their indices.
    pub workers: Vec<WorkerSpan>,
    /// What servers told of this very step, in the order of their indices.
    pub servers: Vec<ServerSpan>,
}

/// A worker's part of a step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpan {
    /// The worker's index.
    pub worker: u32,
    /// How long it waited for the step's parameters, until `ready_at_us`.
    pub wait_us: u64,
    /// How long forward and backward passes took, from `began_at_us` on.
    pub compute_us: u64,
    /// How long it took from the end of the backward pass until `ended_at_us`.
    pub send_us: u64,
    /// When all of the step's parameters were there.
    pub ready_at_us: i64,
    /// When its computing began.
    pub began_at_us: i64,
    /// When its last push was acknowledged.
    pub ended_at_us: i64,
}

/// A server's part of a step: moments, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpan {
    /// The server's index.
    pub server: u32,
    /// When the first contribution came.
    pub first_at_us: i64,
    /// When the last contribution came.
    pub last_at_us: i64,
    /// When all of its slices were updated, and who waited for them was answered.
    pub done_at_us: i64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nodes are joining.
    Forming,
    /// Steps are being trained.
    Training,
    /// The last version is evaluated and exported.
    Finishing,
    /// It is over.
    Over,
}

/// What the evaluation of a version found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The version: steps taken.
    pub step: u64,
    /// Mean loss over the test set's targets.
    pub loss: f64,
    /// Share of the test set's targets classified right.
    pub accuracy: f64,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// In order.
    Finished(Finished),
    /// It could not go on; what, where, and what to do.
    Failed(String),
    /// It could not go on without a server that was lost, or that no worker that was left could reach: from a checkpoint it can, as it
    /// could not after a failure of its own, nor with a server that was cut off for cause, which is one.
    ServerLost(String),
}

/// The figures of a run that ended in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Steps trained.
    pub steps: u64,
    /// Whether an operator, or an evaluation, stopped it before its last step.
    pub stopped_early: bool,
    /// Mean training loss of the last step, over its targets.
    pub final_loss: f64,
    /// Mean loss over the test set's targets.
    pub test_loss: f64,
    /// Share of the test set's targets classified right.
    pub test_accuracy: f64,
    /// BLAKE3 of the final parameters.
    pub params_blake3: [u8; 32],
    /// Training examples seen.
    pub samples: u64,
    /// Seconds from the first step's begin to the last step's end.
    pub training_seconds: f64,
    /// Message bytes that workers sent to servers.
    pub bytes_sent: u64,
    /// Message bytes that workers received from servers.
    pub bytes_received: u64,
    /// Workers that died on the way.
    pub workers_lost: u32,
    /// Logical shards whose residuals of error feedback died with them: the run's bits are then its own.
    pub residuals_lost: u32,
    /// What was lost of gradients on the way, relative to them, over all steps; 0 where the codec is lossless.
    pub push_error: f64,
    /// What workers do not know of the final parameters, relative to them; 0 where the codec is lossless.
    pub pull_error: f64,
    /// The step of the newest whole checkpoint, if there is one.
    pub checkpoint: Option<u64>,
}

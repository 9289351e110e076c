//! What actors say to each other: one struct for each message kind, encoded by postcard into the header's body.
//!
//! Tensor payloads travel beside the header as raw little-endian values. Kinds and their rows in the role table are in
//! [`crate::policy`].

mod member;
mod refusal;
mod report;
mod status;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use testudo_kernels::Distortion;
use testudo_transport::WireError;

pub use member::{Member, MemberRole, ServerMember, WorkerMember};
pub use refusal::{PullRefusal, PushRefusal};
pub use report::{HeadName, NodeLoss, PartOutcome, ServedStep, StepTimes, TensorHistograms};
pub use status::{
    Evaluated, Finished, Load, NodeStatus, Outcome, Phase, Refused, ServerSpan, Timeline, Waiting, WorkerSpan,
};

use crate::audit::Refusal;
use crate::incarnation::Secret;
use crate::job::SignedJob;
use crate::lease::Lease;
use crate::params_hash::Piece;
use crate::placement::SliceId;
use crate::tree::Node;
use crate::witness::Key;

/// A message body with its kind on the wire.
pub trait Body: Serialize + DeserializeOwned {
    /// The kind byte of the prelude.
    const KIND: u8;

    /// The body's bytes.
    fn encode(&self) -> Vec<u8> {
        testudo_transport::encode(self)
    }

    /// Reads a body; trailing bytes and non-canonical encodings are refused.
    ///
    /// # Errors
    /// [`WireError`]: the sender is at fault.
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        testudo_transport::decode_canonical(bytes)
    }
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $kind:literal $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
        impl Body for $name { const KIND: u8 = $kind; })*

        /// Reads a body of whatever kind and writes it again: the bytes that came, if they are its canonical form.
        /// `None` for a kind that no message has. For tests of what decodes.
        #[must_use]
        pub fn reencode(kind: u8, bytes: &[u8]) -> Option<Result<Vec<u8>, WireError>> {
            match kind {
                $($kind => Some($name::decode(bytes).map(|body| body.encode())),)*
                _ => None,
            }
        }
    };
}

bodies! {
    /// A node asks the scheduler to take part.
    1 Join {
        /// The release of its program; all nodes run the same.
        release: String,
        /// Its arithmetic fingerprint.
        fingerprint: String,
        /// Where a server can be dialled, `host:port`; `None` from a worker.
        address: Option<String>,
        /// What only this process can show the secret of: see [`crate::incarnation`].
        commitment: [u8; 32],
    }
    /// The scheduler admits a node.
    2 Welcome {
        /// Counts the times that this identity has joined, from 1.
        incarnation: u64,
        /// The operator's signed job.
        job: SignedJob,
    }
    /// The scheduler turns a node away; the reason is for its operator.
    3 JoinRefused {
        /// What is wrong, and what to do.
        reason: String,
        /// Whether it passes by itself: the same node, started again, may be admitted.
        transient: bool,
    }
    /// Who takes part, and who computes what, from now on.
    4 Membership {
        /// Counts changes of membership, from 1.
        epoch: u64,
        /// The servers.
        servers: Vec<ServerMember>,
        /// The workers, each with the one incarnation that counts.
        workers: Vec<WorkerMember>,
        /// The live leases.
        leases: Vec<Lease>,
        /// Steps below this one may be begun.
        until: u64,
    }
    /// A server has installed a membership epoch and holds initialised parameters.
    5 Ready {
        /// The epoch.
        epoch: u64,
        /// The version that each of its slices has, or has gone beyond by one; the greatest number if it keeps no slice.
        version: u64,
    }
    /// The leases of an epoch hold for more steps.
    6 LeaseExtended {
        /// The epoch.
        epoch: u64,
        /// Steps below this one may be begun.
        until: u64,
    }
    /// A worker's contributions to a step are stored by every server.
    7 NodeDone {
        /// The step, from 0.
        step: u64,
        /// Its nodes and their loss.
        nodes: Vec<NodeLoss>,
        /// Where the time went.
        times: StepTimes,
        /// Message bytes this worker has sent to servers since its last report.
        bytes_sent: u64,
        /// Message bytes this worker has received from servers since its last report.
        bytes_received: u64,
        /// What its push codec lost of these nodes' gradients, as sampled.
        pushed: Distortion,
    }
    /// A node lives, and says what it waits for.
    8 Heartbeat {
        /// The step a worker is in, or the lowest version among a server's slices.
        step: u64,
        /// What keeps it from going on, if anything does.
        waiting: Option<Waiting>,
        /// What it holds for its peers, and what it turned away.
        load: Load,
        /// Of a server: when it worked for one of the steps that it completed since its last heartbeat.
        served: Option<ServedStep>,
    }
    /// The scheduler asks a worker to evaluate part of the test set.
    9 Evaluate {
        /// With parameters of this version.
        version: u64,
        /// First test example.
        first: u64,
        /// Number of test examples.
        examples: u64,
    }
    /// The result of an [`Evaluate`].
    10 EvaluationResult {
        /// The version used.
        version: u64,
        /// First test example.
        first: u64,
        /// Number of test examples.
        examples: u64,
        /// Sum of their losses, over all their targets.
        loss_sum: f64,
        /// How many targets were classified right.
        correct: u64,
    }
    /// The scheduler asks a worker for the final model.
    11 Export {
        /// Of this version.
        version: u64,
        /// Whether it is written, or its hash alone computed.
        write: bool,
    }
    /// The final model is stored.
    12 Exported {
        /// Its version.
        version: u64,
        /// BLAKE3 of the parameters; see [`crate::checkpoint::params_blake3`].
        params_blake3: [u8; 32],
        /// Bytes written; 0 if none were to be.
        bytes: u64,
        /// How what this worker computed with differs from the parameters.
        pulled: Distortion,
    }
    /// The run is over: leave in order.
    13 Shutdown {
        /// Why; for the log.
        reason: String,
        /// Whether the run has lost a server, so that the job may go on from a checkpoint, with this node if it is started again.
        may_go_on: bool,
    }
    /// A node cannot go on; for the operator.
    14 Failure {
        /// What, where, and what to do.
        reason: String,
    }
    /// A worker cannot go on because it cannot reach a server, or cannot any more.
    55 Unreachable {
        /// Its index.
        server: u32,
        /// Why; for the operator.
        reason: String,
    }
    /// The scheduler wants a checkpoint of the version that every slice is at.
    15 CheckpointOrder {
        /// The version.
        version: u64,
    }
    /// What has become of a server's part of a checkpoint.
    16 CheckpointPart {
        /// The checkpoint's version.
        version: u64,
        /// Whether it is stored.
        outcome: PartOutcome,
    }
    /// The scheduler wants a worker to write its part of a checkpoint of the version that every slice is at.
    17 ResidualOrder {
        /// The version.
        version: u64,
        /// The logical shards whose residuals it is to hold.
        shards: Vec<u32>,
    }
    /// What has become of a worker's part of a checkpoint.
    18 ResidualPart {
        /// The checkpoint's version.
        version: u64,
        /// The logical shards whose residuals it holds.
        shards: Vec<u32>,
        /// Whether it is stored.
        outcome: PartOutcome,
    }
    /// A worker's gradient sum for one slice of one tree node; the values are the payload.
    20 Push {
        /// The epoch of the worker's leases.
        epoch: u64,
        /// The step, from 0: the version of the parameters that the gradient was computed with.
        step: u64,
        /// The slice.
        slice: SliceId,
        /// The tree node that the values sum over.
        node: Node,
        /// The wire codec's id.
        codec: u8,
    }
    /// The values of a push are stored.
    21 PushAccepted {
        /// They had been there already.
        duplicate: bool,
    }
    /// The values of a push are not taken.
    22 PushRefused {
        /// Why.
        reason: PushRefusal,
    }
    /// A worker asks for one version of a slice, and waits if it is the next one.
    23 Pull {
        /// The slice.
        slice: SliceId,
        /// The version: updates applied since initialisation.
        version: u64,
        /// Whether it wants every bit, to evaluate and export, whatever codec the job trains with.
        exact: bool,
    }
    /// A version of a slice; the values are the payload.
    24 SliceVersion {
        /// The slice.
        slice: SliceId,
        /// The version.
        version: u64,
        /// The wire codec's id.
        codec: u8,
    }
    /// A version that cannot be had.
    25 PullRefused {
        /// Why.
        reason: PullRefusal,
    }
    /// An operator asks how the run is doing; the scheduler reports on this stream until it ends.
    30 Status {
        /// Milliseconds between reports.
        every_ms: u32,
        /// Whether reports list every node.
        nodes: bool,
    }
    /// How the run is doing.
    31 StatusReport {
        /// Where the run is.
        phase: Phase,
        /// Steps completed.
        steps_done: u64,
        /// Steps that will be run.
        steps: u64,
        /// The epoch of the last completed step, from 0.
        epoch: u64,
        /// Epochs planned.
        epochs: u64,
        /// Mean loss of the last completed step.
        loss: Option<f64>,
        /// What the last evaluation found.
        evaluated: Option<Evaluated>,
        /// Training examples a second, lately.
        samples_per_second: f64,
        /// What the run waits for, if it has stalled.
        stalled: Option<String>,
        /// Whether no step is begun until an operator resumes.
        paused: bool,
        /// Whether an operator has stopped the run.
        stopping: bool,
        /// The membership epoch.
        membership_epoch: u64,
        /// Steps below this one may be begun.
        until: u64,
        /// Workers that were lost on the way.
        workers_lost: u32,
        /// Workers that the operator wants.
        workers_wanted: u32,
        /// Nodes that were turned away when they asked to join.
        joins_refused: u64,
        /// Operators that are connected.
        operators: u32,
        /// The scheduler's own load.
        load: Load,
        /// Every node that has joined and lives, if that was asked for.
        nodes: Vec<NodeStatus>,
        /// Where the time of the last complete step went, if nodes are listed.
        timeline: Option<Timeline>,
        /// The outcome, once there is one.
        outcome: Option<Outcome>,
    }
    /// An operator ends the run in order, with a final model. Answered.
    32 Stop {}
    /// An operator knows that a node's process has ended. Answered.
    33 Ended {
        /// `server` or `worker`.
        role: MemberRole,
        /// Its index.
        index: u32,
        /// How it ended.
        exit: String,
    }
    /// An operator wants no step to be begun until it resumes; those under way end. Answered.
    34 Pause {}
    /// An operator lets steps begin again. Answered.
    35 Resume {}
    /// An operator hands in the certificate authority's list of revoked certificates. Answered.
    36 Revoke {
        /// The list, in DER.
        crl: Vec<u8>,
    }
    /// The scheduler passes that list on; a node takes it only because the certificate authority signed it.
    37 Revocations {
        /// The list, in DER.
        crl: Vec<u8>,
    }
    /// What became of an operator's command, under its request number.
    38 Answer {
        /// What was done, or why nothing was; for the operator.
        result: Result<String, String>,
    }
    /// An operator wants the run to go on with that many workers. Answered.
    53 Scale {
        /// How many: those of lower index.
        workers: u32,
    }
    /// A worker shows a server that it is the process that the scheduler admitted: the first word on a connection.
    39 Hello {
        /// What its commitment was made of.
        secret: Secret,
    }
    /// A server tells what it keeps of one version, in pieces that make up the hash of all parameters.
    40 ParameterPieces {
        /// The version.
        version: u64,
        /// Pieces of some of its slices, each told once.
        pieces: Vec<Piece>,
    }
    /// A server tells how the values of its slices are spread at one version; see [`crate::histogram`].
    54 Histograms {
        /// The version.
        version: u64,
        /// Some of its tensors, each told once.
        tensors: Vec<TensorHistograms>,
    }
    /// The scheduler wants such pieces of the version that every slice is at.
    41 HashOrder {
        /// The version.
        version: u64,
    }
    /// A worker signs what it contributed to a step; see [`crate::contributions`]. Comes before the report of these nodes.
    42 Contributions {
        /// The step, from 0.
        step: u64,
        /// How many pushes.
        count: u64,
        /// BLAKE3 over them.
        digest: [u8; 32],
        /// Its signature.
        signature: Vec<u8>,
    }
    /// The scheduler shows the head of the audit log; see [`crate::countersign`].
    43 AuditHead {
        /// The head.
        head: HeadName,
    }
    /// A node has signed that head.
    44 Countersigned {
        /// The head.
        head: HeadName,
        /// The one that it signed before.
        before: Option<HeadName>,
        /// Its signature.
        signature: Vec<u8>,
    }
    /// Whom a node refused since its last report.
    45 RefusalReport {
        /// By cause and name.
        refused: Vec<Refusal>,
    }
    /// A node tells with which certificate it signs from here on, on the stream on which its signatures follow.
    46 NewCertificate {
        /// The certificate, in DER.
        certificate: Vec<u8>,
    }
    /// A server's slices have all that a step contributes to them; the inner products over them are the payload, as
    /// [`Products::to_bytes`](testudo_kernels::robust::products::Products::to_bytes) gives them.
    47 GradientProducts {
        /// The step, from 0.
        step: u64,
    }
    /// How servers combine what a step contributes: the same for all, from the products of all.
    48 GradientWeights {
        /// The step, from 0.
        step: u64,
        /// The weight of each vector: of the one gradient, or of votes by shard, and then of the aggregate before.
        weights: Vec<f64>,
        /// What the combination is multiplied by, so that its norm is clipped.
        clip: f64,
    }
    /// The scheduler tells workers what decides which values it witnesses. No server is ever told.
    50 Witnessed {
        /// The key.
        key: Key,
    }
    /// A worker tells the scheduler the witnessed values of its contribution for one tree node; they are the payload.
    51 Testimony {
        /// The step, from 0.
        step: u64,
        /// The node.
        node: Node,
    }
    /// A worker tells the scheduler the witnessed values of a version, as servers gave them to it; they are the payload.
    52 Given {
        /// The version.
        version: u64,
    }
}

#[cfg(test)]
mod tests;

//! What the scheduler's core is told, and what it wants done.

use crate::checkpoint::{Commit, Committed};
use crate::message::{
    CheckpointOrder, CheckpointPart, Evaluate, Evaluated, EvaluationResult, Export, Exported, Given,
    GradientWeights, HashOrder, Heartbeat, Join, JoinRefused, LeaseExtended, Member, Membership, NodeDone,
    Outcome, ParameterPieces, ResidualOrder, ResidualPart, Shutdown, Testimony, Witnessed,
};
use crate::scheduler::progress::StepSummary;

/// What happened. `C` is the shell's handle of a connection.
#[derive(Debug)]
pub enum Input<C> {
    /// A node asks to take part, on a connection that was authenticated as `member`.
    Join {
        /// Who.
        member: Member,
        /// Over which connection.
        connection: C,
        /// What it says of itself.
        join: Join,
    },
    /// A member's connection is gone.
    Gone {
        /// Who.
        member: Member,
        /// The connection.
        connection: C,
        /// Why, for the log.
        reason: String,
    },
    /// A server has installed an epoch.
    Ready {
        /// The server's index.
        server: u32,
        /// The epoch.
        epoch: u64,
        /// The lowest version of its slices.
        version: u64,
    },
    /// A worker's nodes are done.
    NodeDone {
        /// The worker's index.
        worker: u32,
        /// What it reports.
        done: NodeDone,
    },
    /// A member lives.
    Heartbeat {
        /// Who.
        member: Member,
        /// What it says.
        heartbeat: Heartbeat,
    },
    /// A worker has evaluated part of the test set.
    Evaluated {
        /// The worker's index.
        worker: u32,
        /// The result.
        result: EvaluationResult,
    },
    /// A worker has exported the final model.
    Exported {
        /// The worker's index.
        worker: u32,
        /// What it reports.
        exported: Exported,
    },
    /// A server says what has become of its part of a checkpoint.
    CheckpointPart {
        /// The server's index.
        server: u32,
        /// What it says.
        part: CheckpointPart,
    },
    /// A worker says what has become of its part of a checkpoint.
    ResidualPart {
        /// The worker's index.
        worker: u32,
        /// What it says.
        part: ResidualPart,
    },
    /// A server tells what it keeps of a version.
    Pieces {
        /// The server's index.
        server: u32,
        /// What it tells.
        told: ParameterPieces,
    },
    /// A server posts the inner products over its slices of what a step contributes.
    Products {
        /// The server's index.
        server: u32,
        /// The step.
        step: u64,
        /// The products, as bytes.
        bytes: Vec<u8>,
    },
    /// A commit that [`Effect::Commit`] asked for has ended.
    Committed {
        /// The checkpoint's step.
        step: u64,
        /// How; why not, for the operator.
        result: Result<Committed, String>,
    },
    /// A worker tells what is witnessed of its contribution.
    Testimony {
        /// The worker's index.
        worker: u32,
        /// To what.
        testimony: Testimony,
        /// The values.
        values: Vec<f32>,
    },
    /// A worker tells what is witnessed of a version as it was given it.
    Given {
        /// The worker's index.
        worker: u32,
        /// Which version.
        given: Given,
        /// The values.
        values: Vec<f32>,
    },
    /// A server has cut a worker off, which asked more of it than the work can need.
    Flooded {
        /// The worker's index.
        worker: u32,
        /// The server's index.
        server: u32,
    },
    /// A member cannot go on.
    Failure {
        /// Who.
        member: Member,
        /// Why.
        reason: String,
    },
    /// A worker cannot go on without a server that it cannot reach.
    Unreachable {
        /// The worker's index.
        worker: u32,
        /// The server's index.
        server: u32,
        /// Why.
        reason: String,
    },
    /// The scheduler has hung up on a member, for what it did or because its certificate was revoked.
    Expelled {
        /// Who.
        member: Member,
        /// Over which connection.
        connection: C,
        /// Why.
        reason: String,
    },
    /// An operator commands something, and gets an answer.
    Command {
        /// Over which connection.
        connection: C,
        /// The request that the answer goes to.
        request: u64,
        /// What.
        command: Command,
    },
    /// A timeout that [`SchedulerCore::poll_timeout`](super::SchedulerCore::poll_timeout) asked for may have passed.
    Tick,
}

/// What an operator commands.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Begin no step until [`Command::Resume`]; those under way end.
    Pause,
    /// Begin steps again.
    Resume,
    /// End the run in order.
    Stop,
    /// Go on with that many workers.
    Scale {
        /// How many: those of lower index.
        workers: u32,
    },
    /// A member's process has ended.
    Ended {
        /// Who.
        member: Member,
        /// How.
        exit: String,
    },
}

/// A message to a member.
#[derive(Clone, Debug, PartialEq)]
pub enum ToMember {
    /// The leases and the members.
    Membership(Membership),
    /// The leases hold for more steps.
    Extended(LeaseExtended),
    /// Evaluate part of the test set.
    Evaluate(Evaluate),
    /// Export the final model.
    Export(Export),
    /// What is witnessed: for workers alone.
    Witnessed(Witnessed),
    /// Write a checkpoint.
    Checkpoint(CheckpointOrder),
    /// Write residuals: for workers alone.
    Residuals(ResidualOrder),
    /// Combine what a step contributes, and update.
    Weights(GradientWeights),
    /// Tell what is kept of the last version.
    Hash(HashOrder),
    /// Leave.
    Shutdown(Shutdown),
}

/// What must be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect<C> {
    /// Admit a node: send it the signed job.
    Welcome {
        /// Over this connection.
        connection: C,
        /// Who.
        member: Member,
        /// How many times it has joined.
        incarnation: u64,
    },
    /// Turn a node away.
    Refuse {
        /// Over this connection.
        connection: C,
        /// Why.
        refused: JoinRefused,
    },
    /// Send a message to a member.
    Send {
        /// Over this connection.
        connection: C,
        /// Who.
        member: Member,
        /// What.
        message: ToMember,
    },
    /// Count what a worker said that cannot be, before it is lost for it.
    Fault {
        /// Who.
        member: Member,
        /// What it did.
        what: String,
    },
    /// Close the connection of a member that is no longer one.
    Disconnect {
        /// The connection.
        connection: C,
        /// Who.
        member: Member,
        /// Which of its joins that ends.
        incarnation: u64,
        /// Why.
        reason: String,
    },
    /// Tell an operator what became of its command.
    Answer {
        /// Over this connection.
        connection: C,
        /// The request.
        request: u64,
        /// What was done, or why nothing was.
        result: Result<String, String>,
    },
    /// A step is complete.
    Step(StepSummary),
    /// A version is evaluated.
    Evaluated(Evaluated),
    /// The parameters' hash at a version is known.
    Parameters {
        /// The version: steps taken.
        version: u64,
        /// The hash.
        params_blake3: [u8; 32],
    },
    /// Every part of a checkpoint is stored: make it whole, then say [`Input::Committed`].
    Commit(Commit),
    /// A checkpoint is whole.
    Checkpoint(Committed),
    /// A server is found to have been wrong: the audit log tells of it.
    Finding(Box<crate::witness::Finding>),
    /// Something an operator should read.
    Notice(String),
    /// The run is over.
    Over(Outcome),
}

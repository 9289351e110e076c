//! Why arithmetic stops.

use testudo_kernels::cuda::DeviceError;
use testudo_kernels::{AggregationError, CodecError, OptimizerError, OwnName};

use crate::placement::SliceId;

/// Why a contribution or an update could not be carried out.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MathError {
    /// NaN or infinity in a contribution.
    #[error("element {0} of the contribution is not finite")]
    NotFinite(u64),
    /// The update produced NaN or infinity.
    #[error(
        "the update of {parameter} in step {step} gives a value that is not finite ({place}): training has diverged; a lower \
         optimizer.learning_rate may help"
    )]
    Diverged {
        /// The parameter's name.
        parameter: String,
        /// The step.
        step: u64,
        /// The first such element of the parameter, and the first line of the optimizer's program on the way to it.
        place: String,
    },
    /// The optimizer refused its inputs, or is none.
    #[error("the optimizer failed: {0}")]
    Optimizer(#[from] OptimizerError),
    /// A tensor that is updated as a whole, of which this server has not every slice: a bug in the placement.
    #[error("the optimizer needs all of parameter {0}, and this server has a part")]
    Incomplete(u32),
    /// The robust rule refused the votes: a bug, since the job was checked.
    #[error("the votes could not be aggregated: {0}")]
    Aggregation(#[from] AggregationError),
    /// The job's rule is one that this program has not got.
    #[error("the rule of aggregation {0} is not built in: only a program that brings it along can take part")]
    NoRule(OwnName),
    /// The program's own rule gave no gradient that can be used.
    #[error("the rule of aggregation {rule} failed on {parameter} in step {step}: {reason}")]
    Rule {
        /// The rule.
        rule: OwnName,
        /// The parameter's name.
        parameter: String,
        /// The step.
        step: u64,
        /// What it says, or what is wrong with what it gave.
        reason: String,
    },
    /// What was restored is not what this server keeps.
    #[error("the checkpoint does not hold what this server keeps: {0}")]
    Restored(String),
    /// A value that the pull codec cannot say, or bytes that no encoder of the push codec writes.
    #[error("the codec failed: {0}")]
    Codec(#[from] CodecError),
    /// A checkpoint or a hash of a version that the slices are not at.
    #[error("the scheduler ordered a checkpoint or hash of step {0}, at which this server is not")]
    Order(u64),
    /// Weights of a step whose products this server has not posted, or that cannot be.
    #[error("the scheduler sent weights of step {0} that this server cannot use")]
    Weights(u64),
    /// The device that slices are updated on: of memory, the error names the tensor.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A slice or length that the core should have refused: a bug.
    #[error("no such slice or length: {0}")]
    Unknown(SliceId),
}

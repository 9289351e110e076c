//! Arithmetic for Testudo: shapes, random numbers, layers, models, aggregation and optimizers on slices of `f32`.
//!
//! Everything here is a function of its arguments alone: no network, no actor, no file, no clock. The crate
//! promises, and its tests hold it to:
//!
//! 1. **Bits are specified, not incidental.** Every result is defined by a written sequence of IEEE 754 operations
//!    (see [`model`], [`math`], [`optimizer`]): the same inputs give the same bits on every processor
//!    and at every SIMD width, whatever the alignment of a buffer, its slicing, or the calls made before.
//! 2. **No input panics.** Wrong lengths and labels come back as typed errors.
//! 3. **Sums, not means.** Gradients and losses are sums over examples; the one division is the optimizer's:
//!    [`Optimizer::update`].
//! 4. **The steady state allocates nothing.** A [`Model`] owns its buffers from [`ModelSpec::build`] on.
//!
//! What it leaves to others: where the data comes from, who computes which logical shard, and how slices travel.

pub mod aggregate;
pub mod codec;
pub mod cuda;
pub mod fingerprint;
mod layers;
mod linear;
pub mod losses;
pub mod math;
pub mod model;
pub mod optimizer;
pub mod precision;
pub mod random;
pub mod robust;
pub mod schedule;
pub mod shape;
mod simd;
pub mod stage;

pub use aggregate::{add, add_checked, first_non_finite};
pub use codec::{Codec, CodecError, Distortion};
pub use fingerprint::{fingerprint, instruction_set};
pub use layers::Norm;
pub use model::{
    Batch, GptSpec, Gradient, Initial, Loss, Model, ModelError, ModelSpec, ParameterSpec, Place, Update,
};
pub use optimizer::{Optimizer, OptimizerError, OptimizerSpec, Program, ProgramError};
pub use precision::Precision;
pub use random::{Philox, Purpose, permutation};
pub use robust::{
    Aggregation, AggregationError, Aggregator, OwnName, OwnNameError, OwnRule, RuleInput, VotesOnSlice,
};
pub use schedule::{Schedule, ScheduleError};
pub use shape::{DType, Shape, ShapeError};

//! Testudo's actors: one scheduler, some parameter servers, some workers.
//!
//! Each is a pure core (`core.rs`: a state machine without I/O, clock, thread or randomness) beside a thin
//! actix shell (`actor.rs`). Cores cannot tell whether they run over QUIC, over memory or in a simulator.
//!
//! Promises, cited by number in the tests:
//!
//! 1. **Who has contributed is a set** of (tree node, slice, step), never a count ([`server::ServerCore`]).
//! 2. **Sums over shards, one division at the root** ([`server::SliceMath`]).
//! 3. **An acknowledged push is stored** in its round before the acknowledgement leaves.
//! 4. **A pull gets exactly its version**, waits for the next one, and never hangs for one that is gone.
//! 5. **Same bits for any number of workers and servers**: contributions are whole nodes of one canonical
//!    [`tree::ReductionTree`].
//! 6. **A stall has a name**: node, slice and step ([`scheduler::SchedulerCore`]).
//!
//! What a gradient is belongs to `testudo-kernels`; how bytes travel belongs to `testudo-transport`; files,
//! command lines and launchers belong to `testudo`, which hands in a [`Dataset`] and a [`CheckpointSink`].

#[cfg(target_endian = "big")]
compile_error!("payloads are little-endian numbers in place; big-endian hosts are not supported yet");

pub mod active;
pub mod allowance;
pub mod audit;
pub mod checkpoint;
mod compute_thread;
pub mod contributions;
pub mod countersign;
pub mod dataset;
mod hear;
pub mod histogram;
pub mod incarnation;
pub mod job;
pub mod lease;
pub mod link;
pub mod mailbox;
pub mod message;
pub mod node;
pub mod numbers;
pub mod operator;
pub mod outbox;
pub mod own;
pub mod params_hash;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod replay;
mod revoke;
mod sampled;
pub mod scheduler;
pub mod server;
mod signer;
pub mod time;
pub mod tree;
pub mod witness;
pub mod worker;

pub use checkpoint::{CheckpointError, CheckpointSink, FinalModel, NamedTensor, ServerSetup};
pub use dataset::{Dataset, TrainAndTest};
pub use job::{
    Audit, Best, Checkpoints, Codecs, DataSpec, Determinism, EarlyStopping, Elastic, Evaluation, JobError,
    JobSpec, Resume, SignedJob,
};
pub use node::{NodeError, NodeOptions};
pub use time::Time;

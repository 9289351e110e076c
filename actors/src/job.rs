//! The signed job: what the operator decided, and the only source of truth for every node.
//!
//! `testudo run` turns the cluster file into a [`JobSpec`] and signs it with the operator's key. A node checks the
//! signature against the job's CA before it takes part; nothing that a peer says later can change the job.

mod codecs;
mod network;
mod own;
mod signed;
mod validate;

use serde::{Deserialize, Serialize};
use testudo_kernels::robust::weigh::Weighing;
use testudo_kernels::{Aggregation, ModelSpec, OptimizerSpec, Precision, Schedule};
use testudo_transport::{Role, SpiffeId};

pub use codecs::Codecs;
pub use signed::SignedJob;

use crate::tree::ReductionTree;

/// The layout of [`JobSpec`] that this build reads and writes.
pub const FORMAT: u16 = 6;

/// Bytes of a signed job at most: it travels in a message header.
pub const MAX_SIGNED_JOB: u32 = 256 << 10;

/// The most logical shards: their tree's leaf numbers and loss sums stay small everywhere.
pub const MAX_LOGICAL_SHARDS: u32 = 1 << 16;

/// Whether nodes whose arithmetic differs may train together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Determinism {
    /// Every node must have the same arithmetic fingerprint; the same job then gives the same bits.
    Strict,
    /// Mixed hardware is admitted; bits may differ between runs.
    Relaxed,
}

/// What the job trains and tests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSpec {
    /// Training examples.
    pub train_examples: u64,
    /// Test examples.
    pub test_examples: u64,
    /// BLAKE3 over the content of the training set, then of the test set, as the data set defines it.
    pub blake3: [u8; 32],
}

/// How workers may come and go while the job is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elastic {
    /// Workers beyond those that the job begins with which may join it while it is under way.
    pub extra_workers: u32,
    /// Milliseconds that a run waits for a worker to come back when none is left; 0: it fails at once.
    pub return_ms: u64,
}

/// When training state is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// A checkpoint every so many steps; 0 for none.
    pub every_steps: u64,
    /// A last one when the run is stopped or has taken its last step.
    pub at_end: bool,
}

impl Checkpoints {
    /// Whether there are any.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.every_steps > 0 || self.at_end
    }
}

/// What the audit log is told of the training itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The hash of the parameters after every so many steps, and of the first and the last; 0 for none at all.
    pub hash_every: u64,
    /// The log's head is counter-signed by every server and worker after every so many steps; 0 for never.
    pub countersign_every: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Audit { hash_every: 1, countersign_every: 100 }
    }
}

/// When the test set is evaluated before the end of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After every so many steps; 0 for never.
    pub every_steps: u64,
    /// Whether such an evaluation may end the run.
    pub early_stopping: Option<EarlyStopping>,
}

/// When training is stopped for lack of progress.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// After so many evaluations in a row without a better loss; at least 1.
    pub patience: u32,
    /// By how much a loss must be below the best one to be better.
    pub min_improvement: f64,
}

/// The best evaluation of a run that may stop early.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its mean loss.
    pub loss: f64,
    /// Its version.
    pub step: u64,
    /// Evaluations after it, none of them better.
    pub evaluations_since: u32,
}

/// The checkpoint that a run goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// Its step: that many were taken.
    pub step: u64,
    /// BLAKE3 of its manifest, which names every file by its hash: this checkpoint and no other.
    pub manifest_blake3: [u8; 32],
    /// Training examples seen by then.
    pub samples: u64,
    /// Mean loss of the last step by then.
    pub last_loss: Option<f64>,
    /// The best evaluation by then, if the run may stop early.
    pub best: Option<Best>,
}

/// Everything that decides what is computed, and who may take part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// [`FORMAT`].
    pub format: u16,
    /// The job's name, as in every identity.
    pub name: String,
    /// The trust domain, as in every identity.
    pub trust_domain: String,
    /// How many workers take part, indices 0 and up.
    pub workers: u32,
    /// How many servers take part, indices 0 and up.
    pub servers: u32,
    /// How workers come and go.
    pub elastic: Elastic,
    /// The network.
    pub model: ModelSpec,
    /// What workers compute its products in; parameters are `f32` wherever they are kept and updated.
    pub precision: Precision,
    /// The update rule, as the text that servers run.
    pub optimizer: OptimizerSpec,
    /// The learning rate before the schedule's factor.
    pub learning_rate: f64,
    /// How the learning rate changes over the planned steps.
    pub schedule: Schedule,
    /// The seed of all training randomness.
    pub seed: u64,
    /// Passes over the training set.
    pub epochs: u64,
    /// Examples in a global batch.
    pub batch_size: u32,
    /// Parts that a batch is cut into, whatever the number of workers.
    pub logical_shards: u32,
    /// How contributions become one gradient. Under a robust rule, each worker holds one logical shard, and votes for it.
    pub aggregation: Aggregation,
    /// The norm that a step's whole gradient is clipped to, if any: Pascanu, Mikolov, Bengio, "On the difficulty of training
    /// recurrent neural networks", ICML 2013, section 3.2.
    pub clip_norm: Option<f64>,
    /// Stop after this many steps; no schedule reads it.
    pub max_steps: Option<u64>,
    /// When the test set is evaluated before the end.
    pub evaluation: Evaluation,
    /// The data.
    pub data: DataSpec,
    /// Bytes of f32 in a slice at most.
    pub slice_bytes: u32,
    /// How values travel.
    pub codecs: Codecs,
    /// Whether mixed arithmetic is admitted.
    pub determinism: Determinism,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds without a heartbeat after which a node counts as dead, and without progress after which the
    /// scheduler names what it waits for.
    pub heartbeat_timeout_ms: u64,
    /// Whether the final model is written in the open.
    pub export: bool,
    /// When training state is kept.
    pub checkpoints: Checkpoints,
    /// What the audit log is told.
    pub audit: Audit,
    /// Share of the parameters' values whose updates the scheduler computes a second time, 0 to 1: see [`crate::witness`].
    pub witness_rate: f64,
    /// Where the run goes on from; `None` if it begins at the seed.
    pub resume: Option<Resume>,
}

/// What is wrong with a job, or with its signature.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The bytes are no job of this format.
    #[error(
        "the signed job cannot be read ({0}): it was written by another version, or damaged; sign it anew"
    )]
    Unreadable(String),
    /// Another layout.
    #[error("the job has format {0}, this build reads format {FORMAT}: use the same version on every node")]
    Format(u16),
    /// A value that no job may have.
    #[error("the job is invalid: {0}")]
    Invalid(String),
    /// The signature does not hold.
    #[error("the job's signature does not hold: {0}")]
    Signature(String),
    /// Signed by an identity that is not an operator.
    #[error("the job is signed by {0}: only an operator of the job may sign it")]
    NotOperator(SpiffeId),
    /// Signed for another job than this node's.
    #[error("the signed job is {found}, this node's identity is of {expected}")]
    OtherJob {
        /// What the signed job says.
        found: String,
        /// What the identity says.
        expected: String,
    },
}

impl JobSpec {
    /// How many workers may take part at a time: those that the job begins with, and those that may join it.
    #[must_use]
    pub fn most_workers(&self) -> u32 {
        self.workers.saturating_add(self.elastic.extra_workers)
    }

    /// What must be known of whole gradients before a slice is updated, if anything: then a step has a phase of its own for it.
    #[must_use]
    pub fn weighing(&self) -> Option<Weighing> {
        Weighing::new(self.aggregation, self.clip_norm, self.logical_shards as usize)
    }

    /// What a step's aggregate is divided by: a sum by the targets of its examples; a rule's result, which is made of means, by 1.
    #[must_use]
    pub fn divisor(&self, step: u64) -> f32 {
        if self.aggregation.gives_means() { 1.0 } else { self.targets_in(step) }
    }

    /// How many targets the examples of a step have.
    #[must_use]
    pub fn targets_in(&self, step: u64) -> f32 {
        crate::plan::Plan::new(self).step(step).examples as f32 * self.model.targets() as f32
    }

    /// Whether the optimizer needs whole tensors, so that a parameter's slices are on one server and updated together.
    #[must_use]
    pub fn updates_whole_tensors(&self) -> bool {
        self.optimizer.parse().is_ok_and(|program| program.needs_whole_tensor())
    }

    /// The version that every slice begins at: 0, or the step that the run resumes from.
    #[must_use]
    pub fn first_step(&self) -> u64 {
        self.resume.as_ref().map_or(0, |resume| resume.step)
    }

    /// The job's reduction tree.
    #[must_use]
    pub fn tree(&self) -> ReductionTree {
        // A validated job has at least one shard.
        ReductionTree::new(self.logical_shards.max(1)).unwrap_or_else(ReductionTree::single)
    }

    /// The identity of the key that signs the job's audit log.
    ///
    /// # Errors
    /// [`JobError::Invalid`] when the job's names make no SPIFFE ID.
    pub fn audit_key(&self) -> Result<SpiffeId, JobError> {
        SpiffeId::new(&self.trust_domain, &self.name, Role::Actor, crate::audit::KEY_NAME)
            .map_err(|e| JobError::Invalid(e.to_string()))
    }

    /// The identity of a member of this job.
    ///
    /// # Errors
    /// [`JobError::Invalid`] when the job's names make no SPIFFE ID.
    pub fn member(&self, role: Role, index: u32) -> Result<SpiffeId, JobError> {
        SpiffeId::new(&self.trust_domain, &self.name, role, &index.to_string())
            .map_err(|e| JobError::Invalid(e.to_string()))
    }
}

//! Where models and training state go, and where they come back from: traits, because files and formats are the runtime's
//! business.
//!
//! A **checkpoint** is everything that training needs to go on from one step: the parameters and the optimizer's state at
//! one version, in as many parts as there are servers, where error feedback keeps residuals a part from each worker with those of its
//! logical shards, and a manifest that names the parts. Servers and workers write parts
//! ([`PartWriter`]), the scheduler writes the manifest once every part is there ([`Ledger`]), and those of a resumed run
//! read what they keep from whichever parts hold it ([`PartSource`]). The **final model** is an export for others to use
//! ([`CheckpointSink`]).

use std::sync::Arc;

use testudo_kernels::cuda::AnyDevice;
use testudo_kernels::{Aggregator, OwnName};

use crate::job::{Best, JobSpec, Resume};
use crate::placement::{Slice, SliceId};
use crate::server::Store;

/// One parameter tensor, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct NamedTensor<'a> {
    /// The parameter's name, unique in the model.
    pub name: &'a str,
    /// Its dimensions, outermost first.
    pub dims: &'a [usize],
    /// Its values, row-major, as many as the product of `dims`.
    pub values: &'a [f32],
}

/// A whole model at one version.
#[derive(Clone, Debug)]
pub struct FinalModel<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Updates applied since initialisation.
    pub version: u64,
    /// BLAKE3 over the values' little-endian bytes, tensors in order of their names.
    pub params_blake3: [u8; 32],
    /// The tensors, in the model's order.
    pub tensors: Vec<NamedTensor<'a>>,
}

/// Why a model or a checkpoint could not be stored or read; the text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckpointError(pub String);

/// Takes the final model. Called on the compute thread of the worker that exports it.
pub trait CheckpointSink: Send {
    /// Stores `model` whole or not at all, and returns how many bytes it took.
    ///
    /// # Errors
    /// When it could not be stored; nothing half-written may be left in its place.
    fn export(&mut self, model: &FinalModel<'_>) -> Result<u64, CheckpointError>;
}

/// One slice at one version, with everything that its next update needs.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSnapshot {
    /// The slice.
    pub slice: Slice,
    /// The parameters, shared with whoever reads that version.
    pub weights: Arc<Vec<f32>>,
    /// The optimizer's state, a tensor for each name that the optimizer states, each as long as `weights`.
    pub state: Vec<Vec<f32>>,
    /// The numbers that the optimizer keeps of the parameter, the same for all its slices.
    pub scalars: Vec<f64>,
}

/// Every slice of one server at one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Updates applied since initialisation: the steps taken.
    pub version: u64,
    /// The server's index.
    pub server: u32,
    /// Its slices, in the model's order.
    pub slices: Vec<SliceSnapshot>,
}

/// What error feedback has kept back of one logical shard.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardResiduals {
    /// The shard.
    pub shard: u32,
    /// A number for each element of each parameter, in the model's order.
    pub values: Vec<Vec<f32>>,
}

/// The residuals of one worker's logical shards at one version.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidualSnapshot {
    /// Updates applied since initialisation: the residuals are those after so many steps.
    pub version: u64,
    /// By shard, ascending.
    pub shards: Vec<ShardResiduals>,
}

/// What a stored part is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartReceipt {
    /// Its size as stored.
    pub bytes: u64,
    /// BLAKE3 of its bytes as stored.
    pub blake3: [u8; 32],
}

/// Stores one server's parts, or one worker's. Called on a thread of its own, so it may take its time.
pub trait PartWriter: Send {
    /// Stores `snapshot`; when this returns, the part outlasts a crash.
    ///
    /// # Errors
    /// When it could not be stored. Training goes on.
    fn write(&mut self, snapshot: &Snapshot) -> Result<PartReceipt, CheckpointError>;

    /// As [`write`](PartWriter::write), for the residuals of worker `worker`.
    ///
    /// # Errors
    /// As above; always, in a place that is for servers alone.
    fn write_residuals(
        &mut self,
        _worker: u32,
        _snapshot: &ResidualSnapshot,
    ) -> Result<PartReceipt, CheckpointError> {
        Err(CheckpointError("this place takes no residuals".into()))
    }
}

/// One slice as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoredSlice {
    /// Its name.
    pub id: SliceId,
    /// The parameters.
    pub weights: Vec<f32>,
    /// The optimizer's state, in the order of its names.
    pub state: Vec<Vec<f32>>,
    /// The numbers that it keeps of the parameter, likewise.
    pub scalars: Vec<f64>,
}

/// Reads the checkpoint that a job resumes from. Called on a node's compute thread.
pub trait PartSource: Send {
    /// The values of every slice in `wanted`, whichever part holds them.
    ///
    /// # Errors
    /// When the checkpoint is not the job's, or is damaged; nothing of it may be used then.
    fn load(&mut self, job: &JobSpec, wanted: &[Slice]) -> Result<Vec<RestoredSlice>, CheckpointError>;

    /// The residuals of these logical shards, in that order.
    ///
    /// # Errors
    /// As [`load`](PartSource::load), and when the checkpoint holds none.
    fn residuals(&mut self, _job: &JobSpec, _shards: &[u32]) -> Result<Vec<ShardResiduals>, CheckpointError> {
        Err(CheckpointError("it holds no residuals of error feedback".into()))
    }
}

/// Gives a node the places of its checkpoints, and a server what its program brings along, once the job is known and checked: a server,
/// and a worker that keeps residuals.
pub trait ServerSetup: Send {
    /// Where the server or worker of that index writes its parts. Asked for only if the job wants any of it.
    ///
    /// # Errors
    /// The text is for the operator.
    fn writer(&mut self, job: &JobSpec, index: u32) -> Result<Box<dyn PartWriter>, String>;

    /// The checkpoint that `job` resumes from.
    ///
    /// # Errors
    /// The text is for the operator.
    fn source(&mut self, job: &JobSpec, resume: &Resume) -> Result<Box<dyn PartSource>, String>;

    /// What the server sums and updates on; `None` is the CPU. Asked for once.
    fn device(&mut self) -> Option<AnyDevice> {
        None
    }

    /// Called with where versions are kept, before there are any: a collector may be told of them.
    fn stored(&mut self, _store: &Arc<Store>) {}

    /// Whether the CPU takes the place of a device that has no kernels or no memory for what the server holds: of one that nobody asked
    /// for by its number.
    fn or_cpu(&self) -> bool {
        false
    }

    /// Of which versions the server counts how values are spread: every so many, and the first; 0 for none.
    fn histogram_every(&self) -> u64 {
        0
    }

    /// The rule of aggregation that the job names, where that is a program's own.
    ///
    /// # Errors
    /// The text is for the operator.
    fn rule(&mut self, name: OwnName) -> Result<Arc<dyn Aggregator>, String> {
        Err(format!(
            "the job's rule of aggregation is {name}, which this program has not got: start the operator's program"
        ))
    }
}

/// A server without a place for checkpoints: it serves jobs that want none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCheckpoints;

impl ServerSetup for NoCheckpoints {
    fn writer(&mut self, _: &JobSpec, _: u32) -> Result<Box<dyn PartWriter>, String> {
        Err("this server has no place for checkpoints, and the job wants them".into())
    }

    fn source(&mut self, _: &JobSpec, _: &Resume) -> Result<Box<dyn PartSource>, String> {
        Err("this server has no checkpoints to resume from".into())
    }
}

/// A part that a worker has stored: residuals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResiduals {
    /// The worker's index.
    pub worker: u32,
    /// The logical shards that it holds, ascending.
    pub shards: Vec<u32>,
    /// Size and hash.
    pub receipt: PartReceipt,
}

/// A part that a server has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPart {
    /// The server's index.
    pub server: u32,
    /// How many slices it holds.
    pub slices: u32,
    /// Size and hash.
    pub receipt: PartReceipt,
}

/// Every part of a checkpoint is stored: what the manifest is to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Commit {
    /// Steps taken.
    pub step: u64,
    /// The parts, by server.
    pub parts: Vec<StoredPart>,
    /// Those of workers, by worker: every logical shard's residuals once, if the job keeps them.
    pub residuals: Vec<StoredResiduals>,
    /// Where the run is.
    pub mark: Mark,
}

/// Where a run is at a checkpoint, beside its parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mark {
    /// Training examples seen, those before a resumption included.
    pub samples: u64,
    /// Mean loss of the last step.
    pub last_loss: Option<f64>,
    /// The best evaluation before this one, if the run may stop early.
    pub best: Option<Best>,
}

/// A checkpoint that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its step.
    pub step: u64,
    /// BLAKE3 of its manifest.
    pub manifest_blake3: [u8; 32],
    /// Why.
    pub why: String,
}

/// A checkpoint that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its step.
    pub step: u64,
    /// BLAKE3 of its manifest.
    pub manifest_blake3: [u8; 32],
    /// What was deleted on that occasion.
    pub deleted: Vec<Deletion>,
}

/// Turns parts into a checkpoint. Called on a thread of its own.
pub trait Ledger: Send {
    /// Makes the checkpoint whole: when this returns, it outlasts a crash.
    ///
    /// # Errors
    /// When it could not be; the checkpoint before is still the latest then.
    fn commit(&mut self, commit: &Commit) -> Result<Committed, CheckpointError>;
}

/// BLAKE3 over the parameters' f32 values, little-endian, tensors in order of their names: the same for any slicing,
/// placement or order of the tensors in the model.
#[must_use]
pub fn params_blake3(tensors: &[NamedTensor<'_>]) -> [u8; 32] {
    let mut sorted: Vec<&NamedTensor<'_>> = tensors.iter().collect();
    sorted.sort_by_key(|t| t.name);
    let mut hasher = blake3::Hasher::new();
    for tensor in sorted {
        hasher.update(bytemuck::cast_slice(tensor.values));
    }
    *hasher.finalize().as_bytes()
}

//! One node's part of a checkpoint: a safetensors file inside an age file.
//!
//! The plaintext is a safetensors file of one-dimensional tensors. In a server's, slices that follow each other in a parameter make
//! one f32 tensor of each kind, called by what it is, the parameter and its first element there: `weights/fc1.weight@0`,
//! `velocity/fc1.weight@262144`, as the optimizer's program calls its states. Numbers that the program keeps of a parameter are f64
//! tensors of one element (`mu_product/fc1.weight@0`), before all others, and the same wherever a part of the parameter is. In a
//! worker's, the residuals of each of its logical shards are whole parameters (`residual-3/fc1.weight@0`). Under `__metadata__` stand
//! `format`, `job`, `step`, `server` or `worker`, and `extra`, the version of
//! whatever further state later features put beside parameters and optimizer state (as tensors `extra/...`); this build
//! writes and reads version 0, which is none.
//!
//! Reading ([`read()`]) trusts nothing (invariant 2 of [`super`]): sizes are checked before anything is allocated, values are streamed,
//! and it succeeds only if the file's BLAKE3 is the manifest's and age's last block was the last.

mod read;
mod write;

use testudo_actors::JobSpec;
use testudo_kernels::{Aggregation, ModelSpec, Program};

use super::CheckpointError;
use super::manifest::Manifest;
use super::resume::{AGGREGATION, PROGRAM};

pub(super) use read::open_regular;
pub use read::{Plaintext, check, parse_header, read};
pub use write::{write, write_residuals};

/// What `__metadata__.format` says.
pub const FORMAT: &str = "testudo checkpoint part, format 1";
/// The version of state beside parameters and optimizer state: none yet.
const EXTRA: &str = "0";
/// The name of parameters among the kinds of tensors.
pub const WEIGHTS: &str = "weights";
/// What a rule keeps of the step before; no program's state can be called so.
pub const AGGREGATE: &str = "previous-aggregate";
/// Bytes of a part's header at most: a hundred thousand tensors' worth.
const HEADER_MOST: u64 = 16 << 20;
/// Bytes that are read or written at a time.
const BUFFER: usize = 1 << 20;

/// What the parts of one checkpoint have in common: which tensors there can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The job's name.
    pub job: String,
    /// The step.
    pub step: u64,
    /// Every parameter's name and number of elements, in the model's order.
    pub parameters: Vec<(String, usize)>,
    /// What is kept of each element: [`WEIGHTS`], then the optimizer's state, then [`AGGREGATE`] under a rule that keeps it.
    pub kinds: Vec<String>,
    /// The numbers that the optimizer keeps of each parameter.
    pub scalars: Vec<String>,
}

impl Frame {
    /// The frame of a checkpoint of `job` at `step`.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`] when the job's model is none.
    pub fn new(job: &JobSpec, step: u64) -> Result<Frame, CheckpointError> {
        Frame::with(&job.name, step, &job.model, &job.optimizer.program, job.aggregation)
    }

    fn with(
        job: &str,
        step: u64,
        model: &ModelSpec,
        program: &str,
        rule: Aggregation,
    ) -> Result<Frame, CheckpointError> {
        let parameters = model.parameters().map_err(|e| CheckpointError::OtherJob(e.to_string()))?;
        let program = Program::parse(program)
            .map_err(|e| CheckpointError::OtherJob(format!("its optimizer's program: {e}")))?;
        let kinds = std::iter::once(WEIGHTS).chain(program.state_tensors().iter().map(String::as_str));
        let kinds = kinds.chain(rule.keeps_aggregate().then_some(AGGREGATE));
        Ok(Frame {
            job: job.to_owned(),
            step,
            parameters: parameters.iter().map(|p| (p.name.clone(), p.shape.elements())).collect(),
            kinds: kinds.map(str::to_owned).collect(),
            scalars: program.scalar_states().iter().map(|state| state.name.clone()).collect(),
        })
    }

    /// The frame of the same checkpoint's part with the residuals of these logical shards, each a kind of its own.
    #[must_use]
    pub fn of_residuals(&self, shards: &[u32]) -> Frame {
        let kinds = shards.iter().map(|shard| residual(*shard)).collect();
        Frame { kinds, scalars: Vec::new(), ..self.clone() }
    }

    /// The frame of the checkpoint that `manifest` describes, from what it says of model and optimizer.
    ///
    /// # Errors
    /// [`CheckpointError::OtherJob`] when that is no model or optimizer of this build.
    pub fn of(manifest: &Manifest) -> Result<Frame, CheckpointError> {
        let model = Frame::model(manifest)?;
        let program: String = setting(manifest, PROGRAM).map_err(|_| {
            let reason = "it does not state its optimizer's program, as versions before programs did not: only such a \
                          version can open it";
            CheckpointError::OtherJob(reason.into())
        })?;
        let rule = match manifest.settings.contains_key(AGGREGATION) {
            true => setting(manifest, AGGREGATION)?,
            false => Aggregation::Mean,
        };
        Frame::with(&manifest.job, manifest.step, &model, &program, rule)
    }

    /// The model that `manifest` names.
    ///
    /// # Errors
    /// As [`Frame::of`].
    pub fn model(manifest: &Manifest) -> Result<ModelSpec, CheckpointError> {
        setting(manifest, "model")
    }
}

fn setting<T: serde::de::DeserializeOwned>(manifest: &Manifest, name: &str) -> Result<T, CheckpointError> {
    let text = manifest.settings.get(name).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|e| CheckpointError::OtherJob(format!("its {name} is {text:?}: {e}")))
}

/// Whose part it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A server's, by its index.
    Server(u32),
    /// A worker's.
    Worker(u32),
}

impl Holder {
    /// What `__metadata__` says of it.
    fn said(self) -> (&'static str, String) {
        match self {
            Holder::Server(index) => ("server", index.to_string()),
            Holder::Worker(index) => ("worker", index.to_string()),
        }
    }
}

/// What the residuals of a logical shard are called.
fn residual(shard: u32) -> String {
    format!("residual-{shard}")
}

/// A run of one kind of a parameter's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The parameter, in the model's order.
    pub parameter: usize,
    /// What it is, by its place in [`Frame::kinds`]; beyond those, in [`Frame::scalars`].
    pub kind: usize,
    /// Its first element in the parameter.
    pub first: usize,
    /// How many elements; one, if it is a scalar's.
    pub elements: usize,
}

/// A number that the optimizer keeps of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalar {
    /// The parameter, in the model's order.
    pub parameter: usize,
    /// Which number, by its place in [`Frame::scalars`].
    pub scalar: usize,
    /// Its value.
    pub value: f64,
}

#[cfg(test)]
mod tests;

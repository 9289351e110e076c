//! What a run recorded of one step: in its audit log, its checkpoint, its exported model, its summary.

use std::collections::BTreeSet;
use std::path::Path;

use testudo_actors::JobSpec;
use testudo_actors::audit::Entry;
use testudo_actors::checkpoint::{NamedTensor, params_blake3};

use super::{Key, Unknown};
use crate::audit;
use crate::checkpoint::load::{self, LoadedParameter};
use crate::checkpoint::manifest::Hex;
use crate::checkpoint::part::{Frame, WEIGHTS};
use crate::checkpoint::{CheckpointError, Checkpoints, resume, safetensors};
use crate::report::summary::Summary;
use crate::rundir::RunDir;

/// Bytes of a summary at most.
const SUMMARY_MOST: u64 = 1 << 20;

/// The values behind a hash, where they are recorded.
#[derive(Debug)]
pub enum Values {
    /// Only the hash is.
    None,
    /// All of them.
    All {
        /// By parameter, in the model's order.
        parameters: Vec<LoadedParameter>,
        /// What is kept of each element: the weights, then the optimizer's state if that is recorded.
        kinds: Vec<String>,
        /// The numbers that the optimizer keeps of each parameter, if they are recorded.
        numbers: Vec<String>,
        /// The signed job under which they were written, if that is known.
        job_blake3: Option<Hex>,
    },
}

/// One record of a step.
#[derive(Debug)]
pub struct Record {
    /// What it is, for a person.
    pub name: String,
    /// The hash of its parameters and its values, or why it does not pass its own checks.
    pub content: Content,
}

/// Everything that a run recorded.
#[derive(Debug, Default)]
pub struct Records {
    /// Of the step asked for.
    pub all: Vec<Record>,
    /// Every step of which there is a record, in order.
    pub steps: Vec<u64>,
    /// Records of the step that cannot be read here.
    pub notes: Vec<String>,
}

/// What the run in `run_dir` recorded of `step`. The audit log's keys must come from one of `cas`.
///
/// # Errors
/// [`Unknown`] when the directory cannot be read.
pub fn find(
    run_dir: &RunDir,
    checkpoints: &Checkpoints,
    key: &Key,
    job: &JobSpec,
    step: u64,
    cas: Vec<Vec<u8>>,
) -> Result<Records, Unknown> {
    let steps = checkpoints.steps().map_err(|e| Unknown::RunDir(e.to_string()))?;
    let mut records = Records { steps, ..Records::default() };
    let mut kept = BTreeSet::new();
    logged(run_dir, cas, step, &mut records, &mut kept);
    if checkpoints.layout().manifest(step).exists() {
        let name = format!("checkpoint at step {step}");
        match checkpoint(checkpoints, key, job, step) {
            Err(error @ CheckpointError::Key { .. }) => {
                records.notes.push(format!("the {name} is not compared: {error}"));
            }
            content => records.all.push(Record { name, content: content.map_err(|e| e.to_string()) }),
        }
    }
    let of_model = model(&run_dir.model(), job);
    let of_summary = summary(&run_dir.summary());
    for (name, found) in [("exported model", of_model), ("summary.json", of_summary)] {
        match found {
            None => {}
            Some(Ok((of, content))) => {
                records.steps.push(of);
                if of == step {
                    records.all.push(Record { name: name.to_owned(), content });
                }
            }
            Some(Err(problem)) => records.notes.push(format!("it is not known of which step {problem}")),
        }
    }
    kept.extend(std::mem::take(&mut records.steps));
    records.steps = kept.into_iter().collect();
    Ok(records)
}

/// Every hash of that step's parameters in the audit log, and the steps of which there are some. A log that does not hold
/// speaks against the run, whatever the step.
fn logged(run_dir: &RunDir, cas: Vec<Vec<u8>>, step: u64, records: &mut Records, steps: &mut BTreeSet<u64>) {
    let path = run_dir.audit_log();
    if !path.exists() {
        return;
    }
    let mut hashes = BTreeSet::new();
    let options = audit::Options { cas, unfinished: true, ..audit::Options::default() };
    let read = audit::read(&path, &options, |_, entry| {
        let (at, hash) = match entry {
            Some(Entry::Parameters { step, params_blake3 }) => (*step, params_blake3.0),
            Some(Entry::End { steps, params_blake3: Some(hash), .. }) => (*steps, hash.0),
            _ => return,
        };
        steps.insert(at);
        if at == step {
            hashes.insert(hash);
        }
    });
    let record = |content| Record { name: "audit log".to_owned(), content };
    match read {
        Ok(_) => records.all.extend(hashes.into_iter().map(|hash| record(Ok((Hex(hash), Values::None))))),
        Err(error) => records.all.push(record(Err(error.to_string()))),
    }
}

/// The checkpoint's values, after every check of its own.
fn checkpoint(
    checkpoints: &Checkpoints,
    key: &Key,
    job: &JobSpec,
    step: u64,
) -> Result<(Hex, Values), CheckpointError> {
    let whole = checkpoints.read(step)?;
    resume::resume(job, &whole)?;
    checkpoints.check_parts(&whole)?;
    let frame = Frame::new(job, step)?;
    let parameters = load::load_all(checkpoints.layout(), &whole.manifest, key.get()?, &frame)?;
    let hash = hash(&parameters);
    let job_blake3 = Some(whole.manifest.job_blake3);
    Ok((hash, Values::All { parameters, kinds: frame.kinds, numbers: frame.scalars, job_blake3 }))
}

fn hash(parameters: &[LoadedParameter]) -> Hex {
    let named: Vec<NamedTensor<'_>> =
        parameters.iter().map(|p| NamedTensor { name: &p.name, dims: &[], values: &p.weights }).collect();
    Hex(params_blake3(&named))
}

/// Of which step a record is, and what it holds; an error where even the step is not known.
type Found = Option<Result<(u64, Content), String>>;

/// The hash that a record states and the values behind it, or why it does not pass its own checks.
pub type Content = Result<(Hex, Values), String>;

/// Bytes of an exported model's header at most.
const HEADER_MOST: u64 = 16 << 20;

/// The exported model: the hash is that of its values; a header that says another counts against it.
fn model(path: &Path, job: &JobSpec) -> Found {
    if !path.exists() {
        return None;
    }
    let read = || {
        let values: usize =
            job.model.parameters().map_err(|e| e.to_string())?.iter().map(|p| p.shape.elements()).sum();
        // Whoever left the record is not believed about its size: it is that of the job's model, and a header.
        let most = (values as u64).saturating_mul(4).saturating_add(HEADER_MOST);
        let file = safetensors::read_at_most(path, most).map_err(|e| e.to_string())?;
        let step = file.metadata.get("step").and_then(|step| step.parse::<u64>().ok());
        let step = step.ok_or_else(|| "its header says no step".to_owned())?;
        Ok((step, model_content(&file, job)))
    };
    Some(read().map_err(|reason: String| format!("the exported model {} is: {reason}", path.display())))
}

fn model_content(file: &safetensors::Checkpoint, job: &JobSpec) -> Content {
    let stated = file.metadata.get("params_blake3").cloned();
    let stated = Hex::try_from(stated.unwrap_or_default()).map_err(|e| format!("its header's hash: {e}"))?;
    let specs = job.model.parameters().map_err(|e| e.to_string())?;
    if file.tensors.len() != specs.len() {
        return Err(format!("it holds {} tensors, the job's model has {}", file.tensors.len(), specs.len()));
    }
    let mut parameters = Vec::with_capacity(specs.len());
    for spec in &specs {
        let fits = |tensor: &&safetensors::OwnedTensor| {
            tensor.name == spec.name && tensor.shape == spec.shape.dims()
        };
        let tensor = file.tensors.iter().find(fits);
        let tensor = tensor.ok_or_else(|| format!("{} is not there in the job's shape", spec.name))?;
        let weights = tensor.values.clone();
        parameters.push(LoadedParameter {
            name: spec.name.clone(),
            weights,
            state: Vec::new(),
            scalars: Vec::new(),
        });
    }
    let hash = hash(&parameters);
    if hash != stated {
        return Err(format!("its header says {stated}, its values are {hash}"));
    }
    let kinds = vec![WEIGHTS.to_owned()];
    Ok((hash, Values::All { parameters, kinds, numbers: Vec::new(), job_blake3: None }))
}

fn summary(path: &Path) -> Found {
    if !path.exists() {
        return None;
    }
    let read = || {
        let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
        if length > SUMMARY_MOST {
            return Err(format!("{length} bytes, {SUMMARY_MOST} at most"));
        }
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let summary: Summary = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        let stated = Hex::try_from(summary.params_blake3).map(|hash| (hash, Values::None));
        Ok((summary.steps, stated))
    };
    Some(read().map_err(|reason| format!("{} is: {reason}", path.display())))
}

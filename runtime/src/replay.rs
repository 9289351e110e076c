//! Checking a step of a finished run: it is computed again, and what the run recorded of it is compared.
//!
//! [`records`] finds what the run says of a step, `testudo_actors::replay` computes it from the checkpoint before, and
//! [`compare`] names what differs. Nothing is sent anywhere and nothing in the run directory is changed.
//!
//! Invariants, cited by the tests:
//! 1. **Nothing unsigned decides what is computed**: the job's signature is checked first, and data, model and settings are
//!    the ones it names.
//! 2. **Every record of the step must agree** with what was computed; one that is there and does not pass its own checks (a
//!    part unlike its manifest, a signature that does not hold) counts against the run, not for it.
//! 3. **What cannot be said is not said**: without a record, without the data or without a key there is no verdict.
//! 4. What it begins with is believed, so it says what that was: the seed, which leaves nothing to believe, or a checkpoint.

pub mod compare;
pub mod records;

use std::path::{Path, PathBuf};

use serde::Serialize;
use testudo_actors::plan::Plan;
use testudo_actors::replay::{Replay, ReplayError, ReplayedStep};
use testudo_actors::{Determinism, JobError, JobSpec, SignedJob};
use testudo_transport::Trust;

use crate::checkpoint::keys::Identities;
use crate::checkpoint::load::Source;
use crate::checkpoint::manifest::Hex;
use crate::checkpoint::store::TrustedCas;
use crate::checkpoint::{CheckpointError, Checkpoints, Layout, Whole, resume};
use crate::config::Config;
use crate::node;
use crate::rundir::RunDir;
use compare::{Difference, Placement};
use records::{Record, Records, Values};

/// Bytes of a signed job at most; it is read whole.
const JOB_MOST: u64 = testudo_actors::job::MAX_SIGNED_JOB as u64;

/// What is to be checked, and with what.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The step: the parameters after so many steps.
    pub step: u64,
    /// The age identity that opens checkpoints, instead of the run's own key.
    pub identity_file: Option<PathBuf>,
    /// A PEM file of the CAs to trust, instead of those that the run directory lists.
    pub ca: Option<PathBuf>,
    /// Where the data is, instead of where the cluster file says.
    pub data: Option<PathBuf>,
    /// Believe no checkpoint.
    pub from_seed: bool,
}

/// Why there is no verdict (invariant 3). Each says what is missing.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The directory or one of its files.
    #[error("{0}")]
    RunDir(String),
    /// The job's signature does not hold, or there is nobody whose word it could be.
    #[error("{}: {source}", path.display())]
    Job {
        /// The signed job.
        path: PathBuf,
        /// What is wrong with it.
        source: JobError,
    },
    /// No CA to check the job against.
    #[error(
        "no CA to check {} against: the run directory lists none in checkpoint/ca.pem or identities/; give it with --ca",
        path.display()
    )]
    NoCa {
        /// The signed job.
        path: PathBuf,
    },
    /// The step is none of the job's.
    #[error("step {step} is none of the job's: it plans {planned}")]
    NoStep {
        /// The step.
        step: u64,
        /// Steps planned.
        planned: u64,
    },
    /// Nothing says what the parameters were.
    #[error("nothing is recorded for step {step}; there are records of {}", known(.steps))]
    NoRecord {
        /// The step.
        step: u64,
        /// The steps of which there are records.
        steps: Vec<u64>,
    },
    /// The data is not at hand.
    #[error("the training data: {0}; point --data at the data that the job was signed for")]
    Data(String),
    /// A checkpoint cannot be opened.
    #[error(
        "{0}; give the age identity of a recipient with --identity-file, or begin at the seed with --from-seed"
    )]
    Key(CheckpointError),
    /// The step could not be computed.
    #[error("step {step} could not be computed: {source}")]
    Compute {
        /// The step asked for.
        step: u64,
        /// What failed.
        source: ReplayError,
    },
    /// The bits differ, and may have differed honestly.
    #[error(
        "the bits differ, and the job admits nodes of different arithmetic (training.determinism = \"relaxed\"): that may be \
         why"
    )]
    Relaxed,
}

/// Steps for a person: runs of them as such.
fn known(steps: &[u64]) -> String {
    let runs = steps.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first} to {last}"),
        [one] => one.to_string(),
        [] => String::new(),
    });
    match steps {
        [] => "none".to_owned(),
        _ => {
            format!("step{} {}", if steps.len() == 1 { "" } else { "s" }, runs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// What a replay began with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The job's seed: nothing is believed.
    Seed,
    /// The checkpoint at a step, whose manifest has that hash.
    Checkpoint {
        /// Its step.
        step: u64,
        /// BLAKE3 of its manifest.
        manifest_blake3: Hex,
    },
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            From::Seed => f.write_str("the seed"),
            From::Checkpoint { step, .. } => write!(f, "the checkpoint at step {step}"),
        }
    }
}

/// One record, beside what was computed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Which record.
    pub record: String,
    /// The hash of the parameters that it states or holds; `None` where it does not pass its own checks.
    pub params_blake3: Option<Hex>,
    /// Whether everything in it is as computed.
    pub agrees: bool,
    /// Why it does not pass its own checks.
    pub problem: Option<String>,
    /// What differs, where values are recorded and not just their hash.
    pub differences: Vec<Difference>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The step.
    pub step: u64,
    /// Whether every record agrees.
    pub confirmed: bool,
    /// What it began with.
    pub from: From,
    /// Steps that were taken again.
    pub steps_taken: u64,
    /// BLAKE3 of the parameters as computed.
    pub params_blake3: Hex,
    /// Every record of the step.
    pub checks: Vec<Check>,
}

/// Is told how far it is.
pub trait Watcher {
    /// Something that a person should know.
    fn notice(&mut self, text: &str);
    /// A step was taken, of those from `first` to `last`.
    fn step(&mut self, taken: &ReplayedStep, plan: &Plan, first: u64, last: u64);
}

/// Computes the step that `request` names again and compares.
///
/// # Errors
/// [`Unknown`] when there is no verdict.
pub fn replay(dir: &Path, request: &Request, watcher: &mut dyn Watcher) -> Result<Report, Unknown> {
    let run_dir = RunDir::open(dir).map_err(|e| Unknown::RunDir(e.to_string()))?;
    let config = config(&run_dir, request)?;
    let (job, job_blake3) = signed_job(&run_dir, &config, request.ca.as_deref())?;
    let (step, plan) = (request.step, Plan::new(&job));
    if step > plan.planned_steps() {
        return Err(Unknown::NoStep { step, planned: plan.planned_steps() });
    }
    let checkpoints = checkpoints(&run_dir, request.ca.as_deref())?;
    let key = Key::find(request, checkpoints.layout());
    let cas = trusted(&run_dir, &config, request.ca.as_deref())?;
    let cas = cas.iter().map(|trust| trust.ca_der()).collect();
    let records = records::find(&run_dir, &checkpoints, &key, &job, step, cas)?;
    for note in &records.notes {
        watcher.notice(note);
    }
    if records.all.is_empty() {
        return Err(Unknown::NoRecord { step, steps: records.steps });
    }
    let from = match request.from_seed {
        true => None,
        false => base(&checkpoints, &key, &job, step, watcher)?,
    };
    let data = node::dataset(&config, &job).map_err(Unknown::Data)?;
    let computed = compute(&job, data, from.as_ref(), &checkpoints, step, watcher);
    let replay = computed.map_err(|source| Unknown::Compute { step, source })?;
    let from = match &from {
        None => From::Seed,
        Some((whole, _)) => From::Checkpoint { step: whole.step(), manifest_blake3: whole.manifest_blake3 },
    };
    let report = verdict(&job, job_blake3, &records, &replay, from);
    match job.determinism {
        Determinism::Relaxed if !report.confirmed => Err(Unknown::Relaxed),
        _ => Ok(report),
    }
}

fn config(run_dir: &RunDir, request: &Request) -> Result<Config, Unknown> {
    let data = request.data.as_ref().map(|path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        // A TOML string that holds any path: the escapes of JSON are TOML's too.
        format!("data.path={}", serde_json::Value::from(path.to_string_lossy().into_owned()))
    });
    let overrides: Vec<String> = data.into_iter().collect();
    Config::load(&run_dir.cluster_file(), &overrides).map_err(|e| Unknown::RunDir(e.to_string()))
}

/// Invariant 1: the job and the hash that checkpoints know it by.
fn signed_job(run_dir: &RunDir, config: &Config, ca: Option<&Path>) -> Result<(JobSpec, Hex), Unknown> {
    let path = run_dir.signed_job();
    let length = std::fs::metadata(&path).map(|m| m.len());
    let bytes = match length {
        Ok(length) if length > JOB_MOST => {
            return Err(Unknown::RunDir(format!(
                "{}: {length} bytes, {JOB_MOST} at most: this is no signed job",
                path.display()
            )));
        }
        Ok(_) => std::fs::read(&path),
        Err(error) => Err(error),
    };
    let bytes = bytes.map_err(|e| Unknown::RunDir(format!("{} cannot be read: {e}", path.display())))?;
    let refused = |source| Unknown::Job { path: path.clone(), source };
    let signed = SignedJob::from_bytes(&bytes).map_err(refused)?;
    let mut last = None;
    for trust in trusted(run_dir, config, ca)? {
        match signed.open_kept(&trust) {
            Ok(job) => return Ok((job, Hex(*blake3::hash(&bytes).as_bytes()))),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Unknown::NoCa { path: path.clone() }, refused))
}

/// Whose word a signature can be: the CAs in `ca`, or those that the run directory lists.
fn trusted(run_dir: &RunDir, config: &Config, ca: Option<&Path>) -> Result<Vec<Trust>, Unknown> {
    let read = match ca {
        Some(ca) => TrustedCas::given(ca).map(|given| vec![given]),
        None => {
            let listed = [
                Layout::new(&run_dir.checkpoints()).trust(),
                run_dir.identity("operator", 0).join("ca.pem"),
                run_dir.identity("scheduler", 0).join("ca.pem"),
            ];
            listed.iter().map(|file| TrustedCas::load(file)).collect()
        }
    };
    let read: Vec<TrustedCas> = read.map_err(|e| Unknown::RunDir(e.to_string()))?;
    Ok(read.iter().flat_map(|cas| cas.of(&config.job.trust_domain, &config.job.name)).collect())
}

fn checkpoints(run_dir: &RunDir, ca: Option<&Path>) -> Result<Checkpoints, Unknown> {
    let opened = Checkpoints::open(&run_dir.checkpoints());
    let opened = match ca {
        Some(ca) => opened.and_then(|all| all.trusting(ca)),
        None => opened,
    };
    opened.map_err(|e| Unknown::RunDir(e.to_string()))
}

/// What opens checkpoints, if it is at hand.
#[derive(Debug)]
pub struct Key {
    path: PathBuf,
    found: Result<Identities, String>,
}

impl Key {
    fn find(request: &Request, layout: &Layout) -> Key {
        let path = request.identity_file.clone().unwrap_or_else(|| layout.key());
        let found = match path.exists() {
            true => Identities::load(&path).map_err(|e| e.to_string()),
            false => Err(format!(
                "{} is not there, and without a key checkpoints cannot be opened",
                path.display()
            )),
        };
        Key { path, found }
    }

    /// The key.
    ///
    /// # Errors
    /// [`CheckpointError::Key`] when it is not at hand.
    pub fn get(&self) -> Result<&Identities, CheckpointError> {
        self.found
            .as_ref()
            .map_err(|reason| CheckpointError::Key { path: self.path.clone(), reason: reason.clone() })
    }
}

/// The newest checkpoint before `step` that can be used; `None` for the seed. One that is damaged is passed over, and said
/// to be; one that no key at hand opens is not.
fn base(
    checkpoints: &Checkpoints,
    key: &Key,
    job: &JobSpec,
    step: u64,
    watcher: &mut dyn Watcher,
) -> Result<Option<(Whole, Identities)>, Unknown> {
    let steps = checkpoints.steps().map_err(|e| Unknown::RunDir(e.to_string()))?;
    for earlier in steps.into_iter().rev().filter(|earlier| *earlier < step) {
        let usable = checkpoints.read(earlier).and_then(|whole| {
            resume::resume(job, &whole)?;
            checkpoints.check_parts(&whole).map(|()| whole)
        });
        match usable {
            Ok(whole) => {
                let identities = key.get().map_err(Unknown::Key)?.clone();
                return Ok(Some((whole, identities)));
            }
            Err(error) => {
                watcher.notice(&format!("the checkpoint at step {earlier} is passed over: {error}"))
            }
        }
    }
    Ok(None)
}

fn compute(
    job: &JobSpec,
    data: testudo_actors::TrainAndTest,
    from: Option<&(Whole, Identities)>,
    checkpoints: &Checkpoints,
    last: u64,
    watcher: &mut dyn Watcher,
) -> Result<Replay, ReplayError> {
    let model = job.build_model()?;
    let resumed = from.map(|(whole, identities)| {
        let resume = testudo_actors::Resume {
            step: whole.step(),
            manifest_blake3: whole.manifest_blake3.0,
            samples: whole.manifest.samples,
            last_loss: whole.manifest.last_loss,
            best: whole.manifest.best,
        };
        (resume, Source::new(checkpoints.layout().clone(), identities.clone(), resume))
    });
    let mut replay = match resumed {
        Some((resume, mut source)) => Replay::new(job, model, data, Some((resume, &mut source)))?,
        None => Replay::new(job, model, data, None)?,
    };
    let (first, plan) = (replay.steps(), Plan::new(job));
    while replay.steps() < last {
        let taken = replay.advance()?;
        watcher.step(&taken, &plan, first, last);
    }
    Ok(replay)
}

/// Invariant 2.
fn verdict(job: &JobSpec, job_blake3: Hex, records: &Records, replay: &Replay, from: From) -> Report {
    let computed = Hex(replay.params_blake3());
    let parameters = replay.parameters();
    let check = |record: &Record| {
        let Ok((stated, values)) = &record.content else {
            return Check {
                record: record.name.clone(),
                params_blake3: None,
                agrees: false,
                problem: record.content.as_ref().err().cloned(),
                differences: Vec::new(),
            };
        };
        let differences = match values {
            Values::None => Vec::new(),
            Values::All { parameters: found, kinds, numbers, job_blake3: of } => {
                // Who kept a slice is known only for the job that is at hand: an earlier one may have had other servers.
                let placement = (*of == Some(job_blake3)).then(|| Placement::of(job)).flatten();
                compare::differences(&parameters, found, kinds, numbers, placement.as_ref())
            }
        };
        Check {
            record: record.name.clone(),
            params_blake3: Some(*stated),
            agrees: *stated == computed && differences.is_empty(),
            problem: None,
            differences,
        }
    };
    let checks: Vec<Check> = records.all.iter().map(check).collect();
    let begun = match from {
        From::Seed => 0,
        From::Checkpoint { step, .. } => step,
    };
    Report {
        step: replay.steps(),
        confirmed: checks.iter().all(|check| check.agrees),
        from,
        steps_taken: replay.steps() - begun,
        params_blake3: computed,
        checks,
    }
}

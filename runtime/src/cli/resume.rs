//! `testudo run --resume`: what is found in the run directory, checked before anything is started.

mod logged;

use std::path::Path;

use testudo_actors::plan::Plan;
use testudo_actors::{JobSpec, Resume};
use testudo_transport::Identity;

use crate::audit::{self, AuditLogError};
use crate::checkpoint::keys::Identities;
use crate::checkpoint::part::Plaintext;
use crate::checkpoint::store::Whole;
use crate::checkpoint::{CheckpointError, Checkpoints, resume};
use crate::error::Failure;
use crate::report::metrics::{self, EvaluationRecord, StepRecord};
use crate::report::summary::Summary;
use crate::run::Watcher;
use crate::rundir::RunDir;
use crate::say::note;
use logged::Logged;

/// The directory of the run that is to be resumed.
pub(super) fn open(dir: &Path) -> Result<RunDir, Failure> {
    let run_dir = RunDir::open(dir).and_then(RunDir::hold).map_err(Failure::misconfigured)?;
    match run_dir.cluster_file().exists() {
        true => Ok(run_dir),
        false => Err(Failure::misconfigured(format!("{} is no run directory", dir.display()))),
    }
}

/// The checkpoint that `spec` is to go on from: whole, signed, of this job, and open to the key at hand: `key`, or the run's own.
pub(super) fn from(
    run_dir: &RunDir,
    spec: &JobSpec,
    step: Option<u64>,
    key: Option<&Identities>,
) -> Result<Resume, Failure> {
    let checkpoints = Checkpoints::open(&run_dir.checkpoints()).map_err(told)?;
    let whole = match step {
        Some(step) => of_step(&checkpoints, step),
        None => checkpoints.newest(None).map_err(told),
    }?;
    let resume = resume::resume(spec, &whole).map_err(told)?;
    // Whoever names a step may mean one that is older than the log.
    if step.is_none()
        && let Some(logged) = Logged::read(run_dir, &[])?
    {
        logged.check(&checkpoints, &whole).map_err(told)?;
    }
    checkpoints.check_parts(&whole).map_err(told)?;
    open_parts(&checkpoints, &whole, spec, key)?;
    Ok(resume)
}

fn of_step(checkpoints: &Checkpoints, step: u64) -> Result<Whole, Failure> {
    checkpoints.read(step).map_err(|error| {
        let steps = checkpoints.steps().unwrap_or_default();
        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
        let failure = told(error);
        Failure {
            message: format!("{} (there are those of steps: {})", failure.message, steps.join(", ")),
            ..failure
        }
    })
}

/// What is wrong with a checkpoint is wrong with what was given, unless it may pass by itself.
fn told(error: CheckpointError) -> Failure {
    if error.may_pass() { Failure::failed(error) } else { Failure::misconfigured(error) }
}

/// What a run goes on from by itself: the newest checkpoint that the audit log vouches for and whose parts are what its manifest says.
/// Newer ones are passed over, each with a notice.
pub(super) fn newest_vouched_for(
    run_dir: &RunDir,
    spec: &JobSpec,
    key: Option<&Identities>,
    watcher: &mut dyn Watcher,
) -> Result<Resume, Failure> {
    let checkpoints = Checkpoints::open(&run_dir.checkpoints()).map_err(told)?;
    // Before the log is asked for: without any checkpoint, that is what is missing.
    checkpoints.newest(None).map_err(told)?;
    let Some(logged) = Logged::read(run_dir, &[])? else {
        return Err(Failure::misconfigured(
            "there is no audit log to say whose the checkpoints are: look at them, and go on with `--resume`",
        ));
    };
    newest_good(&checkpoints, Some(&logged), spec, key, watcher)
}

/// What a cluster goes on from whose nodes keep their identities: a checkpoint that was signed under the CA of `operator` and no other,
/// whatever its folder lists, by somebody whose certificate none of the lists in force there has taken back. That of `step`; or the newest
/// whose parts are what its manifest says, by word of the audit log, if there is one, and newer ones are passed over, each with a notice.
pub(super) fn under(
    run_dir: &RunDir,
    spec: &JobSpec,
    operator: &Identity,
    step: Option<u64>,
    key: Option<&Identities>,
    watcher: &mut dyn Watcher,
) -> Result<Resume, Failure> {
    let checkpoints = Checkpoints::open(&run_dir.checkpoints()).map_err(told)?;
    let checkpoints = checkpoints.under(operator.ca_pem()).heeding(operator.trust().crls());
    let Some(step) = step else {
        let logged = Logged::read(run_dir, &[operator.trust().ca_der()])?;
        return newest_good(&checkpoints, logged.as_ref(), spec, key, watcher);
    };
    let whole = of_step(&checkpoints, step)?;
    let resume = resume::resume(spec, &whole).map_err(told)?;
    checkpoints.check_parts(&whole).map_err(told)?;
    open_parts(&checkpoints, &whole, spec, key)?;
    Ok(resume)
}

fn newest_good(
    checkpoints: &Checkpoints,
    logged: Option<&Logged>,
    spec: &JobSpec,
    key: Option<&Identities>,
    watcher: &mut dyn Watcher,
) -> Result<Resume, Failure> {
    let newest = checkpoints.newest(None).map_err(told)?;
    let steps = checkpoints.steps().map_err(told)?;
    let mut first = None;
    for step in steps.into_iter().rev().filter(|step| *step <= newest.step()) {
        let good = checkpoints.read(step).and_then(|whole| {
            logged.map_or(Ok(()), |logged| logged.check(checkpoints, &whole))?;
            checkpoints.check_parts(&whole)?;
            Ok(whole)
        });
        match good {
            Ok(whole) => {
                let resume = resume::resume(spec, &whole).map_err(told)?;
                open_parts(checkpoints, &whole, spec, key)?;
                return Ok(resume);
            }
            Err(why) => {
                watcher.notice(&format!("the checkpoint at step {step} is passed over: {why}"));
                first = first.or(Some(why));
            }
        }
    }
    let passes = first.as_ref().is_some_and(CheckpointError::may_pass);
    let why = first.map(|why| format!(": {why}")).unwrap_or_default();
    let none = format!("no checkpoint is left to go on from{why}");
    Err(if passes { Failure::failed(none) } else { Failure::misconfigured(none) })
}

/// Whether the parts open to the key at hand, and their step is one of the job's.
fn open_parts(
    checkpoints: &Checkpoints,
    whole: &Whole,
    spec: &JobSpec,
    key: Option<&Identities>,
) -> Result<(), Failure> {
    let layout = checkpoints.layout();
    let identities = match key {
        Some(given) => given.clone(),
        None if layout.key().exists() => Identities::load(&layout.key()).map_err(told)?,
        None => {
            return Err(Failure::misconfigured(format!(
                "{} is not there, and without a key the checkpoint cannot be opened: give the one of a recipient with \
                     --identity-file",
                layout.key().display()
            )));
        }
    };
    for (name, receipt) in whole.manifest.files() {
        let path = layout.step(whole.step()).join(name);
        Plaintext::open(&path, receipt, &identities).map_err(told)?;
    }
    let steps = Plan::new(spec).steps();
    if whole.step() > steps {
        return Err(Failure::misconfigured(format!(
            "the checkpoint is at step {}, beyond the {steps} steps of this job: raise training.max_steps, or name an \
                 earlier checkpoint with --step",
            whole.step()
        )));
    }
    Ok(())
}

/// The audit log must hold, as far as it goes, before it is gone on with: afterwards a new key signs what was there, and
/// `summary.json`, which names its end, is written anew. Whoever names a step may mean to go back further than the log knows. With
/// `cas` (DER), every key of the log must be of one of them.
pub(super) fn check_audit_log(
    run_dir: &RunDir,
    step: Option<u64>,
    cas: &[Vec<u8>],
    watcher: &mut dyn Watcher,
) -> Result<(), Failure> {
    if std::fs::symlink_metadata(run_dir.audit_log()).is_err() {
        return Ok(());
    }
    let options = audit::Options { unfinished: true, cas: cas.to_vec(), ..audit::Options::default() };
    match (audit::verify(run_dir, &options), step) {
        (Ok(_), _) => Ok(()),
        (Err(AuditLogError::Differs { path, what }), Some(_)) => {
            watcher.notice(&format!("warning: {}: {what}", path.display()));
            Ok(())
        }
        (Err(error), _) => Err(Failure::misconfigured(format!(
            "the run's audit log does not hold: {error}; `testudo audit verify --unfinished {}` says more. To go on without its history, \
             move audit.log and summary.json away",
            run_dir.path().display()
        ))),
    }
}

/// Cuts off what will be written again, and tells where the run goes on.
pub(super) fn make_ready(
    run_dir: &RunDir,
    resume: &Resume,
    spec: &JobSpec,
    watcher: &mut dyn Watcher,
) -> Result<(), Failure> {
    cut(run_dir, resume)?;
    watcher.notice(&place(resume, spec));
    Ok(())
}

/// Cuts off the metrics of what is done again.
pub(super) fn cut(run_dir: &RunDir, resume: &Resume) -> Result<(), Failure> {
    metrics::keep_until::<StepRecord>(&run_dir.metrics(), resume.step).map_err(Failure::failed)?;
    // The version that it goes on from is evaluated again.
    let before = resume.step.saturating_sub(1);
    metrics::keep_until::<EvaluationRecord>(&run_dir.evaluations(), before).map_err(Failure::failed)
}

/// Where a run goes on, in words.
pub(super) fn place(resume: &Resume, spec: &JobSpec) -> String {
    let steps = Plan::new(spec).steps();
    match resume.step == steps {
        true => format!("step {steps} is the last one: only evaluation and export are left"),
        false => format!("resuming from step {} of {steps}", resume.step),
    }
}

/// What a person may want to do next.
pub(super) fn advise(spec: &JobSpec, summary: &Summary) {
    let planned = Plan::new(spec).planned_steps();
    match summary.checkpoint_step {
        Some(step) if step == summary.steps && step < planned => {
            note!("  go on with: testudo run --resume {}", summary.run_dir.display());
        }
        newest if spec.checkpoints.at_end && newest != Some(summary.steps) => note!(
            "warning: the last checkpoint could not be written; {} says why",
            summary.run_dir.join("logs/scheduler-0.log").display()
        ),
        _ => {}
    }
}

/// Adds how to go on to the message of a run that failed, if it left a checkpoint.
pub(super) fn with_advice(failure: Failure, run_dir: &RunDir) -> Failure {
    let newest = Checkpoints::open(&run_dir.checkpoints()).and_then(|all| all.newest(None));
    match newest {
        Ok(whole) => Failure {
            message: format!(
                "{}\nits newest checkpoint is at step {}: go on with `testudo run --resume {}`",
                failure.message,
                whole.step(),
                run_dir.path().display()
            ),
            ..failure
        },
        Err(_) => failure,
    }
}

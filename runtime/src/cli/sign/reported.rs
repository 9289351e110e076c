//! What a run's audit log reports of its final model, for an operator who signs what a worker wrote.
//!
//! The log is checked as `testudo audit verify` does it, the signed job against the log; so what is believed is the scheduler's word,
//! signed by the audit log's key, and the operator's own job.

use std::path::{Path, PathBuf};

use clap::Args;
use testudo_actors::SignedJob;
use testudo_actors::audit::{Entry, Hex};
use testudo_kernels::ModelSpec;
use testudo_transport::pki::{bundle_der, read_public};

use crate::audit::{Options, read, verify};
use crate::checkpoint::safetensors::Metadata;
use crate::error::Failure;
use crate::job;
use crate::rundir::RunDir;

/// Whose word the model is held to.
#[derive(Debug, Args)]
pub(super) struct ReportedArguments {
    /// Sign only the model that the audit log in this run directory reports, by the hash of its parameters and its architecture
    #[arg(long, value_name = "RUN_DIR", requires = "dir", conflicts_with = "signature")]
    reported_by: Option<PathBuf>,
    /// The signed job of that run [default: job.signed in the run directory]
    #[arg(long, value_name = "FILE", requires = "reported_by")]
    job: Option<PathBuf>,
    /// The job's CA, in PEM [default: the one that the log names]
    #[arg(long, value_name = "FILE", requires = "reported_by")]
    ca: Option<PathBuf>,
}

impl ReportedArguments {
    /// The model that is reported; `None` if nobody asked.
    ///
    /// # Errors
    /// A log or a job that does not hold, or that reports no model.
    pub(super) fn model(&self) -> Result<Option<(ModelSpec, Metadata)>, Failure> {
        let Some(run_dir) = &self.reported_by else { return Ok(None) };
        let run = RunDir::open(run_dir).map_err(Failure::misconfigured)?;
        if !run.audit_log().exists() {
            return Err(Failure::misconfigured(format!("{} holds no audit log", run_dir.display())));
        }
        let cas = self.ca.iter().map(|file| certificates(file)).collect::<Result<_, _>>()?;
        let options = Options { cas, ..Options::default() };
        verify(&run, &options).map_err(Failure::failed)?;
        let (mut begun, mut end) = (None, None);
        read(&run.audit_log(), &options, |seen, entry| match entry {
            Some(Entry::Job { signed_blake3, .. }) => {
                begun = seen.trust.cloned().map(|trust| (*signed_blake3, trust, seen.at()));
            }
            Some(Entry::End { steps, params_blake3, .. }) => end = Some((*steps, *params_blake3)),
            _ => {}
        })
        .map_err(Failure::failed)?;
        let (Some((logged, trust, at)), Some((step, Some(params_blake3)))) = (begun, end) else {
            return Err(Failure::failed(format!("the audit log in {} reports no model", run_dir.display())));
        };
        let file = self.job.clone().unwrap_or_else(|| run.signed_job());
        let bytes = std::fs::read(&file).map_err(|why| Failure::file(&file, "cannot be read", why))?;
        if Hex::hash(&bytes) != logged {
            return Err(Failure::failed(format!(
                "{} is not the job that the audit log names",
                file.display()
            )));
        }
        let signed = SignedJob::from_bytes(&bytes).map_err(Failure::failed)?;
        let (spec, _) = signed.check(&trust, at).map_err(Failure::failed)?;
        let metadata = Metadata {
            job: spec.name,
            step,
            params_blake3: params_blake3.0,
            model: job::description(&spec.model),
        };
        Ok(Some((spec.model, metadata)))
    }
}

/// Who could change the file would decide whom this trusts.
fn certificates(file: &Path) -> Result<Vec<u8>, Failure> {
    let pem = read_public(file).map_err(Failure::misconfigured)?;
    bundle_der(&pem).map_err(|why| Failure::misconfigured(format!("{}: {why}", file.display())))
}

//! `testudo job`: an operator signs a cluster file, or the job once more that was signed, to go on from a checkpoint.

mod again;

use std::path::{Path, PathBuf};

use serde_json::json;
use testudo_actors::audit::Hex;
use testudo_actors::{JobSpec, SignedJob};
use testudo_transport::Identity;
use testudo_transport::pki::read_crl;

use super::node::{heed_crl, read_job};
use super::resume::place;
use crate::checkpoint::storage::{Disk, replace};
use crate::cli::args::JobArguments;
use crate::config::Config;
use crate::error::Failure;
use crate::say::say;
use crate::{job, node};

pub(super) fn job(arguments: &JobArguments) -> Result<(), Failure> {
    let (mut spec, operator, beside) = match (&arguments.signed, &arguments.file) {
        (Some(signed), _) => {
            let operator = Identity::load(&arguments.identity).map_err(Failure::misconfigured)?;
            let spec = read_job(signed, signed)?.open(&operator).map_err(Failure::misconfigured)?;
            (spec, operator, signed.clone())
        }
        (None, Some(file)) => of_cluster_file(file, arguments)?,
        (None, None) => return Err(Failure::misconfigured("which job? name a cluster file, or --signed")),
    };
    if let Some(path) = &arguments.crl {
        let installed = read_crl(path).and_then(|list| operator.trust().install_crl(&list));
        installed.map_err(|e| Failure::misconfigured(format!("{}: {e}", path.display())))?;
    }
    spec.resume = match &arguments.resume {
        Some(run_dir) => Some(again::checkpoint(run_dir, arguments, &spec, &operator)?),
        None => None,
    };
    let signed = SignedJob::sign(&spec, &operator).map_err(Failure::misconfigured)?;
    // Checked as every node will check it: a job signed by another role, or for another job, ends here.
    signed.open(&operator).map_err(Failure::misconfigured)?;
    let out = arguments.out.clone().unwrap_or(beside);
    replace(&Disk, &out, &signed.to_bytes()).map_err(|e| Failure::file(&out, "cannot be written", e))?;
    if arguments.json {
        let hash = Hex::hash(&signed.to_bytes());
        let mut said = json!({ "job": spec.name, "operator": operator.id(), "out": out, "blake3": hash });
        if let (Some(resume), Some(said)) = (&spec.resume, said.as_object_mut()) {
            said.insert("resumed_from_step".to_owned(), resume.step.into());
        }
        say!("{said}");
        return Ok(());
    }
    let place = spec.resume.map(|resume| format!(", {}", place(&resume, &spec))).unwrap_or_default();
    say!("{} signed by {} in {}{place}", spec.name, operator.id(), out.display());
    Ok(())
}

/// The job of a cluster file and its data, who signs it, and where it goes.
fn of_cluster_file(file: &Path, arguments: &JobArguments) -> Result<(JobSpec, Identity, PathBuf), Failure> {
    let config = Config::load(file, &arguments.set).map_err(Failure::misconfigured)?;
    let operator = Identity::load(&arguments.identity).map_err(Failure::misconfigured)?;
    if arguments.resume.is_some() && arguments.crl.is_none() {
        heed_crl(&config, &operator)?;
    }
    let data = node::data(&config).map_err(Failure::misconfigured)?;
    Ok((job::spec(&config, data.spec()), operator, file.with_extension("job")))
}

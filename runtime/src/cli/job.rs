//! `testudo job`: an operator signs a cluster file.

use serde_json::json;
use testudo_actors::SignedJob;
use testudo_actors::audit::Hex;
use testudo_transport::Identity;

use crate::checkpoint::storage::{Disk, replace};
use crate::cli::args::JobArguments;
use crate::config::Config;
use crate::error::Failure;
use crate::say::say;
use crate::{job, node};

pub(super) fn job(arguments: &JobArguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.file, &arguments.set).map_err(Failure::misconfigured)?;
    let operator = Identity::load(&arguments.identity).map_err(Failure::misconfigured)?;
    let data = node::data(&config).map_err(Failure::misconfigured)?;
    let spec = job::spec(&config, data.spec());
    let signed = SignedJob::sign(&spec, &operator).map_err(Failure::misconfigured)?;
    // Checked as every node will check it: a job signed by another role, or for another job, ends here.
    signed.open(&operator).map_err(Failure::misconfigured)?;
    let out = arguments.out.clone().unwrap_or_else(|| arguments.file.with_extension("job"));
    replace(&Disk, &out, &signed.to_bytes()).map_err(|e| Failure::file(&out, "cannot be written", e))?;
    match arguments.json {
        true => {
            let hash = Hex::hash(&signed.to_bytes());
            say!("{}", json!({ "job": spec.name, "operator": operator.id(), "out": out, "blake3": hash }));
        }
        false => say!("{} signed by {} in {}", spec.name, operator.id(), out.display()),
    }
    Ok(())
}

//! `testudo job --resume`: what a cluster goes on from whose nodes are started one by one.
//!
//! 1. The checkpoint is whole, of this job, and signed under the operator's own CA, whatever its folder says of CAs. Where there is an
//!    audit log, that holds, and names the checkpoint or the CA.
//! 2. It is the newest whose parts are undamaged; newer ones are passed over, each with a notice. One that was named by its step is
//!    taken, or none.
//! 3. Nothing in the run directory is changed: whoever starts the job does that.

use std::path::Path;

use testudo_actors::message::StatusReport;
use testudo_actors::{JobSpec, Resume};
use testudo_transport::Identity;

use crate::checkpoint::keys::Identities;
use crate::cli::args::JobArguments;
use crate::cli::resume;
use crate::error::Failure;
use crate::run::Watcher;
use crate::rundir::RunDir;
use crate::say::note;

/// The checkpoint in `run_dir` that `spec` goes on from.
pub(super) fn checkpoint(
    run_dir: &Path,
    arguments: &JobArguments,
    spec: &JobSpec,
    operator: &Identity,
) -> Result<Resume, Failure> {
    let run_dir = RunDir::open(run_dir).map_err(Failure::misconfigured)?;
    let key = arguments.identity_file.as_deref().map(Identities::load).transpose();
    let key = key.map_err(Failure::misconfigured)?;
    resume::check_audit_log(&run_dir, arguments.step, &mut Aside)?;
    resume::under(&run_dir, spec, operator.ca_pem(), arguments.step, key.as_ref(), &mut Aside)
}

/// Notices go to standard error.
struct Aside;

impl Watcher for Aside {
    fn report(&mut self, _: &StatusReport) {}

    fn notice(&mut self, text: &str) {
        note!("{text}");
    }
}

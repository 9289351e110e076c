//! `testudo job --resume`: what a cluster goes on from whose nodes are started one by one.
//!
//! 1. The checkpoint is whole, of this job, and signed under the operator's own CA, whatever its folder says of CAs, by a scheduler or
//!    an operator whose certificate has not been taken back. Where there is an audit log, that holds, and all of it is of that CA.
//! 2. It is the newest whose parts are undamaged; newer ones are passed over, each with a notice, and a newest whose manifest or signature
//!    does not hold ends the command: that may hide that newer ones were taken away. One that was named by its step is taken, or none:
//!    then neither the log nor the chain's head is asked whether newer ones were there.
//! 3. Nothing in the run directory is changed: whoever starts the job does that. None is signed for while its run is under way, which
//!    is no misconfiguration: it passes, as may what keeps a file that is there from being read.

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
    run_dir.check_idle().map_err(Failure::failed)?;
    let key = arguments.identity_file.as_deref().map(Identities::load).transpose();
    let key = key.map_err(Failure::misconfigured)?;
    resume::check_audit_log(&run_dir, arguments.step, &[operator.trust().ca_der()], &mut Aside)?;
    resume::under(&run_dir, spec, operator, arguments.step, key.as_ref(), &mut Aside)
}

/// Notices go to standard error.
struct Aside;

impl Watcher for Aside {
    fn report(&mut self, _: &StatusReport) {}

    fn notice(&mut self, text: &str) {
        note!("{text}");
    }
}

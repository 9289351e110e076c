//! What a run that was started node by node has come to, in a file.
//!
//! The file is open before the scheduler gives up its right to open any, and empty until the run has ended in order: what stands in it
//! is never of a run before.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use testudo_actors::JobSpec;
use testudo_actors::message::Finished;

use crate::config::Config;
use crate::error::Failure;
use crate::process::handover;
use crate::report::summary::Summary;
use crate::rundir::RunDir;

/// The file, and since when the scheduler has run.
pub(super) struct SummaryFile {
    path: PathBuf,
    file: File,
    begun: Instant,
}

impl SummaryFile {
    pub(super) fn open(path: &Path) -> Result<SummaryFile, Failure> {
        let emptied = handover::append(path).and_then(|file| file.set_len(0).map(|()| file));
        let file = emptied.map_err(|e| {
            Failure::misconfigured(format!("{}: the summary cannot be written: {e}", path.display()))
        })?;
        Ok(SummaryFile { path: path.to_owned(), file, begun: Instant::now() })
    }

    pub(super) fn write(
        mut self,
        config: &Config,
        job: &JobSpec,
        run_dir: &RunDir,
        finished: &Finished,
        audit_head: Option<String>,
    ) -> Result<(), Failure> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let summary = Summary::of(config, job, run_dir.path(), finished, seconds, audit_head);
        summary
            .write_to(&mut self.file)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Failure::file(&self.path, "cannot be written", e))
    }
}

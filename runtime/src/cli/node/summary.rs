//! What a run that was started node by node has come to, in a file.
//!
//! The file is open before the scheduler gives up its right to open any. It is emptied before anything else is changed that a former
//! run left (but the audit log, which goes on), and stays so until the run has ended in order: what stands in it is never of a run
//! before. A process that is killed while it writes may leave a part; one that finds the disk full empties it again.

use std::fs::File;
use std::io::Write as _;
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
    /// The file, with what is in it.
    pub(super) fn open(path: &Path) -> Result<SummaryFile, Failure> {
        let file = handover::append(path).map_err(|e| cannot(path, &e))?;
        Ok(SummaryFile { path: path.to_owned(), file, begun: Instant::now() })
    }

    /// Removes what a former run left in it.
    pub(super) fn empty(&self) -> Result<(), Failure> {
        self.file.set_len(0).map_err(|e| cannot(&self.path, &e))
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
        let mut text = Vec::new();
        let written = summary
            .write_to(&mut text)
            .and_then(|()| self.file.write_all(&text))
            .and_then(|()| self.file.sync_data());
        if written.is_err() {
            // Half of an object is worse than none. What stood in the way of writing is what is told.
            let _ = self.file.set_len(0);
        }
        written.map_err(|e| Failure::file(&self.path, "cannot be written", e))
    }
}

fn cannot(path: &Path, why: &std::io::Error) -> Failure {
    Failure::misconfigured(format!("{}: the summary cannot be written: {why}", path.display()))
}

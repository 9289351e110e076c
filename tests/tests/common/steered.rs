//! A run of the small job that goes on far longer than a test looks at it, and an operator's commands on it.

use std::path::{Path, PathBuf};

use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Started};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Far longer than any test looks at it.
pub(crate) const STEPS: &str = "training.max_steps=100000";

/// A cluster file and a place for its runs, gone when the test is over.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { folder, file }
    }

    pub(crate) fn start(&self, name: &str, options: &[&str]) -> (Started, PathBuf) {
        let dir = self.folder.path().join(name);
        let arguments =
            [&["run", text(&self.file), "--run-dir", text(&dir), "--json", "--quiet"], options].concat();
        (process::start(PROGRAM, &arguments, &dir), dir)
    }
}

/// Runs an operator's command on the run in `dir`.
pub(crate) fn operate(command: &str, dir: &Path, options: &[&str]) -> Ended {
    process::run(PROGRAM, &[&[command, text(dir)], options].concat(), Path::new("/no/mark"))
}

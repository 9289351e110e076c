//! A folder with a cluster file and room for its runs by real processes, gone when the test is over.

use std::path::{Path, PathBuf};

use crate::files::{self, text};
use crate::process::{self, Ended, Started, UNHURRIED};

/// Where one test's runs are.
#[derive(Debug)]
pub struct Place {
    program: &'static str,
    folder: tempfile::TempDir,
    /// The cluster file.
    pub file: PathBuf,
}

impl Place {
    /// For `program`, with the small job.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn small(program: &'static str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let file = files::write_job(folder.path());
        Place { program, folder, file }
    }

    /// For `program`, with a cluster file that is elsewhere.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[must_use]
    pub fn of(program: &'static str, file: &Path) -> Place {
        Place { program, folder: tempfile::tempdir().unwrap(), file: file.to_owned() }
    }

    /// The run directory of that name, or another path below the folder.
    #[must_use]
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a run whose directory has that name; no node of it counts as dead that is only slow.
    #[must_use]
    pub fn start(&self, name: &str, options: &[&str]) -> Started {
        let dir = self.run_dir(name);
        let first = ["run", text(&self.file), "--run-dir", text(&dir), "--json"];
        process::start(self.program, &[&first[..], &UNHURRIED, options].concat(), &dir)
    }

    /// The same, to its end.
    #[must_use]
    pub fn run(&self, name: &str, options: &[&str]) -> Ended {
        self.start(name, options).wait()
    }

    /// Resumes the run of that name, to its end.
    #[must_use]
    pub fn resume(&self, name: &str, options: &[&str]) -> Ended {
        let dir = self.run_dir(name);
        let first = ["run", "--resume", text(&dir), "--json"];
        process::run(self.program, &[&first[..], options].concat(), &dir)
    }
}

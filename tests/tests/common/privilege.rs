//! What tests of root's runs share: a job that is root's alone, and whose the files are that a run leaves.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use testudo_tests::files::{self, text};
use testudo_tests::process::{self, Ended, Started};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

/// Debian's `nobody`; any number but root's would do.
pub(crate) const NOBODY: u32 = 65534;

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not checked: this takes root to set up");
    }
    root
}

/// A job in a folder that root alone may enter, with files that root alone may read.
pub(crate) struct Roots {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) file: PathBuf,
}

impl Roots {
    pub(crate) fn new() -> Roots {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let file = files::write_job(folder.path());
        for entry in std::fs::read_dir(folder.path().join("data")).unwrap() {
            std::fs::set_permissions(entry.unwrap().path(), PermissionsExt::from_mode(0o600)).unwrap();
        }
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        Roots { folder, file }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn run(&self, name: &str, options: &[&str]) -> Ended {
        self.start_with(PROGRAM, &[], name, options).wait()
    }

    /// `before` comes before the program: `setpriv`, for instance.
    pub(crate) fn start_with(&self, program: &str, before: &[&str], name: &str, options: &[&str]) -> Started {
        let dir = self.path(name);
        let arguments =
            [before, &["run", text(&self.file), "--run-dir", text(&dir), "--json"], options].concat();
        process::start(program, &arguments, &dir)
    }

    pub(crate) fn testudo(&self, arguments: &[&str]) -> Ended {
        process::run(PROGRAM, arguments, self.folder.path())
    }
}

/// Root's record of what it named for a run.
pub(crate) const RECORD: &str = "inputs.json";

/// The owners of everything in `dir`, itself included, as the set of their numbers: of everything but root's record, which must be
/// root's.
pub(crate) fn owners(dir: &Path) -> Vec<u32> {
    let mut all = vec![std::fs::symlink_metadata(dir).unwrap().uid()];
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let found = std::fs::symlink_metadata(&path).unwrap();
            if path == dir.join(RECORD) {
                assert_eq!(found.uid(), 0, "what root named is root's word");
                continue;
            }
            all.push(found.uid());
            if found.is_dir() {
                folders.push(path);
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

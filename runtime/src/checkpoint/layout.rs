//! Where everything about a run's checkpoints lies. These names stand here and nowhere else.
//!
//! ```text
//! RUN_DIR/checkpoint/
//!   key.txt                               the run's own age identity, if the job names no recipients
//!   ca.pem                                the CA of the run, and one more for each time that it was resumed
//!   head.json                             the newest checkpoint, signed
//!   deletions.jsonl                       what was deleted, when and why
//!   step-00000060/server-0.part.age       server 0's slices at step 60, encrypted
//!   step-00000060/worker-0.part.age       the residuals of worker 0's logical shards, where error feedback keeps any
//!   step-00000060/manifest.sig            the manifest's signature
//!   step-00000060/manifest.json           names every part by its hash; the checkpoint is whole once this is here
//!   superseded/step-00000080-0123456789abcdef/   what was newer when the run was resumed from an earlier step
//!   final/                                the exported model
//! ```

use std::path::{Path, PathBuf};

/// The names under one checkpoint folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    folder: PathBuf,
}

const STEP: &str = "step-";
/// Digits of a step in a name: names then sort by step up to a hundred million.
const DIGITS: usize = 8;

impl Layout {
    /// The layout under `folder`, the run directory's `checkpoint`.
    #[must_use]
    pub fn new(folder: &Path) -> Layout {
        Layout { folder: folder.to_path_buf() }
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The run's own age identity.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.folder.join("key.txt")
    }

    /// The certificates of the run's CAs.
    #[must_use]
    pub fn trust(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The newest checkpoint's name.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.folder.join("head.json")
    }

    /// The record of deletions.
    #[must_use]
    pub fn deletions(&self) -> PathBuf {
        self.folder.join("deletions.jsonl")
    }

    /// Where checkpoints go that a resumption left behind.
    #[must_use]
    pub fn superseded(&self) -> PathBuf {
        self.folder.join("superseded")
    }

    /// The folder of one step.
    #[must_use]
    pub fn step(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{STEP}{step:0DIGITS$}"))
    }

    /// The manifest of one step.
    #[must_use]
    pub fn manifest(&self, step: u64) -> PathBuf {
        self.step(step).join("manifest.json")
    }

    /// The manifest's signature.
    #[must_use]
    pub fn signature(&self, step: u64) -> PathBuf {
        self.step(step).join("manifest.sig")
    }

    /// One server's part.
    #[must_use]
    pub fn part(&self, step: u64, server: u32) -> PathBuf {
        self.step(step).join(part_name(server))
    }

    /// One worker's part.
    #[must_use]
    pub fn residuals(&self, step: u64, worker: u32) -> PathBuf {
        self.step(step).join(residuals_name(worker))
    }

    /// The steps that have a folder, in order, whole or not. A folder whose name is not exactly what is written for a step
    /// is nobody's.
    ///
    /// # Errors
    /// The operating system's refusal; a folder that is not there holds none.
    pub fn steps(&self) -> std::io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|n| n.strip_prefix(STEP)).and_then(|n| n.parse::<u64>().ok());
            if let Some(step) = step
                && entry.file_type()?.is_dir()
                && self.step(step).file_name() == Some(&name)
            {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

/// The file name of a server's part.
#[must_use]
pub fn part_name(server: u32) -> String {
    format!("server-{server}.part.age")
}

/// The file name of a worker's part.
#[must_use]
pub fn residuals_name(worker: u32) -> String {
    format!("worker-{worker}.part.age")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_by_their_exact_names() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        for name in ["step-00000060", "step-00000007", "step-60", "step-+0000001", "step-", "other", "final"]
        {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::create_dir(layout.step(1_234_567_890_123)).unwrap();
        std::fs::write(folder.path().join("step-00000061"), "a file").unwrap();
        assert_eq!(layout.steps().unwrap(), [7, 60, 1_234_567_890_123]);
        assert!(Layout::new(&folder.path().join("none")).steps().unwrap().is_empty());
    }
}

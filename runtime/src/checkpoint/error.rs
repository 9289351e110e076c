//! What can be wrong with checkpoints, by blame.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use testudo_transport::PkiError;

/// Why a checkpoint cannot be written, found, trusted or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// No checkpoint there.
    #[error("{} holds no whole checkpoint{what}", path.display())]
    None {
        /// The run directory's checkpoint folder.
        path: PathBuf,
        /// Of which step, if one was asked for.
        what: String,
    },
    /// The manifest or head is no such file.
    #[error("{} cannot be read: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The signature does not hold.
    #[error("{}: {reason}; it was altered, or is of another run: do not use it", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// A file is not what its manifest says.
    #[error("{}: {reason}; it is damaged or was altered: use an earlier checkpoint (`--step`)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A newer checkpoint was here.
    #[error("{} was rolled back: {reason}; name a step with `--step` if that is meant", path.display())]
    RolledBack {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The checkpoint is not one of this job.
    #[error("the checkpoint is of another job: {0}")]
    OtherJob(String),
    /// The job was under way already.
    #[error(
        "this very job has written the checkpoint at step {step} and would begin again at step {begins}: sign it anew with \
         `testudo job --resume`, to go on from the newest or from a step that you name"
    )]
    Begun {
        /// Of a checkpoint that it wrote.
        step: u64,
        /// What the job begins with.
        begins: u64,
    },
    /// The key does not open it, or is no key.
    #[error("{}: {reason}", path.display())]
    Key {
        /// The key file, or what it should open.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A recipient that is none.
    #[error("{text:?} is no age recipient ({reason}): give X25519 public keys, `age1...`")]
    Recipient {
        /// What was given.
        text: String,
        /// What the parser said.
        reason: String,
    },
    /// A step that cannot follow.
    #[error(
        "step {step} cannot be committed: the newest checkpoint is at step {newest}, and steps only grow"
    )]
    NotNewer {
        /// The step.
        step: u64,
        /// The newest.
        newest: u64,
    },
    /// A key or certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl CheckpointError {
    /// Whether it may pass by itself: something is there and could not be read. What is missing, a link, or kept from this user stays so.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        const LASTING: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ACCESS];
        match self {
            CheckpointError::Io { source, .. } => {
                Errno::from_io_error(source).is_some_and(|why| !LASTING.contains(&why))
            }
            _ => false,
        }
    }

    /// The operating system's refusal to do `action` to `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
        let path = path.to_path_buf();
        move |source| CheckpointError::Io { action, path, source }
    }

    pub(super) fn malformed(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
        CheckpointError::Malformed { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(super) fn damaged(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
        CheckpointError::Damaged { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(super) fn untrusted(path: &Path, reason: impl std::fmt::Display) -> CheckpointError {
        CheckpointError::Untrusted { path: path.to_path_buf(), reason: reason.to_string() }
    }
}

impl From<CheckpointError> for testudo_actors::CheckpointError {
    fn from(error: CheckpointError) -> Self {
        testudo_actors::CheckpointError(crate::rundir::in_words(&error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_and_cannot_be_read_may_pass() {
        let of = |why: Errno| CheckpointError::io("read", Path::new("manifest.json"))(why.into());
        assert!([Errno::IO, Errno::STALE, Errno::TIMEDOUT].into_iter().all(|why| of(why).may_pass()));
        let lasting = [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ACCESS];
        assert!(!lasting.into_iter().any(|why| of(why).may_pass()));
        assert!(!CheckpointError::damaged(Path::new("a"), "it is shorter").may_pass());
    }
}

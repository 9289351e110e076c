//! The folder in which a server keeps what must outlive it: the owner's alone, nothing but a server's, and one server's at a
//! time. It is reached through an open descriptor, so that whoever the server goes on as need not be able to enter the
//! folders above.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use testudo_transport::pki::is_ours;

use super::ServeError;
use crate::process::locked::Locked;
use crate::process::{RunAs, handover};
use crate::rundir::reached;

/// Everything for the owner, nothing for anyone else.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission to write, of group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The folder, made and checked.
pub(super) struct StateDir {
    path: PathBuf,
    at: PathBuf,
    held: OwnedFd,
    _lock: Locked,
}

/// What a server keeps in it, beside what a crash may leave of writing one of them.
const NAMES: [&str; 3] = ["budgets", "lock", "tokens"];

/// Makes the folder, or checks the one that is there.
///
/// # Errors
/// It is a link, another user's, others can write in it, or it holds what is no server's.
pub(crate) fn make(path: &Path) -> Result<(), ServeError> {
    let state = |what: String| ServeError::State { path: path.to_owned(), what };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|why| state(format!("cannot be made: {why}; --state names another folder")))?;
    let found = std::fs::symlink_metadata(path).map_err(|why| state(why.to_string()))?;
    if !found.is_dir() || !is_ours(found.uid()) {
        return Err(state("is a link or another user's; what is kept there must be this user's".to_owned()));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(state("others than its owner can write in it; chmod 700 mends that".to_owned()));
    }
    // What is in it may be given to another user: so nothing else may be.
    for entry in std::fs::read_dir(path).map_err(|why| state(why.to_string()))? {
        let name = entry.map_err(|why| state(why.to_string()))?.file_name();
        let left =
            name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(".tmp")?.split('.').next());
        if !NAMES.iter().any(|known| *known == name || Some(*known) == left) {
            let what =
                format!("holds {name:?}, which is no server's; --state names a folder for nothing else");
            return Err(state(what));
        }
    }
    Ok(())
}

impl StateDir {
    /// Makes or checks the folder, and takes it for this process.
    ///
    /// # Errors
    /// As for [`make`], or another server has it: two would each give out what the other has given.
    pub(super) fn open(path: &Path) -> Result<StateDir, ServeError> {
        make(path)?;
        let state = |what: String| ServeError::State { path: path.join("lock"), what };
        let held = handover::hold(path).map_err(|why| state(why.to_string()))?;
        let at = reached(&held, path);
        let lock_path = at.join("lock");
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
        let lock = options.open(&lock_path).map_err(|why| state(why.to_string()))?;
        match Locked::new(lock) {
            Ok(lock) => Ok(StateDir { path: path.to_owned(), at, held, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(state("another server keeps its accounts here".to_owned())),
            Err(why) => Err(state(why.to_string())),
        }
    }

    /// Where a file of it is.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Gives it, with what is in it, to the user that the server goes on as.
    ///
    /// # Errors
    /// It is a third user's, or the operating system refuses.
    pub(super) fn hand_over(&self, user: &RunAs) -> Result<(), ServeError> {
        let state = |what: String| ServeError::State { path: self.path.clone(), what };
        let owner = handover::owner(&self.held).map_err(|why| state(why.to_string()))?;
        if ![0, user.uid()].contains(&owner) {
            let name = user.name();
            return Err(state(format!(
                "is the user {owner}'s, and cannot be used as `{name}`; --run-as names a user"
            )));
        }
        handover::hand_over(&self.held, user)
            .map_err(|why| state(format!("cannot be given to the user `{}`: {why}", user.name())))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_folder_is_private_and_one_servers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let open = StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let refused = |path: &Path| StateDir::open(path).map(|_| ()).unwrap_err().to_string();
        assert!(refused(&path).contains("another server"));
        drop(open);
        StateDir::open(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o770)).unwrap();
        assert!(refused(&path).contains("chmod 700"));
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        for file in ["budgets", "tokens", ".budgets.7.tmp"] {
            std::fs::write(path.join(file), "").unwrap();
        }
        StateDir::open(&path).unwrap();
        std::fs::write(path.join("letters"), "").unwrap();
        assert!(refused(&path).contains("letters"), "a folder for other things is not taken");
        assert!(refused(&link).contains("link"));
    }
}

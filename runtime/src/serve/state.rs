//! The folder in which a server keeps what must outlive it: the owner's alone, and one server's at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::ServeError;

/// Everything for the owner, nothing for anyone else.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission to write, of group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The folder, made and checked.
pub(super) struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Makes the folder, or checks the one that is there.
///
/// # Errors
/// It is a link, another user's, or others can write in it.
pub(crate) fn make(path: &Path) -> Result<(), ServeError> {
    let state = |what: String| ServeError::State { path: path.to_owned(), what };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .map_err(|why| state(format!("cannot be made: {why}; --state names another folder")))?;
    let found = std::fs::symlink_metadata(path).map_err(|why| state(why.to_string()))?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(state("is a link or another user's; what is kept there must be this user's".to_owned()));
    }
    match found.mode() & WRITABLE_BY_OTHERS {
        0 => Ok(()),
        _ => Err(state("others than its owner can write in it; chmod 700 mends that".to_owned())),
    }
}

impl StateDir {
    /// Makes or checks the folder, and takes it for this process.
    ///
    /// # Errors
    /// As for [`make`], or another server has it: two would each give out what the other has given.
    pub(super) fn open(path: &Path) -> Result<StateDir, ServeError> {
        make(path)?;
        let lock_path = path.join("lock");
        let state = |what: String| ServeError::State { path: lock_path.clone(), what };
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
        let lock = options.open(&lock_path).map_err(|why| state(why.to_string()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDir { path: path.to_owned(), _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(state("another server keeps its accounts here".to_owned())),
            Err(why) => Err(state(why.to_string())),
        }
    }

    /// Where a file of it is.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
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
        assert!(refused(&link).contains("link"));
    }
}

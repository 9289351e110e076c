//! Locks on files that end when they are let go.
//!
//! A lock of `flock(2)` is an open file's. A child that another thread of this process starts has this open file too, until it has come to
//! its own program: closed here alone, the file would stay locked for that long.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A file that is locked until this is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Locked {
    /// Locks `file`, for this process alone.
    ///
    /// # Errors
    /// [`Errno::WOULDBLOCK`] where somebody else has locked it; what the operating system said.
    pub(crate) fn new(file: File) -> Result<Locked, Errno> {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Locked(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Whether somebody has locked `file`. Where there are no locks, nobody has.
pub(crate) fn is_locked(file: &File) -> bool {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            let _ = flock(file, FlockOperation::Unlock);
            false
        }
        Err(why) => why == Errno::WOULDBLOCK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second descriptor is what a child has that was started meanwhile, and is not its own program yet.
    #[test]
    fn a_lock_ends_whoever_still_has_the_open_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (file, other) = (File::create(&path).unwrap(), || File::open(&path).unwrap());
        let childs = file.try_clone().unwrap();
        let locked = Locked::new(file).unwrap();
        assert!(is_locked(&other()) && matches!(Locked::new(other()), Err(Errno::WOULDBLOCK)));
        drop(locked);
        let asked = other();
        assert!(!is_locked(&asked));
        drop(Locked::new(other()).unwrap());
        drop((asked, childs));
    }
}

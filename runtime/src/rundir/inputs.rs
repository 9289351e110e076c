//! Which inputs root itself has named for a run.
//!
//! A run that root starts goes on as another user, and its directory is that user's from then on: what its cluster file says
//! later is that user's word, and may name what only root may read. So root leaves a record of what it named itself, as a file
//! of its own in a directory that is not: that user can remove it, and can make no other.
//!
//! 1. A record counts only if it is a regular file of root's that has one name and that nobody else may write, and if it names the
//!    directory in which it lies: one that was moved here from another run counts for nothing.
//! 2. It is written as a new file, through the directory's descriptor: whatever lay there before is not written to.
//! 3. It is never given away with the directory (`process/handover.rs`).

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, openat, unlinkat};
use serde::{Deserialize, Serialize};

/// The record's name in a run directory.
pub(crate) const FILE: &str = "inputs.json";

/// Largest record that is read, in bytes: five paths, as long as paths may be, in JSON.
const FILE_MOST: u64 = 128 << 10;

/// Permission to write, of group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The directory's device and inode.
    directory: (u64, u64),
    /// Absolute paths.
    named: Vec<PathBuf>,
}

/// Writes down, as root, that root named these paths for the run in `directory`.
///
/// # Errors
/// The operating system's refusal.
pub(crate) fn record(directory: impl AsFd, named: Vec<PathBuf>) -> io::Result<()> {
    let record = Record { directory: place(&directory)?, named };
    let text = serde_json::to_vec(&record)?;
    match unlinkat(&directory, FILE, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&directory, FILE, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(&text)
}

/// The paths that root named for the run in `directory`: none without a record that counts.
#[must_use]
pub(crate) fn recorded(directory: impl AsFd) -> Vec<PathBuf> {
    read(directory).unwrap_or_default()
}

fn read(directory: impl AsFd) -> Option<Vec<PathBuf>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(&directory, FILE, flags, Mode::empty()).ok()?);
    let found = file.metadata().ok()?;
    let is_roots = found.uid() == 0 && found.nlink() == 1 && found.mode() & WRITABLE_BY_OTHERS == 0;
    if !found.is_file() || !is_roots || found.len() > FILE_MOST {
        return None;
    }
    let mut text = Vec::new();
    file.take(FILE_MOST).read_to_end(&mut text).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let is_here = place(&directory).is_ok_and(|place| place == record.directory);
    let are_absolute = record.named.iter().all(|path| Path::is_absolute(path));
    (is_here && are_absolute).then_some(record.named)
}

fn place(directory: impl AsFd) -> io::Result<(u64, u64)> {
    let found = fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown};

    use super::*;
    use crate::process::handover;

    /// Invariants 1 and 2. Checks nothing for others than root.
    #[test]
    fn only_roots_own_record_of_this_directory_counts() {
        if !crate::process::user::is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("run")).unwrap();
        std::fs::create_dir_all(at("other")).unwrap();
        let (run, other) = (handover::hold(&at("run")).unwrap(), handover::hold(&at("other")).unwrap());
        let named = vec![PathBuf::from("/data"), PathBuf::from("/key.pem")];
        assert!(recorded(&run).is_empty(), "there is none");
        record(&run, named.clone()).unwrap();
        assert_eq!(recorded(&run), named);
        let (file, moved) = (at("run").join(FILE), at("other").join(FILE));
        std::fs::rename(&file, &moved).unwrap();
        assert!(recorded(&other).is_empty(), "it names another directory");
        std::fs::hard_link(&moved, &file).unwrap();
        assert!(recorded(&run).is_empty(), "it has two names");
        std::fs::remove_file(&moved).unwrap();
        assert_eq!(recorded(&run), named);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(recorded(&run).is_empty(), "others may write it");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        chown(&file, Some(7), Some(7)).unwrap();
        assert!(recorded(&run).is_empty(), "it is another user's");
        std::fs::rename(&file, at("theirs")).unwrap();
        std::os::unix::fs::symlink(at("theirs"), &file).unwrap();
        assert!(recorded(&run).is_empty(), "it is a link");
        // What lay there is not written to.
        let theirs = std::fs::read(at("theirs")).unwrap();
        record(&run, vec![PathBuf::from("/new")]).unwrap();
        assert_eq!(recorded(&run), [PathBuf::from("/new")]);
        assert_eq!(std::fs::read(at("theirs")).unwrap(), theirs);
        std::fs::write(&file, "{\"directory\":[0,0]}").unwrap();
        assert!(recorded(&run).is_empty(), "it is none");
    }
}

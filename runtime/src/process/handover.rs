//! A run's directory becomes the user's that the run will go on as.
//!
//! Root walks a folder here that may have been another user's before, so nothing is taken for what it is called: every entry
//! is opened without following links, looked at, and given away through that same descriptor; and of what is not root's, or
//! has a second name somewhere, nothing is.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat};
use rustix::io::{Errno, Result};

use super::RunAs;
use crate::rundir::inputs;

/// Folders in one another at most: a run's are four.
const DEPTH_MOST: usize = 16;

/// Gives the folder that `folder` is open on, and what root has made below it, to `user`.
///
/// # Errors
/// The operating system's refusal; a part may have been given away.
pub fn hand_over(folder: &OwnedFd, user: &RunAs) -> Result<()> {
    // Last, so that nobody changes what is below while it is looked at, unless he could before.
    below(folder, user, DEPTH_MOST)?;
    give(folder, user)
}

fn below(folder: &OwnedFd, user: &RunAs, depth: usize) -> Result<()> {
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    let listing = openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&listing)? {
        let entry = entry?;
        // Root's record of what it named stays root's, or it would be worth nothing.
        let is_record = depth == DEPTH_MOST && entry.file_name().to_bytes() == inputs::FILE.as_bytes();
        if is_record || matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = match openat(&listing, entry.file_name(), flags, Mode::empty()) {
            Ok(entry) => entry,
            // Nodes that run already come and go.
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(fstat(&entry)?.st_mode) == FileType::Directory {
            below(&entry, user, depth - 1)?;
        }
        give(&entry, user)?;
    }
    Ok(())
}

/// Gives one file or folder away, if it is root's and nobody else has a name for it.
fn give(entry: &OwnedFd, user: &RunAs) -> Result<()> {
    let found = fstat(entry)?;
    let ours = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => found.st_nlink == 1,
        _ => false,
    };
    if !ours || found.st_uid != 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    chownat(entry.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// Opens a folder for its name alone: what lies in it is then reached through the descriptor, wherever the folder stands and
/// whoever may enter those above it. A link is followed only if it is this user's or root's: what root holds it may give away.
///
/// # Errors
/// The operating system's refusal, or it is another's link.
pub fn hold(path: &Path) -> std::io::Result<OwnedFd> {
    // With a slash at its end, the name of a link would be the folder's.
    let path: PathBuf = path.components().collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | followed(&path)?;
    Ok(openat(CWD, &path, flags, Mode::empty())?)
}

/// Opens a file to add to, made for its owner alone if it is not there. Links are judged as by [`hold`].
///
/// # Errors
/// As above.
pub fn append(path: &Path) -> std::io::Result<File> {
    let flags = followed(path)?.bits().cast_signed();
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)
}

/// Makes a file to add to in a folder, for its owner alone; the folder's link is judged as by [`hold`].
///
/// # Errors
/// As above, or the file is there already.
pub fn create_in(folder: &Path, name: &str) -> std::io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(hold(folder)?, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Whether what `path` names may be followed if it is a link.
fn followed(path: &Path) -> std::io::Result<OFlags> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => match found.uid() {
            owner if [0, rustix::process::geteuid().as_raw()].contains(&owner) => Ok(OFlags::empty()),
            owner => Err(std::io::Error::other(format!(
                "it is a link that the user {owner} made: name what it stands for, if that is meant"
            ))),
        },
        // Should it become one now, the open fails.
        _ => Ok(OFlags::NOFOLLOW),
    }
}

/// Whose a folder is.
///
/// # Errors
/// The operating system's refusal.
pub fn owner(folder: &OwnedFd) -> std::io::Result<u32> {
    Ok(fstat(folder)?.st_uid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};

    use super::*;

    /// Checks nothing for others than root.
    #[test]
    fn anothers_links_lead_nowhere() {
        if !super::super::user::is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("precious")).unwrap();
        std::fs::write(at("precious/file"), "root's").unwrap();
        for (link, target) in [("theirs", "precious"), ("their-file", "precious/file")] {
            symlink(at(target), at(link)).unwrap();
            std::os::unix::fs::lchown(at(link), Some(7), Some(7)).unwrap();
        }
        for name in ["theirs", "theirs/", "theirs/."] {
            let error = hold(&at(name)).unwrap_err().to_string();
            assert!(error.contains("the user 7 made"), "{name}: {error}");
        }
        assert!(append(&at("their-file")).is_err());
        assert_eq!(std::fs::read(at("precious/file")).unwrap(), b"root's");
        // Root's own are followed, as are folders and files by their names.
        symlink(at("precious"), at("ours")).unwrap();
        for name in ["ours", "precious"] {
            hold(&at(name)).unwrap();
        }
        assert!(create_in(&at("theirs"), "made").is_err());
        append(&at("precious/file")).unwrap();
        append(&at("new")).unwrap();
        assert_eq!(std::fs::metadata(at("new")).unwrap().mode() & 0o777, 0o600);
    }

    /// Invariant 5 of the module above. Checks nothing for others than root.
    #[test]
    fn what_root_made_is_given_and_nothing_else() {
        if !super::super::user::is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let run = at("run");
        std::fs::create_dir_all(run.join("a/b")).unwrap();
        std::fs::write(at("precious"), "root's").unwrap();
        for file in ["a/b/ours", "theirs"] {
            std::fs::write(run.join(file), "").unwrap();
        }
        chown(run.join("theirs"), Some(7), Some(7)).unwrap();
        std::fs::hard_link(at("precious"), run.join("second-name")).unwrap();
        symlink(at("precious"), run.join("link")).unwrap();
        let user = RunAs::find("3141592").unwrap();
        hand_over(&hold(&run).unwrap(), &user).unwrap();
        let owner = |path: &std::path::Path| std::fs::symlink_metadata(path).unwrap().uid();
        for given in ["", "a", "a/b", "a/b/ours"] {
            assert_eq!(owner(&run.join(given)), 3_141_592, "{given}");
        }
        assert_eq!(owner(&run.join("theirs")), 7, "another's stays his");
        assert_eq!(owner(&at("precious")), 0, "neither a link nor a second name leads out");
        assert_eq!(owner(&run.join("link")), 0);
    }
}

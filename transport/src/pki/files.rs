//! Secret files: written for the owner alone, and read only if that is still so.
//!
//! Whose a file must be: this user's. Root, who may read everybody's, takes besides only those of the user that it has nodes run
//! as, once that is said ([`trust_owner`]): what a run has left behind is that user's. What root puts into a node's folder stays that
//! user's, who must be able to read it while it runs.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{KEY_FILE, PkiError};

/// Longest file read: a key or a short chain of certificates has a few kilobytes.
const MAX_FILE: u64 = 64 * 1024;
/// Read and write for the owner.
const SECRET_MODE: u32 = 0o600;
/// Read for all, write for the owner.
const PUBLIC_MODE: u32 = 0o644;
/// Everything for the owner, nothing for anyone else.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission to write, of group or others.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Any permission of group or others.
const OTHERS: u32 = 0o077;

/// The number that the kernel gives to no user.
const NO_USER: u32 = u32::MAX;

/// Whose files root takes like its own.
static TRUSTED: AtomicU32 = AtomicU32::new(NO_USER);

/// From here on, and only as long as this process is root, files of the user `uid` count like root's own.
pub fn trust_owner(uid: u32) {
    TRUSTED.store(uid, Ordering::Relaxed);
}

/// Whether files of the user `uid` count as this user's own.
#[must_use]
pub fn is_ours(uid: u32) -> bool {
    let me = rustix::process::geteuid();
    let trusted = TRUSTED.load(Ordering::Relaxed);
    uid == me.as_raw() || me.is_root() && trusted != NO_USER && uid == trusted
}

/// Makes a directory for the owner alone, or takes an existing one that belongs to this user.
pub(super) fn private_directory(path: &Path) -> Result<(), PkiError> {
    directory_of(path, |uid| uid == rustix::process::geteuid().as_raw())
}

/// The same for a node's folder, which may be the user's that root has nodes run as.
pub(super) fn node_directory(path: &Path) -> Result<(), PkiError> {
    directory_of(path, is_ours)
}

fn directory_of(path: &Path, may_own: impl Fn(u32) -> bool) -> Result<(), PkiError> {
    match DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path) {
        Ok(()) => {}
        Err(why) => return Err(failed(path, &why)),
    }
    let found = std::fs::symlink_metadata(path).map_err(|why| failed(path, &why))?;
    if !found.is_dir() || !may_own(found.uid()) {
        return Err(not_private(path, "the directory is a link or another user's"));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(not_private(path, "others than its owner can write in the directory"));
    }
    Ok(())
}

/// Writes a new file that the owner alone can read; an existing one is not touched.
///
/// # Errors
/// When it is there already, or cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write(path, bytes, SECRET_MODE, None)
}

/// [`write_secret`] in a node's folder: what root writes belongs to whom the folder belongs to.
pub(super) fn place_secret(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write(path, bytes, SECRET_MODE, owner_at(path))
}

/// Writes a new file that all can read; an existing one is not touched.
///
/// # Errors
/// When it is there already, or cannot be written.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write(path, bytes, PUBLIC_MODE, None)
}

/// Reads a file that only its owner, this user, may read; refuses links.
///
/// # Errors
/// [`PkiError::NotPrivate`] saying what is wrong with it, or [`PkiError::File`].
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    read_open(path, &open_secret(path)?)
}

/// Opens a file as [`read_secret`] does, for [`read_open`].
///
/// # Errors
/// As there.
pub fn open_secret(path: &Path) -> Result<File, PkiError> {
    // The checks are made on the open file, so that it cannot be swapped between check and use.
    let file = open(path)?;
    check_secret(path, &file)?;
    Ok(file)
}

fn check_secret(path: &Path, file: &File) -> Result<(), PkiError> {
    let found = file.metadata().map_err(|why| failed(path, &why))?;
    if !is_ours(found.uid()) {
        return Err(not_private(path, "it belongs to another user"));
    }
    if found.mode() & OTHERS != 0 {
        let what = format!("its mode is {:o}, so others than its owner have access", found.mode() & 0o7777);
        return Err(not_private(path, &what));
    }
    Ok(())
}

/// Reads a file that is no secret, but that decides whom this node trusts: refuses links, and what others than its owner
/// (this user or root) could have written.
///
/// # Errors
/// [`PkiError::NotPrivate`] saying what is wrong with it, or [`PkiError::File`].
pub fn read_public(path: &Path) -> Result<Vec<u8>, PkiError> {
    read_public_up_to(path, MAX_FILE)
}

/// [`read_public`] of a list of revoked certificates, which may be longer than a certificate.
///
/// # Errors
/// As for [`read_public`].
pub fn read_crl(path: &Path) -> Result<Vec<u8>, PkiError> {
    read_public_up_to(path, super::crl::MAX_PEM as u64)
}

fn read_public_up_to(path: &Path, most: u64) -> Result<Vec<u8>, PkiError> {
    let file = open(path)?;
    let found = file.metadata().map_err(|why| failed(path, &why))?;
    if !is_ours(found.uid()) && found.uid() != 0 {
        return Err(not_private(path, "it belongs to another user"));
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        let what = format!("its mode is {:o}, so others than its owner can change it", found.mode() & 0o7777);
        return Err(not_private(path, &what));
    }
    Ok(read_up_to(path, &file, most)?.to_vec())
}

/// Opens a file of records of this user alone for reading and for adding to its end; makes it if it is not there, for whom the folder
/// belongs to.
pub(super) fn open_journal(path: &Path) -> Result<File, PkiError> {
    let owner = if path.symlink_metadata().is_err() { owner_at(path) } else { None };
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(SECRET_MODE);
    let file = open_with(path, &mut options)?;
    check_secret(path, &file)?;
    let found = file.metadata().map_err(|why| failed(path, &why))?;
    // What somebody has put there meanwhile is not given away.
    if let Some(owner) = owner.filter(|_| found.len() == 0 && found.nlink() == 1) {
        give(&file, owner).map_err(|why| failed(path, &why))?;
    }
    Ok(file)
}

/// Puts a file that only the owner can read in the place of another, or of none: whole or not at all. Its owner is the other's.
pub(super) fn replace_secret(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    replace(path, bytes, SECRET_MODE)
}

/// Puts a file that all can read in the place of another, or of none: whole or not at all. Its owner is the other's.
pub(super) fn replace_public(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    replace(path, bytes, PUBLIC_MODE)
}

/// Renames a file within a directory; the new name is on disk when this returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), PkiError> {
    std::fs::rename(from, to).map_err(|why| failed(from, &why))?;
    sync_folder_of(to)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // What a crash left of an earlier attempt: it was never in force.
    match std::fs::remove_file(new) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(failed(new, &why)),
        _ => {}
    }
    write(new, bytes, mode, owner_at(path))?;
    rename(new, path)
}

/// Whose what root puts at `path` is to be: of the file that is there, else of the key beside it, else of the folder, the first that
/// counts like root's own ([`is_ours`]). A link has no say. For anybody but root nothing is to be done.
fn owner_at(path: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let folder = folder_of(path);
    let found = |path: &Path| std::fs::symlink_metadata(path).ok().filter(|found| is_ours(found.uid()));
    let file = |path: &Path| found(path).filter(std::fs::Metadata::is_file);
    let like = file(path).or_else(|| file(&folder.join(KEY_FILE))).or_else(|| found(folder));
    like.map(|like| (like.uid(), like.gid()))
}

/// Makes sure that a file that was made or renamed is still there after a crash.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), PkiError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|why| failed(folder, &why))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn open(path: &Path) -> Result<File, PkiError> {
    open_with(path, OpenOptions::new().read(true))
}

fn open_with(path: &Path, options: &mut OpenOptions) -> Result<File, PkiError> {
    // Without NONBLOCK, a named pipe in the file's place would hang us before it is refused.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path).map_err(|why| match Errno::from_io_error(&why) {
        Some(Errno::LOOP) => not_private(path, "it is a symbolic link"),
        _ => failed(path, &why),
    })?;
    let found = file.metadata().map_err(|why| failed(path, &why))?;
    if !found.is_file() {
        return Err(not_private(path, "it is not a regular file"));
    }
    Ok(file)
}

/// Reads an open file from its start, wherever its position is; `path` names it in errors.
///
/// # Errors
/// [`PkiError::File`].
pub fn read_open(path: &Path, file: &File) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    read_up_to(path, file, MAX_FILE)
}

fn read_up_to(path: &Path, file: &File, most: u64) -> Result<Zeroizing<Vec<u8>>, PkiError> {
    // Sized once: a buffer that grows leaves copies of the key behind.
    let mut bytes = Zeroizing::new(vec![0; most as usize + 1]);
    let mut end = 0;
    while let Some(rest) = bytes.get_mut(end..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, end as u64) {
            Ok(0) => break,
            Ok(read) => end += read,
            Err(why) if why.kind() == ErrorKind::Interrupted => {}
            Err(why) => return Err(failed(path, &why)),
        }
    }
    if end as u64 > most {
        let what = format!("longer than {most} bytes; this is not what belongs there");
        return Err(PkiError::File { path: path.to_owned(), what });
    }
    bytes.truncate(end);
    Ok(bytes)
}

/// Writes a new file, for `owner` if that is said. It is given away by its descriptor, so that whoever may write in the folder puts
/// nothing else in its place.
fn write(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), PkiError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|w| failed(path, &w))?;
    let given = |file: &File| owner.map_or(Ok(()), |owner| give(file, owner));
    let written = file.write_all(bytes).and_then(|()| given(&file)).and_then(|()| file.sync_all());
    written.map_err(|why| failed(path, &why))
}

fn give(file: &File, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    let found = file.metadata()?;
    if (found.uid(), found.gid()) == (uid, gid) {
        return Ok(());
    }
    let given = fchown(file, Some(uid), Some(gid));
    // Whoever it is has it already; root without capabilities may not choose its group.
    if found.uid() == uid { Ok(()) } else { given }
}

pub(super) fn failed(path: &Path, why: &std::io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), what: why.to_string() }
}

fn not_private(path: &Path, what: &str) -> PkiError {
    PkiError::NotPrivate { path: path.to_owned(), what: what.to_owned() }
}

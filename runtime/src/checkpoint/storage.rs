//! Every write of checkpoints, behind a trait: tests fail each one in turn and see what is left.
//!
//! Reading goes past this: what a crash may leave is decided by writes alone.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A file being written.
pub trait Output: Write + Send {
    /// Waits until what was written outlasts a crash.
    ///
    /// # Errors
    /// The operating system's refusal.
    fn sync(&mut self) -> io::Result<()>;
}

/// What writing checkpoints asks of a file system.
pub trait Storage: Debug + Send + Sync {
    /// Makes a folder for the owner alone, or takes one that is there.
    ///
    /// # Errors
    /// The operating system's refusal, here and below.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file for the owner alone, empty, replacing what is there.
    ///
    /// # Errors
    /// As above.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>>;

    /// Opens a file for the owner alone, to go on at its end.
    ///
    /// # Errors
    /// As above.
    fn append(&self, path: &Path) -> io::Result<Box<dyn Output>>;

    /// Gives a file or folder another name, replacing a file that has it.
    ///
    /// # Errors
    /// As above.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Waits until the names in a folder outlast a crash.
    ///
    /// # Errors
    /// As above.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file; one that is not there is removed already.
    ///
    /// # Errors
    /// As above.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all in it; one that is not there is removed already.
    ///
    /// # Errors
    /// As above.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// Writes a whole file under a temporary name and then gives it its own: a reader, or a crash at any moment, finds what was
/// there before or all of `bytes`.
///
/// # Errors
/// The operating system's refusal; `path` is as it was.
pub fn replace(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(storage, path, |temporary| {
        let mut output = storage.create(temporary)?;
        output.write_all(bytes)?;
        output.sync()
    })
}

/// As [`replace`], where `write` writes the file and syncs it; the answer is `write`'s.
pub(super) fn replace_with<T>(
    storage: &dyn Storage,
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let temporary = temporary(path);
    let written = write(&temporary).and_then(|written| storage.rename(&temporary, path).map(|()| written));
    if written.is_err() {
        // What is half written helps nobody, least of all a disk that is full.
        let _ = storage.remove_file(&temporary);
    }
    let written = written?;
    // That of a bare name is empty, and this folder.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    storage.sync_dir(folder.unwrap_or(Path::new(".")))?;
    Ok(written)
}

/// Beside `path`, under a name that is never looked for.
pub(super) fn temporary(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Output for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Storage for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        // A link in the file's place is replaced, not followed.
        self.remove_file(path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn append(&self, path: &Path) -> io::Result<Box<dyn Output>> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

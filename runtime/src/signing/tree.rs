//! A model's folder: what is in it, and its files' contents.
//!
//! Invariants:
//! 1. No link below the folder is followed: every component of a name is opened by itself, relative to the folder that was
//!    opened before it, and must be what it was listed as. So nothing outside is ever read, even if the folder is changed
//!    meanwhile.
//! 2. Whatever is neither a regular file nor a folder is refused, also where it would be ignored; and so is a name that is
//!    not UTF-8, or more than [`FILES_MOST`] files or [`DEPTH_MOST`] levels.
//! 3. Hashing takes `CHUNK` bytes of memory, whatever a file's size.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat};

use super::SigningError;
use super::statement::{is_ignored, sha256};

/// Most files of a model.
pub const FILES_MOST: usize = 65_536;
/// Most folders in one another.
pub const DEPTH_MOST: usize = 32;
/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;

/// An open folder.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    root: OwnedFd,
}

impl Tree {
    /// Opens the folder `path`, which may itself be reached through links.
    ///
    /// # Errors
    /// It is no folder, or may not be read.
    pub fn open(path: &Path) -> Result<Tree, SigningError> {
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(path, "cannot be opened as a folder", error))?;
        Ok(Tree { path: path.to_owned(), root })
    }

    /// The folder's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's name.
    ///
    /// # Errors
    /// It has none, or one that is not UTF-8.
    pub fn model_name(&self) -> Result<String, SigningError> {
        let whole = match std::fs::canonicalize(&self.path) {
            Ok(whole) => whole,
            // The folder is open, and one above it may not be entered: its name is what it was called.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.path.clone(),
            Err(source) => {
                let (path, what) = (self.path.clone(), "cannot be found");
                return Err(SigningError::File { path, what, source });
            }
        };
        let name = whole.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        name.ok_or_else(|| self.refused("", "has no name that can be signed"))
    }

    /// The name in this folder of the file `path`, if it is one of this folder.
    #[must_use]
    pub fn name_of(&self, path: &Path) -> Option<String> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let (folder, root) = (std::fs::canonicalize(folder).ok()?, std::fs::canonicalize(&self.path).ok()?);
        let inside = folder.strip_prefix(root).ok()?.join(path.file_name()?);
        inside.to_str().map(str::to_owned)
    }

    /// The names of all files but those that are ignored, in order of the names' components.
    ///
    /// # Errors
    /// Whatever the folder may not hold.
    pub fn files(&self, ignored: &[String]) -> Result<Vec<String>, SigningError> {
        let mut found = Vec::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            if folder.split('/').count() > DEPTH_MOST {
                return Err(self.refused(&folder, "is nested too deep"));
            }
            let fd = self.descend(&folder)?;
            let entries =
                Dir::read_from(&fd).map_err(|error| self.failed(&folder, "cannot be listed", error))?;
            for entry in entries {
                let entry = entry.map_err(|error| self.failed(&folder, "cannot be listed", error))?;
                let Ok(file) = entry.file_name().to_str() else {
                    let shown = entry.file_name().to_string_lossy().into_owned();
                    return Err(self.refused(&join(&folder, &shown), "has a name that is not UTF-8"));
                };
                if matches!(file, "." | "..") {
                    continue;
                }
                let name = join(&folder, file);
                // The listing's own word for the type may be missing, and is not worth a second way.
                let status = statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| self.failed(&name, "cannot be looked at", error))?;
                match FileType::from_raw_mode(status.st_mode) {
                    FileType::RegularFile if is_ignored(&name, ignored) => {}
                    FileType::Directory if is_ignored(&name, ignored) => {}
                    FileType::RegularFile => found.push(name),
                    FileType::Directory => folders.push(name),
                    FileType::Symlink => return Err(self.refused(&name, "is a symbolic link")),
                    _ => return Err(self.refused(&name, "is neither a regular file nor a folder")),
                }
                if found.len() + folders.len() > FILES_MOST {
                    return Err(self.refused("", &format!("holds more than {FILES_MOST} files")));
                }
            }
        }
        found.sort_by(|a, b| a.split('/').cmp(b.split('/')));
        Ok(found)
    }

    /// Whether there is anything at `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        self.descend(folder).is_ok_and(|fd| statat(fd, file, AtFlags::SYMLINK_NOFOLLOW).is_ok())
    }

    /// A file's SHA-256.
    ///
    /// # Errors
    /// It is no regular file, or cannot be read.
    pub fn sha256(&self, name: &str) -> Result<[u8; 32], SigningError> {
        let mut context = Context::new(&SHA256);
        self.read(name, &mut |chunk| context.update(chunk))?;
        Ok(sha256(context))
    }

    /// Reads a file from its beginning to its end, chunk by chunk.
    ///
    /// # Errors
    /// It is no regular file, or cannot be read.
    pub fn read(&self, name: &str, each: &mut dyn FnMut(&[u8])) -> Result<(), SigningError> {
        let mut file = self.open_file(name)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => each(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(SigningError::File {
                        path: self.path.join(name),
                        what: "cannot be read",
                        source,
                    });
                }
            }
        }
    }

    /// Opens the regular file `name`.
    ///
    /// # Errors
    /// It is none, or a link.
    pub fn open_file(&self, name: &str) -> Result<File, SigningError> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let fd = self.descend(folder)?;
        // Without NONBLOCK, a named pipe put in the file's place would hang us before it is refused.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(fd, file, flags, Mode::empty())
            .map_err(|error| self.failed(name, "cannot be opened without following links", error))?;
        let status = fstat(&opened).map_err(|error| self.failed(name, "cannot be looked at", error))?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => Ok(File::from(opened)),
            _ => Err(self.refused(name, "is not a regular file")),
        }
    }

    /// Opens the folder `name`, component by component.
    fn descend(&self, name: &str) -> Result<OwnedFd, SigningError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |at: &OwnedFd, part: &str| {
            openat(at, part, flags, Mode::empty())
                .map_err(|error| self.failed(name, "cannot be opened without following links", error))
        };
        let mut fd = open(&self.root, ".")?;
        for part in name.split('/').filter(|part| !part.is_empty()) {
            fd = open(&fd, part)?;
        }
        Ok(fd)
    }

    fn refused(&self, name: &str, why: &str) -> SigningError {
        // A name may hold what would forge a terminal's lines.
        let path = PathBuf::from(self.path.join(name).display().to_string().escape_debug().to_string());
        SigningError::Model { path, why: why.to_owned() }
    }

    fn failed(&self, name: &str, what: &'static str, error: rustix::io::Errno) -> SigningError {
        failed(Path::new(&self.path.join(name).display().to_string().escape_debug().to_string()), what, error)
    }
}

fn failed(path: &Path, what: &'static str, error: rustix::io::Errno) -> SigningError {
    SigningError::File { path: path.to_owned(), what, source: error.into() }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

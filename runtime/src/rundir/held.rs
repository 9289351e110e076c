//! Folders that are reached through open descriptors, and what they are called.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{RunDir, RunDirError, make_private};
use crate::process::{RunAs, handover};

/// What is reached through descriptors, and what it is called.
static HELD: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());

/// `text` with the names of held directories in place of their descriptors'.
#[must_use]
pub fn in_words(text: &str) -> String {
    let held = HELD.lock().map(|held| held.clone()).unwrap_or_default();
    let mut text = text.to_owned();
    for (at, name) in held {
        let (at, name) = (at.display().to_string(), name.display().to_string());
        let mut rest = text.as_str();
        let mut said = String::with_capacity(rest.len());
        while let Some(found) = rest.find(&at) {
            let (before, after) =
                (rest.get(..found).unwrap_or(""), rest.get(found + at.len()..).unwrap_or(""));
            said += before;
            // Descriptor 1 is not descriptor 12.
            said += if after.starts_with(|c: char| c.is_ascii_digit()) { &at } else { &name };
            rest = after;
        }
        said += rest;
        text = said;
    }
    text
}

/// The descriptor's name in this process, which is `name`'s from now on.
pub(crate) fn reached(descriptor: &OwnedFd, name: &Path) -> PathBuf {
    let at = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    if let Ok(mut held) = HELD.lock() {
        // A number that is used again means what it was used for last.
        held.retain(|(other, _)| *other != at);
        held.push((at.clone(), name.to_path_buf()));
    }
    at
}

impl RunDir {
    /// The directory called `path` that another process has opened.
    #[must_use]
    pub fn of_descriptor(path: &Path, descriptor: OwnedFd) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Self { at: reached(&descriptor, &path), path, held: Some(Arc::new(descriptor)), checkpoints: None }
    }

    /// The same, reached through an open descriptor from here on (invariant 4).
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn hold(self) -> Result<Self, RunDirError> {
        match handover::hold(&self.at) {
            Ok(descriptor) => Ok(Self::of_descriptor(&self.path, descriptor)),
            Err(source) => Err(RunDirError::Create { path: self.path, source }),
        }
    }

    /// The same, where the directory is the operator's own folder and stays so: only its folder of checkpoints, made if it is
    /// not there, is held, and given to `user`.
    ///
    /// # Errors
    /// It is another user's, or the operating system refuses.
    pub fn hold_checkpoints(mut self, user: &RunAs) -> Result<Self, RunDirError> {
        let path = self.path.join("checkpoint");
        let hold = || -> io::Result<OwnedFd> {
            make_private(&path, true)?;
            handover::hold(&path)
        };
        let descriptor = hold().map_err(|source| RunDirError::Create { path: path.clone(), source })?;
        give(&descriptor, &path, user)?;
        self.checkpoints = Some((reached(&descriptor, &path), Arc::new(descriptor)));
        Ok(self)
    }

    /// Its descriptor, if it is held.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|held| held.as_fd())
    }

    /// Gives a directory that is held, with what root has made in it, to `user`.
    ///
    /// # Errors
    /// It is another user's, or the operating system refuses.
    pub fn hand_over(&self, user: &RunAs) -> Result<(), RunDirError> {
        self.held.as_ref().map_or(Ok(()), |held| give(held, &self.path, user))
    }

    /// Whose it is.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn owner(&self) -> io::Result<u32> {
        std::fs::metadata(&self.at).map(|found| std::os::unix::fs::MetadataExt::uid(&found))
    }

    /// What `path`, which this process reaches so, is called.
    #[must_use]
    pub fn name_of(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.at) {
            Ok(inside) => self.path.join(inside),
            Err(_) => path.to_path_buf(),
        }
    }

    /// How this process reaches `path`: through the descriptor, if it lies in a directory that is held.
    #[must_use]
    pub fn reach(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.path) {
            Ok(inside) if inside.as_os_str().is_empty() => self.at.clone(),
            Ok(inside) => self.at.join(inside),
            Err(_) => path.to_path_buf(),
        }
    }
}

/// Gives a folder with what root has made in it to `user`, unless it is a third one's.
fn give(folder: &OwnedFd, path: &Path, user: &RunAs) -> Result<(), RunDirError> {
    let failed = |source| RunDirError::HandOver { path: path.to_path_buf(), source };
    let owner = handover::owner(folder).map_err(failed)?;
    if ![0, user.uid()].contains(&owner) {
        let (path, run_as) = (path.to_path_buf(), user.name().to_owned());
        return Err(RunDirError::Others { path, owner, run_as });
    }
    handover::hand_over(folder, user).map_err(|error| failed(error.into()))
}

//! The program that runs, for whom it starts more processes of.
//!
//! Its file may be replaced while it runs, lie in a folder that the user who starts nodes may not enter, or be one that he may
//! not execute. `/proc/self/exe` answers the first two; for the third, root makes a copy in memory that anybody may execute and
//! nobody can change.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

use super::RunAs;

/// The program that runs, whatever its file is called by now and whoever may reach it by that name.
const THIS: &str = "/proc/self/exe";

/// What to execute for another process of this program. Clones share a copy.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    copy: Option<Arc<OwnedFd>>,
}

impl Default for Program {
    fn default() -> Program {
        Program { path: PathBuf::from(THIS), copy: None }
    }
}

impl Program {
    /// One that `user` can execute; this process, where that is `None`. To be called before this process becomes `user`.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn open(user: Option<&RunAs>) -> io::Result<Program> {
        match user {
            Some(user) if !may_execute(&std::fs::metadata(THIS)?, user) => Program::copy(),
            _ => Ok(Program::default()),
        }
    }

    /// Its path, for this process alone.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its file, if it has one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.copy.is_none().then_some(&self.path)
    }

    fn copy() -> io::Result<Program> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let copy = match memfd_create("testudo", flags | MemfdFlags::EXEC) {
            // Kernels before 6.3 have no such flag, and need none.
            Err(Errno::INVAL) => memfd_create("testudo", flags)?,
            made => made?,
        };
        let mut copy = File::from(copy);
        io::copy(&mut File::open(THIS)?, &mut copy)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&copy, seals)?;
        let copy = OwnedFd::from(copy);
        let path = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        Ok(Program { path, copy: Some(Arc::new(copy)) })
    }
}

fn may_execute(found: &std::fs::Metadata, user: &RunAs) -> bool {
    let bit = match () {
        () if found.uid() == user.uid() => 0o100,
        () if found.gid() == user.gid() => 0o010,
        () => 0o001,
    };
    found.mode() & bit != 0
}

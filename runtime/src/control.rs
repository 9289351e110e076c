//! `control.json`: how operators on this machine find the scheduler of a local run.
//!
//! It holds an address and no secret: who may command is decided by the identity that an operator shows, and a run's own is in
//! `identities/operator-0`. It is there from when the scheduler is bound until the run ends.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use testudo_transport::SpiffeId;

use crate::error::Failure;
use crate::rundir::RunDir;

/// Bytes that are read of it at most.
const MOST: u64 = 4 << 10;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// The scheduler's address, `host:port`.
    pub scheduler: String,
    /// Its identity.
    pub identity: String,
}

impl Control {
    /// Writes the file of `run`, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(run: &RunDir, scheduler: &str, identity: &SpiffeId) -> Result<(), Failure> {
        let path = run.control();
        let control = Control { scheduler: scheduler.to_owned(), identity: identity.to_string() };
        let text = serde_json::to_string(&control).map_err(Failure::failed)?;
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        open.and_then(|mut file| writeln!(file, "{text}"))
            .map_err(|e| Failure::file(&path, "cannot be written", e))
    }

    /// Reads it; `None` when there is none, because the run has not begun or is over.
    ///
    /// # Errors
    /// When it cannot be read, or says something else.
    pub fn read(run: &RunDir) -> Result<Option<Control>, Failure> {
        use std::io::Read as _;
        let path = run.control();
        let mut text = String::new();
        match std::fs::File::open(&path).and_then(|file| file.take(MOST).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file(&path, "cannot be read", error)),
        }
        serde_json::from_str(&text).map(Some).map_err(|e| Failure::file(&path, "is no control file", e))
    }

    /// Removes it.
    pub fn remove(run: &RunDir) {
        remove(&run.control());
    }
}

fn remove(path: &Path) {
    // One that is gone already is as good.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use testudo_transport::Role;

    use super::*;

    #[test]
    fn it_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(&folder.path().join("run")).unwrap();
        assert_eq!(Control::read(&run).unwrap(), None);
        let id = SpiffeId::new("t", "j", Role::Scheduler, "0").unwrap();
        Control::write(&run, "127.0.0.1:4433", &id).unwrap();
        let control = Control::read(&run).unwrap().unwrap();
        assert_eq!((control.scheduler.as_str(), control.identity), ("127.0.0.1:4433", id.to_string()));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(run.control()).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        Control::remove(&run);
        assert_eq!(Control::read(&run).unwrap(), None);
        std::fs::write(run.control(), "{\"scheduler\":1}").unwrap();
        assert!(Control::read(&run).unwrap_err().message.contains("control.json"));
    }
}

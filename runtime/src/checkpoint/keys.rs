//! Who can read a run's checkpoints: age recipients and identities, X25519 alone.
//!
//! 1. Without recipients in the job, the run has a key of its own, made once, in a file for its owner alone, as
//!    `age-keygen` writes it. To destroy that file is to destroy every part encrypted to it.
//! 2. Secret keys come from files that their owner alone can read, by path; they are in no argument, environment, `Debug`
//!    or log, and the bytes read are cleared.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use age::secrecy::ExposeSecret as _;
use age::x25519;
use testudo_transport::pki::{open_secret, read_open, read_secret_file};
use zeroize::Zeroizing;

use super::CheckpointError;
use super::layout::Layout;
use super::storage::{Storage, temporary};

/// Counts the key files that this process has made.
static FRESH: AtomicU64 = AtomicU64::new(0);

/// Identities in one file at most.
const IDENTITIES_MOST: usize = 64;

/// Secret keys that open checkpoints.
#[derive(Clone)]
pub struct Identities(Vec<x25519::Identity>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// Reads an age identity file. Anything in it but classic X25519 identities is refused.
    ///
    /// # Errors
    /// [`CheckpointError::Pki`] when others can read the file, [`CheckpointError::Key`] when it holds no such key.
    pub fn load(path: &Path) -> Result<Identities, CheckpointError> {
        Identities::parse(path, &read_secret_file(path)?)
    }

    /// What such a file holds; `path` names it in errors.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Identities, CheckpointError> {
        let refuse = |reason: String| CheckpointError::Key { path: path.to_path_buf(), reason };
        let text =
            std::str::from_utf8(bytes).map_err(|_| refuse("no text: this is no age identity file".into()))?;
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if found.len() == IDENTITIES_MOST {
                return Err(refuse(format!("more than {IDENTITIES_MOST} keys")));
            }
            // Not a word of the line itself: it may be a secret of another kind.
            let identity = x25519::Identity::from_str(line)
                .map_err(|why| refuse(format!("line {} is no X25519 identity ({why})", number + 1)))?;
            found.push(identity);
        }
        if found.is_empty() {
            return Err(refuse("no key in it: an age identity file has a line AGE-SECRET-KEY-1...".into()));
        }
        Ok(Identities(found))
    }

    /// Their recipients.
    #[must_use]
    pub fn recipients(&self) -> Vec<x25519::Recipient> {
        self.0.iter().map(x25519::Identity::to_public).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity as &dyn age::Identity)
    }
}

/// An age identity file that is open: it was checked when it was opened, and can be handed to a process that could not open it.
#[derive(Debug)]
pub struct KeyFile {
    file: File,
    identities: Identities,
}

impl KeyFile {
    /// Opens and reads it.
    ///
    /// # Errors
    /// As [`Identities::load`].
    pub fn open(path: &Path) -> Result<KeyFile, CheckpointError> {
        KeyFile::read(path, open_secret(path)?)
    }

    /// Reads what another process has opened; `path` names it in errors.
    ///
    /// # Errors
    /// [`CheckpointError::Key`] when it holds no key.
    pub fn read(path: &Path, file: File) -> Result<KeyFile, CheckpointError> {
        let identities = Identities::parse(path, &read_open(path, &file)?)?;
        Ok(KeyFile { file, identities })
    }

    /// What is in it, to be handed on.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, CheckpointError> {
        Ok(read_open(Path::new("the age identity"), &self.file)?)
    }

    /// The keys in it.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }
}

impl AsFd for KeyFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The recipients that `texts` name.
///
/// # Errors
/// [`CheckpointError::Recipient`] for the first that is none.
pub fn parse_recipients(texts: &[String]) -> Result<Vec<x25519::Recipient>, CheckpointError> {
    let parse = |text: &String| {
        x25519::Recipient::from_str(text)
            .map_err(|why| CheckpointError::Recipient { text: text.clone(), reason: why.to_string() })
    };
    texts.iter().map(parse).collect()
}

/// Whom a run's checkpoints are for: the recipients that its cluster file names, or its own key, which is made if it is not
/// there (invariant 1).
///
/// # Errors
/// A recipient that is none, or a key file that cannot be made or read.
pub fn recipients(
    named: &[String],
    layout: &Layout,
    storage: &dyn Storage,
) -> Result<Vec<x25519::Recipient>, CheckpointError> {
    if named.is_empty() { Ok(run_key(layout, storage)?.recipients()) } else { parse_recipients(named) }
}

/// The run's own key, made if it is not there. Several nodes may ask at once: they all get the same.
fn run_key(layout: &Layout, storage: &dyn Storage) -> Result<Identities, CheckpointError> {
    let path = layout.key();
    if !path.exists() {
        storage.create_dir(layout.folder()).map_err(CheckpointError::io("make", layout.folder()))?;
        // A name that no other thread or process uses.
        let number = FRESH.fetch_add(1, Ordering::Relaxed);
        let fresh = temporary(&path).with_extension(format!("{}-{number}.tmp", std::process::id()));
        let written = storage.create(&fresh).and_then(|mut output| {
            output.write_all(key_file(SystemTime::now()).as_bytes())?;
            output.sync()
        });
        written.map_err(CheckpointError::io("write", &fresh))?;
        // A link is made only where there is no such name: whoever is first decides.
        let linked = std::fs::hard_link(&fresh, &path);
        storage.remove_file(&fresh).map_err(CheckpointError::io("remove", &fresh))?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(CheckpointError::io("make", &path)(error));
            }
            _ => {}
        }
        storage.sync_dir(layout.folder()).map_err(CheckpointError::io("sync", layout.folder()))?;
    }
    Identities::load(&path)
}

/// A new identity as `age-keygen` writes it.
fn key_file(now: SystemTime) -> Zeroizing<String> {
    let identity = x25519::Identity::generate();
    let secret = identity.to_string();
    let stamp = crate::rundir::timestamp(now);
    let part = |range: std::ops::Range<usize>| stamp.get(range).unwrap_or_default().to_owned();
    let (date, time) =
        ([part(0..4), part(4..6), part(6..8)].join("-"), [part(9..11), part(11..13), part(13..15)].join(":"));
    Zeroizing::new(format!(
        "# created: {date}T{time}Z\n# public key: {}\n{}\n",
        identity.to_public(),
        secret.expose_secret()
    ))
}

/// Destroys the run's own key: its bytes are written over, then its name is removed. What lies encrypted to it alone can
/// never be read again. Copies that a file system or a backup keeps are beyond reach. Whether there was a key.
///
/// # Errors
/// The operating system's refusal.
pub fn destroy_run_key(layout: &Layout) -> Result<bool, CheckpointError> {
    let path = layout.key();
    let overwrite = || -> std::io::Result<()> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = std::fs::OpenOptions::new();
        options.write(true);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
        let mut file = options.open(&path)?;
        let bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(64 << 10);
        file.write_all(&vec![b'\n'; bytes])?;
        file.sync_all()
    };
    match overwrite() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(CheckpointError::io("write over", &path)(error)),
        Ok(()) => {}
    }
    std::fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
    let sync = std::fs::File::open(layout.folder()).and_then(|folder| folder.sync_all());
    sync.map_err(CheckpointError::io("sync", layout.folder()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::checkpoint::storage::Disk;

    /// Invariant 1.
    #[test]
    fn a_run_makes_one_private_key_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(&folder.path().join("checkpoint"));
        let make = || recipients(&[], &layout, &Disk).unwrap().first().map(ToString::to_string).unwrap();
        let (layout, make) = (&layout, &make);
        let all: Vec<String> = std::thread::scope(|scope| {
            let many: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            many.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|one| *one == all[0] && one.starts_with("age1")), "{all:?}");
        let mode = std::fs::metadata(layout.key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(layout.folder()).unwrap().count(), 1, "no other file stays");
        let text = std::fs::read_to_string(layout.key()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("# created: 2") && lines[0].ends_with('Z'), "{}", lines[0]);
        assert_eq!(lines[1], format!("# public key: {}", all[0]));
        assert!(lines[2].starts_with("AGE-SECRET-KEY-1") && lines.len() == 3);
        let debug = format!("{:?}", Identities::load(&layout.key()).unwrap());
        assert!(!debug.contains("SECRET") && !debug.contains(lines[2]), "{debug}");

        assert!(destroy_run_key(layout).unwrap());
        assert!(!layout.key().exists() && !destroy_run_key(layout).unwrap());
    }

    /// Invariant 2.
    #[test]
    fn key_files_are_private_and_hold_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.txt");
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Identities::load(&path)
        };
        let good = key_file(SystemTime::now());
        assert!(write(&good, 0o600).is_ok());
        assert!(matches!(write(&good, 0o640), Err(CheckpointError::Pki(_))));
        for bad in
            ["", "# nothing\n", "AGE-SECRET-KEY-1QQQ\n", "AGE-PLUGIN-YUBIKEY-1QQQ\n", "ssh-ed25519 AAAA\n"]
        {
            let error = write(bad, 0o600).unwrap_err();
            assert!(matches!(error, CheckpointError::Key { .. }), "{bad:?}: {error}");
            assert!(!error.to_string().contains("QQQ"), "{error}");
        }
        assert!(write(&"\n# x\n".repeat(9).replace("x", &good), 0o600).is_ok());
        assert!(Identities::load(&folder.path().join("none")).is_err());
    }

    #[test]
    fn recipients_are_those_of_the_file() {
        let one = x25519::Identity::generate().to_public().to_string();
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let found = recipients(std::slice::from_ref(&one), &layout, &Disk).unwrap();
        assert_eq!(found[0].to_string(), one);
        assert!(!layout.key().exists(), "no key is made where there are recipients");
        assert!(parse_recipients(&["age1xyz".into()]).is_err());
    }
}

//! The scheduler's side: records go to the file, on a thread of its own.
//!
//! What a crash may cost: a record is written within moments of its event, and signed and synced (`fsync`) with all before it
//! at most a second later, or when 256 wait ([`Scribe`]); the key and the job are signed and synced before training begins, the
//! end before the process ends. If the log cannot be written, that is said in the scheduler's log and at the end of the run,
//! whose summary then names no head; training goes on.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use testudo_actors::audit::{Base64, CheckpointName, Entry, Head, Hex};
use testudo_actors::{JobSpec, SignedJob};
use testudo_observability::audit::{Chain, Scribe, Signer};
use testudo_transport::Identity;

use super::AuditLogError;
use super::lines::{Lines, file_error};

/// Entries that may wait for the thread. Beyond it, who has one to tell waits: nothing is left out of the log.
const WAITING: usize = 4096;

/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

enum Mail {
    Entry(Entry),
    Close,
}

/// A log being written.
#[derive(Debug)]
pub struct AuditLog {
    handle: AuditHandle,
    thread: JoinHandle<Result<Hex, AuditLogError>>,
}

/// Tells the log what happened.
#[derive(Clone, Debug)]
pub struct AuditHandle {
    sender: SyncSender<Mail>,
    synced: Arc<Mutex<Option<Head>>>,
}

impl AuditHandle {
    /// Adds a record. One that comes after the log was closed is not written.
    pub fn tell(&self, entry: Entry) {
        // Fails only when the thread has ended, which `close` reports.
        self.sender.send(Mail::Entry(entry)).ok();
    }

    /// The head of what is signed and on the disk.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log that is open, with the key and the job in it.
pub struct Begun(Writer);

impl Begun {
    /// Starts the thread that goes on with it.
    ///
    /// # Errors
    /// [`AuditLogError`] when there can be no thread.
    pub fn start(self) -> Result<AuditLog, AuditLogError> {
        let Begun(writer) = self;
        let path = writer.path.clone();
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        let handle = AuditHandle { sender, synced: Arc::clone(&writer.synced) };
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                let result = writer.run(&receiver);
                if let Err(error) = &result {
                    tracing::error!(%error, "the audit log ends here");
                }
                result
            })
            .map_err(|e| file_error(&path, "has no thread", &e))?;
        Ok(AuditLog { handle, thread })
    }
}

struct AuditKey(Identity);

impl Signer for AuditKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.0.sign(message).map_err(|e| e.to_string())
    }
}

impl AuditLog {
    /// Begins the log at `path`, or goes on with the one that is there, with the key of `identity`.
    ///
    /// # Errors
    /// [`AuditLogError`]; a damaged log is not gone on with (invariant 3 of [`super`]).
    pub fn open(
        path: &Path,
        identity: &Identity,
        job: &JobSpec,
        signed: &SignedJob,
        operator: &str,
    ) -> Result<AuditLog, AuditLogError> {
        AuditLog::begin(path, identity, job, signed, operator)?.start()
    }

    /// The same, without a thread yet: for a process that may open the file now and not later, and starts threads only then.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn begin(
        path: &Path,
        identity: &Identity,
        job: &JobSpec,
        signed: &SignedJob,
        operator: &str,
    ) -> Result<Begun, AuditLogError> {
        let (chain, torn_bytes) = recover(path)?;
        let mut writer = Writer {
            file: append(path)?,
            path: path.to_owned(),
            scribe: Scribe::new(chain, Box::new(AuditKey(identity.clone()))),
            synced: Arc::default(),
        };
        let trust = identity.trust();
        writer.entry(&Entry::Key {
            trust_domain: trust.trust_domain().to_owned(),
            job: trust.job().to_owned(),
            ca: Base64(trust.ca_der().to_vec()),
            certificate: Base64(identity.certificate_der().to_vec()),
            resumed_from: job
                .resume
                .map(|r| CheckpointName { step: r.step, manifest_blake3: Hex(r.manifest_blake3) }),
            torn_bytes,
        })?;
        writer.entry(&Entry::Job {
            operator: operator.to_owned(),
            spec_blake3: Hex(signed.spec_blake3()),
            signed_blake3: Hex::hash(&signed.to_bytes()),
        })?;
        writer.finish()?;
        Ok(Begun(writer))
    }

    /// A way to tell it what happened.
    #[must_use]
    pub fn handle(&self) -> AuditHandle {
        self.handle.clone()
    }

    /// Writes, signs and syncs what was told, and ends. Returns the head.
    ///
    /// # Errors
    /// [`AuditLogError`] if something could not be written, then or before.
    pub fn close(self) -> Result<Hex, AuditLogError> {
        self.handle.sender.send(Mail::Close).ok();
        self.thread.join().unwrap_or_else(|_| {
            let what = "a bug in Testudo: writing it panicked".to_owned();
            Err(AuditLogError::File { path: PathBuf::from("audit.log"), what })
        })
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    scribe: Scribe,
    synced: Arc<Mutex<Option<Head>>>,
}

impl Writer {
    fn run(mut self, mail: &Receiver<Mail>) -> Result<Hex, AuditLogError> {
        loop {
            let wait = self
                .scribe
                .poll_timeout()
                .map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now())).min(IDLE));
            match mail.recv_timeout(wait) {
                Ok(Mail::Entry(entry)) => self.entry(&entry)?,
                Ok(Mail::Close) | Err(RecvTimeoutError::Disconnected) => {
                    self.finish()?;
                    return Ok(self.scribe.head());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.scribe.sign_if_due(now())? {
                self.flush()?;
                self.sync()?;
            }
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), AuditLogError> {
        self.scribe.entry(now(), entry)?;
        self.flush()
    }

    fn finish(&mut self) -> Result<(), AuditLogError> {
        self.scribe.sign(now())?;
        self.flush()?;
        self.sync()
    }

    fn flush(&mut self) -> Result<(), AuditLogError> {
        let written = self.file.write_all(&self.scribe.take());
        written.map_err(|e| file_error(&self.path, "cannot be written", &e))
    }

    fn sync(&self) -> Result<(), AuditLogError> {
        self.file.sync_data().map_err(|e| file_error(&self.path, "cannot be synced", &e))?;
        let head = Head { record: self.scribe.records().saturating_sub(1), hash: self.scribe.head() };
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
        Ok(())
    }
}

/// The chain of the log that is there, if one is, and the bytes of a last record that a crash cut short: those are removed.
fn recover(path: &Path) -> Result<(Chain, u64), AuditLogError> {
    let mut chain = Chain::new();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((chain, 0)),
        _ => {}
    }
    let mut length = 0;
    for line in Lines::open(path)? {
        let line = line?;
        if !line.is_whole {
            let torn = line.bytes.len() as u64;
            let file = append(path)?;
            file.set_len(length).map_err(|e| file_error(path, "cannot be mended", &e))?;
            return Ok((chain, torn));
        }
        chain.follow(&line.bytes).map_err(|why| AuditLogError::Damaged {
            path: path.to_owned(),
            line: line.number,
            what: format!("{why}; move the log away to go on without its history"),
        })?;
        length += line.bytes.len() as u64 + 1;
    }
    Ok((chain, 0))
}

fn append(path: &Path) -> Result<File, AuditLogError> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(|e| file_error(path, "cannot be written", &e))?;
    if let Some(folder) = path.parent() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| file_error(folder, "cannot be synced", &e))?;
    }
    Ok(file)
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

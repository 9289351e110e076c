//! The scheduler's side: records go to the file, on a thread of its own.
//!
//! What a crash may cost: a record is written within moments of its event, and signed and synced (`fsync`) with all before it
//! at most a second later, or when 256 wait ([`Scribe`]); the key and the job are signed and synced before training begins, the
//! end before the process ends. A disk that is full for a while ends no log: records wait in memory
//! ([`Appender`], 4 MiB), are written once there is room, and what could not wait is counted in a record. If the log cannot be
//! written when the run ends, or what was written cannot be synced, that is said in the scheduler's log and at the end of the
//! run, whose summary then names no head; training goes on all the same.
//!
//! A log goes on with every certificate that follows that of its key, in time: one that has ended signs nothing, and the log ends.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use testudo_actors::audit::{self, Base64, CheckpointName, Entry, Head, Hex, KEY_NODE};
use testudo_actors::{JobSpec, SignedJob};
use testudo_observability::audit::{Scribe, Signer};
use testudo_transport::{Expected, Identity};

use super::AuditLogError;
use super::found::{self, Found};
use super::lines::file_error;
use crate::appender::Appender;
use crate::checkpoint::retention;
use crate::process::locked::Locked;

/// Entries that may wait for the thread. Beyond it, who has one to tell waits: nothing is left out of the log.
const WAITING: usize = 4096;

/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Between two attempts to write to a disk that takes nothing.
const AGAIN: Duration = Duration::from_secs(1);

enum Mail {
    Entry(Entry),
    Close,
}

/// A log being written.
#[derive(Debug)]
pub struct AuditLog {
    handle: AuditHandle,
    thread: JoinHandle<Result<Hex, AuditLogError>>,
    /// Manifests whose deletion it told of when it was opened.
    deleted: BTreeSet<Hex>,
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
        self.heads()()
    }

    /// Asks for the same later, and does not keep the log open.
    pub(crate) fn heads(&self) -> impl Fn() -> Option<Head> + Send + Sync + use<> {
        let synced = Arc::clone(&self.synced);
        move || *synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log that is open, with the key and the job in it.
pub struct Begun {
    writer: Writer,
    deleted: BTreeSet<Hex>,
}

impl Begun {
    /// Starts the thread that goes on with it.
    ///
    /// # Errors
    /// [`AuditLogError`] when there can be no thread.
    pub fn start(self) -> Result<AuditLog, AuditLogError> {
        let Begun { writer, deleted } = self;
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
        Ok(AuditLog { handle, thread, deleted })
    }
}

/// The key that signs now.
#[derive(Clone)]
struct AuditKey(Arc<Mutex<Identity>>);

impl AuditKey {
    fn held(&self) -> MutexGuard<'_, Identity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signature by a certificate that has ended would be refused by every reader, with all that it signs.
    fn check(&self) -> Result<(), String> {
        let held = self.held();
        let checked = held.trust().verify(held.certificate_der(), &Expected::Node(held.id().clone()));
        checked.map(|_| ()).map_err(|why| {
            format!("the key's certificate is not good: {why}; renew it in time, with `testudo pki renew`")
        })
    }
}

impl Signer for AuditKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.check()?;
        self.held().sign(message).map_err(|e| e.to_string())
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
        let (mut writer, found) = Writer::open(path, identity, |_| Ok(()))?;
        let torn_bytes = found.torn_bytes;
        let trust = identity.trust();
        writer.entry(&Entry::Key {
            trust_domain: trust.trust_domain().to_owned(),
            job: trust.job().to_owned(),
            ca: Base64(trust.ca_der()),
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
        Ok(Begun { writer, deleted: found.deleted })
    }

    /// Adds those deletions in `recorded`, which checkpoints keep beside them, that the log does not tell of: what was put aside
    /// when this run was resumed, and what was deleted while nobody could sign.
    pub fn tell_deletions(&self, recorded: &[retention::Record]) {
        missing(&self.deleted, recorded).into_iter().for_each(|entry| self.handle.tell(entry));
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

/// Goes on with the log at `path` after the run: what `command` did is recorded and signed by the key that signed last, and on
/// the disk when this returns. Of the deletions in `recorded`, those are added that the log does not tell of; then `entries`. Returns
/// the head.
///
/// # Errors
/// [`AuditLogError`]; nothing was recorded then. The key must be the one that the log names last, and a damaged log is not gone on
/// with (invariant 3 of [`super`]).
pub fn go_on(
    path: &Path,
    identity: &Identity,
    command: &str,
    recorded: &[retention::Record],
    entries: &[Entry],
) -> Result<Hex, AuditLogError> {
    let ours = Base64(identity.certificate_der().to_vec());
    let (mut writer, found) = Writer::open(path, identity, |found| match &found.certificate {
        Some(certificate) if *certificate == ours => Ok(()),
        Some(_) => Err("its records are signed by another key than the one at hand"),
        None => Err("it names no key"),
    })?;
    let entries: Vec<Entry> = missing(&found.deleted, recorded).into_iter().chain(entries.to_vec()).collect();
    // Records that a full disk kept a signature from are no less a reason.
    if !entries.is_empty() || found.is_unsigned {
        let reopened = Entry::Reopened { command: command.to_owned(), torn_bytes: found.torn_bytes };
        for entry in std::iter::once(&reopened).chain(&entries) {
            let now = writer.now();
            writer.scribe.entry(now, entry)?;
        }
        writer.finish()?;
    }
    Ok(writer.scribe.head())
}

/// Records of the deletions that `told` has not.
fn missing(told: &BTreeSet<Hex>, recorded: &[retention::Record]) -> Vec<Entry> {
    let mut seen = told.clone();
    let new = recorded.iter().filter(|record| seen.insert(Hex(record.manifest_blake3.0)));
    new.map(|record| Entry::Deletion {
        step: record.step,
        manifest_blake3: Hex(record.manifest_blake3.0),
        why: audit::text(&record.why),
    })
    .collect()
}

struct Writer {
    path: PathBuf,
    file: Appender,
    scribe: Scribe,
    /// Whether records waited for the disk since it was synced.
    is_behind: bool,
    /// Entries that could not wait for it.
    left_out: u64,
    identity: Identity,
    key: AuditKey,
    synced: Arc<Mutex<Option<Head>>>,
    _lock: Locked,
}

impl Writer {
    /// Opens and locks the log, follows what is in it, and mends its end if `accept` takes that.
    fn open(
        path: &Path,
        identity: &Identity,
        accept: impl FnOnce(&Found) -> Result<(), &'static str>,
    ) -> Result<(Writer, Found), AuditLogError> {
        let (file, lock) = found::lock(path)?;
        let found = found::read(path)?;
        accept(&found).map_err(|why| AuditLogError::Key { path: path.to_owned(), what: why.into() })?;
        if found.torn_bytes > 0 {
            file.set_len(found.whole_bytes).map_err(|e| file_error(path, "cannot be mended", &e))?;
        }
        let (identity, path) = (identity.clone(), path.to_owned());
        let key = AuditKey(Arc::new(Mutex::new(identity.clone())));
        let scribe = Scribe::new(found.chain.clone(), Box::new(key.clone()));
        let file = Appender::new(file).map_err(|e| file_error(&path, "cannot be read", &e))?;
        let synced = Arc::default();
        let (is_behind, left_out) = (false, 0);
        let writer = Writer { path, file, scribe, is_behind, left_out, identity, key, synced, _lock: lock };
        Ok((writer, found))
    }

    fn run(mut self, mail: &Receiver<Mail>) -> Result<Hex, AuditLogError> {
        loop {
            let due = self
                .scribe
                .poll_timeout()
                .map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(self.now())).min(IDLE));
            match mail.recv_timeout(if self.is_behind { due.min(AGAIN) } else { due }) {
                Ok(Mail::Entry(entry)) => self.proceed(Some(&entry))?,
                Err(RecvTimeoutError::Timeout) => self.proceed(None)?,
                Ok(Mail::Close) | Err(RecvTimeoutError::Disconnected) => {
                    self.proceed(None)?;
                    self.finish()?;
                    return Ok(self.scribe.head());
                }
            }
        }
    }

    /// Does all that is due, and adds `entry`: unless the disk has been full for so long that it cannot wait, and is counted.
    fn proceed(&mut self, entry: Option<&Entry>) -> Result<(), AuditLogError> {
        if self.is_behind && self.flush().is_ok() {
            self.catch_up()?;
        }
        self.follow()?;
        match entry {
            Some(entry) if self.left_out == 0 && self.file.has_room() => self.entry(entry)?,
            Some(_) => self.left_out += 1,
            None => {}
        }
        let now = self.now();
        match self.scribe.sign_if_due(now)? {
            true => self.store(),
            false => Ok(()),
        }
    }

    /// Goes on with the newest certificate of the key. What came before is signed with the one before, if that is good still.
    fn follow(&mut self) -> Result<(), AuditLogError> {
        let newest = self.identity.latest();
        if newest.certificate_der() == self.key.held().certificate_der() {
            return Ok(());
        }
        if self.key.check().is_ok() {
            self.sign()?;
        }
        let certificate = Base64(newest.certificate_der().to_vec());
        *self.key.held() = newest;
        self.entry(&Entry::Renewed { node: KEY_NODE.to_owned(), certificate })?;
        self.sign()
    }

    /// All that waited is written: says what could not wait, and signs.
    fn catch_up(&mut self) -> Result<(), AuditLogError> {
        let records = std::mem::take(&mut self.left_out);
        tracing::info!(left_out = records, "the audit log is written again");
        if records > 0 {
            self.entry(&Entry::LeftOut { records })?;
        }
        self.sign()
    }

    /// Adds an entry, which may wait for the disk.
    fn entry(&mut self, entry: &Entry) -> Result<(), AuditLogError> {
        let now = self.now();
        self.scribe.entry(now, entry)?;
        self.flush().ok();
        Ok(())
    }

    /// Signs what is not signed. All of it is on the disk after that, or waits for it.
    fn sign(&mut self) -> Result<(), AuditLogError> {
        let now = self.now();
        self.scribe.sign(now)?;
        self.store()
    }

    /// Has all that there is on the disk, or wait for it.
    fn store(&mut self) -> Result<(), AuditLogError> {
        match self.flush() {
            Ok(()) => self.sync(),
            Err(_) => Ok(()),
        }
    }

    /// Signs what is not signed, and has all of it on the disk.
    fn finish(&mut self) -> Result<(), AuditLogError> {
        let now = self.now();
        self.scribe.sign(now)?;
        self.flush().map_err(|e| file_error(&self.path, "cannot be written", &e))?;
        self.sync()
    }

    /// Writes what the disk takes; the rest waits for it.
    fn flush(&mut self) -> std::io::Result<()> {
        let written = self.file.append(&self.scribe.take());
        if let (Err(error), false) = (&written, self.is_behind) {
            tracing::warn!(%error, "the audit log cannot be written; its records wait for that");
            self.is_behind = true;
        }
        written
    }

    /// Milliseconds since 1970, by the clock that judges the certificate.
    fn now(&self) -> u64 {
        let since = self.identity.trust().time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn sync(&mut self) -> Result<(), AuditLogError> {
        self.file.file().sync_data().map_err(|e| file_error(&self.path, "cannot be synced", &e))?;
        self.is_behind = false;
        let head = Head { record: self.scribe.records().saturating_sub(1), hash: self.scribe.head() };
        *self.synced.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};

    use testudo_transport::{JobCa, Role, SpiffeId};

    use super::*;
    use crate::appender::HELD_MOST;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    /// A disk that takes nothing for a while: records wait, those that cannot are counted, and the log holds.
    #[test]
    fn a_full_disk_ends_no_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let ca = JobCa::create("test.local", "small", DAY).unwrap();
        let id = SpiffeId::new("test.local", "small", Role::Actor, "audit").unwrap();
        let key = ca.issue(&id, DAY).unwrap();
        let (mut writer, _) = Writer::open(&path, &key, |_| Ok(())).unwrap();
        writer.proceed(Some(&Entry::command("operator/0", &Ok("paused".into())))).unwrap();
        writer.finish().unwrap();
        let head = *writer.synced.lock().unwrap();

        // Nothing can be written to a file that is open for reading.
        writer.file.replace(File::open(&path).unwrap());
        let entry = Entry::command("operator/0", &Ok("x".repeat(500)));
        let mut told = 0_u64;
        while writer.left_out < 3 {
            writer.proceed(Some(&entry)).unwrap();
            told += 1;
        }
        assert!((HELD_MOST..HELD_MOST + (2 << 10)).contains(&writer.file.held()));
        assert_eq!(*writer.synced.lock().unwrap(), head, "no node signs what is not on the disk");
        assert!(writer.finish().is_err(), "nobody is told that it is");

        writer.file.replace(OpenOptions::new().append(true).open(&path).unwrap());
        writer.proceed(None).unwrap();
        writer.finish().unwrap();
        assert_eq!(writer.synced.lock().unwrap().unwrap().hash, writer.scribe.head());
        drop(writer);
        let (mut commands, mut left_out) = (0, 0);
        let mut chain = testudo_observability::audit::Chain::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let record = chain.follow(line.as_bytes()).unwrap();
            commands += u64::from(record.kind == "command");
            left_out += record.body.get("records").and_then(serde_json::Value::as_u64).unwrap_or(0);
        }
        assert_eq!((commands + left_out, left_out), (told + 1, 3));
    }
}

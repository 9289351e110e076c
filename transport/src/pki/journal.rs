//! Records that are only ever added to: one line of JSON each, in a file of the CA's directory.
//!
//! Invariants:
//!
//! 1. Who holds the [`Locked`] journal is alone with it, among processes too: what was read is still so when something is
//!    added.
//! 2. A record that was added is on disk, whole, when [`Locked::append`] returns. An end that a crash tore off is neither
//!    read nor built upon.
//! 3. The file is the owner's alone, no link, and never longer than [`MAX_JOURNAL`]; no line is longer than [`MAX_LINE`].

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{PkiError, files};

/// Longest journal, in bytes: some 200,000 records. It is read whole.
const MAX_JOURNAL: u64 = 64 << 20;
/// Longest record, in bytes: an identity has 2 KiB at most, and the rest is short.
const MAX_LINE: usize = 4096;

/// A journal of records of one type. Nothing is opened before it is used.
#[derive(Debug, Clone)]
pub(super) struct Journal<T> {
    path: PathBuf,
    records: PhantomData<fn() -> T>,
}

/// By which a file that has changed can be told: every record that is added makes it longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// A journal that nobody else has now.
pub(super) struct Locked<T> {
    path: PathBuf,
    file: File,
    records: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// The journal in the file `path`, which need not exist.
    pub(super) fn at(path: PathBuf) -> Self {
        Journal { path, records: PhantomData }
    }

    /// Every record, oldest first; none when there is no file.
    pub(super) fn read(&self) -> Result<Vec<T>, PkiError> {
        match std::fs::symlink_metadata(&self.path) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => self.lock()?.read(),
        }
    }

    /// The file's stamp; none when there is no file.
    pub(super) fn stamp(&self) -> Result<Option<Stamp>, PkiError> {
        use std::os::unix::fs::MetadataExt as _;
        match std::fs::symlink_metadata(&self.path) {
            Ok(found) => Ok(Some(Stamp {
                inode: found.ino(),
                length: found.len(),
                modified: (found.mtime(), found.mtime_nsec()),
            })),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(files::failed(&self.path, &why)),
        }
    }

    /// Makes the file if it is not there, and waits until nobody else has it.
    pub(super) fn lock(&self) -> Result<Locked<T>, PkiError> {
        let file = files::open_journal(&self.path)?;
        flock(&file, FlockOperation::LockExclusive).map_err(|why| files::failed(&self.path, &why.into()))?;
        Ok(Locked { path: self.path.clone(), file, records: PhantomData })
    }
}

impl<T: Serialize + DeserializeOwned> Locked<T> {
    /// Every record, oldest first.
    pub(super) fn read(&mut self) -> Result<Vec<T>, PkiError> {
        let text = self.whole_lines()?;
        let mut records = Vec::new();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let record = serde_json::from_slice(line).map_err(|why| self.bad(number + 1, &why.to_string()));
            if line.len() > MAX_LINE {
                return Err(self.bad(number + 1, "it is too long"));
            }
            records.push(record?);
        }
        Ok(records)
    }

    /// Adds a record, and returns when it is on disk.
    pub(super) fn append(&mut self, record: &T) -> Result<(), PkiError> {
        let failed = |path: &Path, why: std::io::Error| files::failed(path, &why);
        let mut line =
            serde_json::to_vec(record).map_err(|_| PkiError::Crypto("a record cannot be written as JSON"))?;
        line.push(b'\n');
        let length = self.whole_lines()?.len() as u64;
        if line.len() > MAX_LINE || length + line.len() as u64 > MAX_JOURNAL {
            let what =
                format!("it would grow beyond {MAX_JOURNAL} bytes; move lines that have expired elsewhere");
            return Err(PkiError::File { path: self.path.clone(), what });
        }
        // What a crash left of a line goes first, so that the new one does not become its end.
        self.file.set_len(length).map_err(|why| failed(&self.path, why))?;
        self.file.write_all(&line).map_err(|why| failed(&self.path, why))?;
        self.file.sync_all().map_err(|why| failed(&self.path, why))?;
        files::sync_folder_of(&self.path)
    }

    /// The file up to the end of its last whole line.
    fn whole_lines(&mut self) -> Result<Vec<u8>, PkiError> {
        let failed = |path: &Path, why: std::io::Error| files::failed(path, &why);
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0)).map_err(|why| failed(&self.path, why))?;
        let mut limited = (&self.file).take(MAX_JOURNAL + 1);
        limited.read_to_end(&mut text).map_err(|why| failed(&self.path, why))?;
        if text.len() as u64 > MAX_JOURNAL {
            let what = format!("longer than {MAX_JOURNAL} bytes; move lines that have expired elsewhere");
            return Err(PkiError::File { path: self.path.clone(), what });
        }
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        text.truncate(end);
        Ok(text)
    }

    fn bad(&self, number: usize, why: &str) -> PkiError {
        let what = format!("line {number} is no record of this file: {why}; put back a copy that is whole");
        PkiError::File { path: self.path.clone(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(directory: &tempfile::TempDir) -> Journal<u32> {
        Journal::at(directory.path().join("numbers.jsonl"))
    }

    /// Invariants 2 and 3.
    #[test]
    fn a_torn_end_is_neither_read_nor_built_upon() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        assert_eq!(journal.read(), Ok(vec![]), "no file is no record");
        for number in [1, 22, 333] {
            journal.lock().unwrap().append(&number).unwrap();
        }
        let whole = std::fs::read(&journal.path).unwrap();
        assert_eq!(whole, b"1\n22\n333\n");
        for cut in 0..whole.len() {
            std::fs::write(&journal.path, &whole[..cut]).unwrap();
            let kept = journal.read().unwrap();
            assert_eq!(kept.len(), whole[..cut].iter().filter(|byte| **byte == b'\n').count());
            journal.lock().unwrap().append(&4444).unwrap();
            let now = journal.read().unwrap();
            assert_eq!((now.len(), now.last()), (kept.len() + 1, Some(&4444)), "cut at {cut}");
        }
    }

    /// Invariant 3.
    #[test]
    fn what_is_not_ours_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        journal.lock().unwrap().append(&1).unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        assert_eq!(std::fs::metadata(&journal.path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&journal.path, mode(0o640)).unwrap();
        assert!(matches!(journal.read(), Err(PkiError::NotPrivate { .. })));
        std::fs::set_permissions(&journal.path, mode(0o600)).unwrap();
        std::fs::write(&journal.path, "1\ntwo\n3\n").unwrap();
        assert!(journal.read().unwrap_err().to_string().contains("line 2"));
        let moved = directory.path().join("moved");
        std::fs::rename(&journal.path, &moved).unwrap();
        symlink(&moved, &journal.path).unwrap();
        assert!(matches!(journal.read(), Err(PkiError::NotPrivate { .. })));
    }

    /// Invariant 1.
    #[test]
    fn counting_up_from_many_threads_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let mut alone = journal.lock().unwrap();
                        let next = alone.read().unwrap().last().map_or(0, |last| last + 1);
                        alone.append(&next).unwrap();
                    }
                });
            }
        });
        assert_eq!(journal.read(), Ok((0..100).collect()));
    }
}

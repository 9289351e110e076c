//! What a writer finds: the log that is there, followed to its end, and locked.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use testudo_actors::audit::{Base64, Entry, Hex, KEY_NODE};
use testudo_observability::audit::{Chain, SIGNATURE};

use super::AuditLogError;
use super::lines::{Lines, file_error};
use super::verify::entry;
use crate::process::locked::Locked;

/// A log, followed to its end.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) chain: Chain,
    /// Bytes of its whole records.
    pub(super) whole_bytes: u64,
    /// Bytes of a last record that a crash cut short.
    pub(super) torn_bytes: u64,
    /// Whether records come after its last signature.
    pub(super) is_unsigned: bool,
    /// The certificate of the key that it names last.
    pub(super) certificate: Option<Base64>,
    /// Manifests whose deletion it tells of.
    pub(super) deleted: BTreeSet<Hex>,
}

/// Follows the log at `path`.
pub(super) fn read(path: &Path) -> Result<Found, AuditLogError> {
    let mut found = Found::default();
    for line in Lines::open(path)? {
        let line = line?;
        if !line.is_whole {
            found.torn_bytes = line.bytes.len() as u64;
            break;
        }
        let damaged = |why: String| AuditLogError::Damaged {
            path: path.to_owned(),
            line: line.number,
            what: format!("{why}; move the log away to go on without its history"),
        };
        let record = found.chain.follow(&line.bytes).map_err(|why| damaged(why.to_string()))?;
        found.whole_bytes += line.bytes.len() as u64 + 1;
        found.is_unsigned = record.kind != SIGNATURE;
        if !found.is_unsigned {
            continue;
        }
        match entry(&record).map_err(damaged)? {
            Entry::Renewed { node, certificate } if node == KEY_NODE => found.certificate = Some(certificate),
            Entry::Key { certificate, .. } => found.certificate = Some(certificate),
            Entry::Deletion { manifest_blake3, .. } => {
                found.deleted.insert(manifest_blake3);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Opens the log for writing at its end, by one process at a time, for as long as the lock is kept; makes it if it is not there.
pub(super) fn lock(path: &Path) -> Result<(File, Locked), AuditLogError> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(|e| file_error(path, "cannot be written", &e))?;
    let same = file.try_clone().map_err(|e| file_error(path, "cannot be locked", &e))?;
    let lock = Locked::new(same).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => {
            AuditLogError::File { path: path.to_owned(), what: "another process is writing it".into() }
        }
        other => file_error(path, "cannot be locked", &other.into()),
    })?;
    if let Some(folder) = path.parent() {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|e| file_error(folder, "cannot be synced", &e))?;
    }
    Ok((file, lock))
}

//! Which checkpoints are kept, and the record of those that are not.
//!
//! 1. The newest whole checkpoint is never deleted here.
//! 2. A deletion is recorded, on disk, before it is made; the audit log, which is signed, takes it from there. Then the manifest goes, and with it the checkpoint; then the rest.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use testudo_actors::checkpoint::Deletion;

use super::CheckpointError;
use super::layout::Layout;
use super::manifest::{Hex, Manifest, read_small};
use super::storage::Storage;

/// How many checkpoints are kept, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many are kept; at least 1.
    pub keep_last: usize,
    /// Those older are not, but for the newest.
    pub max_age: Option<Duration>,
}

impl Retention {
    /// As the cluster file says.
    #[must_use]
    pub fn new(config: &crate::config::Checkpoint) -> Retention {
        let hours = u64::from(config.max_age_hours);
        Retention {
            keep_last: config.keep_last.max(1) as usize,
            max_age: (hours > 0).then(|| Duration::from_secs(hours * 3600)),
        }
    }

    /// What is to be deleted of `all`, steps in order with the times that they were written at, and why.
    #[must_use]
    pub fn choose(&self, all: &[(u64, SystemTime)], now: SystemTime) -> Vec<(u64, String)> {
        let newest = all.len().saturating_sub(1);
        let beyond = all.len().saturating_sub(self.keep_last.max(1));
        let mut chosen = Vec::new();
        for (at, (step, written)) in all.iter().enumerate().take(newest) {
            let age = now.duration_since(*written).unwrap_or_default();
            if at < beyond {
                chosen.push((*step, format!("checkpoint.keep_last is {}", self.keep_last)));
            } else if let Some(most) = self.max_age.filter(|most| age > *most) {
                chosen.push((*step, format!("checkpoint.max_age_hours is {}", most.as_secs() / 3600)));
            }
        }
        chosen
    }
}

/// One line of `deletions.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Seconds since 1970.
    pub at: u64,
    /// The checkpoint's step.
    pub step: u64,
    /// BLAKE3 of its manifest.
    pub manifest_blake3: Hex,
    /// Why.
    pub why: String,
}

/// Appends to the record (invariant 2).
///
/// # Errors
/// [`CheckpointError::Io`]; nothing may be deleted then.
pub fn record(
    layout: &Layout,
    storage: &dyn Storage,
    now: SystemTime,
    deletions: &[Deletion],
) -> Result<(), CheckpointError> {
    let path = layout.deletions();
    let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut lines = Vec::new();
    for deletion in deletions {
        let Deletion { step, manifest_blake3, why } = deletion.clone();
        let record = Record { at, step, manifest_blake3: Hex(manifest_blake3), why };
        lines.push(serde_json::to_string(&record).map_err(|e| CheckpointError::malformed(&path, e))?);
    }
    append(layout, storage, &lines)
}

/// Records that the run's key, which opened what is encrypted to `recipients`, is about to be destroyed.
///
/// # Errors
/// [`CheckpointError::Io`]; the key may not be destroyed then.
pub fn record_key(
    layout: &Layout,
    storage: &dyn Storage,
    now: SystemTime,
    recipients: &[String],
) -> Result<(), CheckpointError> {
    let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    append(layout, storage, &[serde_json::json!({ "at": at, "key_destroyed": recipients }).to_string()])
}

fn append(layout: &Layout, storage: &dyn Storage, lines: &[String]) -> Result<(), CheckpointError> {
    let path = layout.deletions();
    // After a crash in the middle of a line, the next record begins on a line of its own; empty lines mean nothing.
    let text = format!("\n{}\n", lines.join("\n"));
    let append = || {
        let mut output = storage.append(&path)?;
        output.write_all(text.as_bytes())?;
        output.sync()?;
        storage.sync_dir(layout.folder())
    };
    append().map_err(CheckpointError::io("write", &path))
}

/// The record. A line that a crash cut short is left out: what it was about was not deleted.
///
/// # Errors
/// [`CheckpointError`] when it cannot be read.
pub fn read_deletions(layout: &Layout) -> Result<Vec<Record>, CheckpointError> {
    let path = layout.deletions();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = read_small(&path)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Deletes the checkpoint at `step`, which has been recorded.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn delete(layout: &Layout, storage: &dyn Storage, step: u64) -> Result<(), CheckpointError> {
    let (manifest, folder) = (layout.manifest(step), layout.step(step));
    storage.remove_file(&manifest).map_err(CheckpointError::io("delete", &manifest))?;
    storage.sync_dir(&folder).map_err(CheckpointError::io("sync", &folder))?;
    storage.remove_dir_all(&folder).map_err(CheckpointError::io("delete", &folder))
}

/// What `retention` does not keep, recorded (invariant 2) and not deleted yet. Manifests are not checked here: what is not to be kept
/// goes, whoever wrote it.
///
/// # Errors
/// [`CheckpointError`]; nothing may be deleted then.
pub fn due(
    layout: &Layout,
    storage: &dyn Storage,
    retention: Retention,
    now: SystemTime,
) -> Result<Vec<Deletion>, CheckpointError> {
    let steps = layout.steps().map_err(CheckpointError::io("read", layout.folder()))?;
    let mut all = Vec::new();
    let mut hashes = Vec::new();
    for step in steps {
        let path = layout.manifest(step);
        if path.exists() {
            let bytes = read_small(&path)?;
            let written = Manifest::parse(&path, &bytes, step).map_or(now, |manifest| manifest.created_at());
            all.push((step, written));
            hashes.push((step, *blake3::hash(&bytes).as_bytes()));
        }
    }
    let chosen = retention.choose(&all, now);
    let deletions: Vec<Deletion> = chosen
        .into_iter()
        .filter_map(|(step, why)| {
            let (_, manifest_blake3) = hashes.iter().find(|(s, _)| *s == step)?;
            Some(Deletion { step, manifest_blake3: *manifest_blake3, why })
        })
        .collect();
    if !deletions.is_empty() {
        record(layout, storage, now, &deletions)?;
    }
    Ok(deletions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3600)
    }

    /// Invariant 1, by count and by age.
    #[test]
    fn the_newest_stay_and_the_last_always() {
        let all = [(10, at(1)), (20, at(2)), (30, at(3))];
        let steps = |keep_last, max_age: Option<u64>, now| -> Vec<u64> {
            let max_age = max_age.map(|h| Duration::from_secs(h * 3600));
            let retention = Retention { keep_last, max_age };
            retention.choose(&all, at(now)).into_iter().map(|(step, _)| step).collect()
        };
        assert_eq!(steps(3, None, 1000), [0; 0]);
        assert_eq!(steps(2, None, 1000), [10]);
        assert_eq!(steps(1, None, 1000), [10, 20]);
        assert_eq!(steps(0, None, 1000), [10, 20], "none is not possible");
        assert_eq!(steps(9, Some(5), 7), [10]);
        assert_eq!(steps(9, Some(1), 1000), [10, 20], "however old the last one is");
        assert_eq!(steps(9, Some(1), 0), [0; 0], "a clock that was set back deletes nothing");
        assert!(Retention { keep_last: 1, max_age: None }.choose(&[], at(0)).is_empty());
    }
}

//! What lies beside the log, against what it says: signed job, summary, checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use testudo_actors::SignedJob;
use testudo_actors::audit::{Entry, Hex};
use testudo_transport::Trust;

use super::AuditLogError;
use super::verify::{Seen, Verified};
use crate::checkpoint::{Layout, retention};
use crate::report::summary::Summary;
use crate::rundir::RunDir;

/// Bytes of a file beside the log that are read at most.
const BYTES_MOST: u64 = 8 << 20;

struct LoggedJob {
    operator: String,
    signed_blake3: Hex,
    trust: Option<Trust>,
    at: SystemTime,
}

/// What of the log is compared, gathered while it is read.
pub(super) struct Facts<'a> {
    run_dir: &'a RunDir,
    expected: Option<Hex>,
    expected_at: Option<u64>,
    summary: Option<Summary>,
    summary_at: Option<u64>,
    /// The run's end before the record that the summary names, and whether what comes right after it may.
    summary_end: Option<(u64, Option<Hex>)>,
    summary_holds: bool,
    job: Option<LoggedJob>,
    end: Option<(u64, Option<Hex>)>,
    checkpoints: BTreeMap<u64, Hex>,
    deleted: BTreeSet<Hex>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(run_dir: &'a RunDir, expected: Option<Hex>) -> Result<Facts<'a>, AuditLogError> {
        let path = run_dir.summary();
        // An empty one is of a run that has not ended.
        let summary = match read_small(&path)?.filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|e| differs(&path, e.to_string()))?),
            None => None,
        };
        Ok(Facts {
            run_dir,
            expected,
            expected_at: None,
            summary,
            summary_at: None,
            summary_end: None,
            summary_holds: true,
            job: None,
            end: None,
            checkpoints: BTreeMap::new(),
            deleted: BTreeSet::new(),
        })
    }

    fn summary_head(&self) -> Option<Hex> {
        self.summary.as_ref()?.audit_head.as_ref()?.parse().ok()
    }

    /// Is shown every record that was checked.
    pub(super) fn see(&mut self, seen: &Seen<'_>, entry: Option<&Entry>) {
        if self.expected == Some(seen.hash) {
            self.expected_at = Some(seen.record.seq);
        }
        // A run that was resumed, or pruned, goes on after the summary of its last end.
        if self.summary_at.is_some_and(|at| at + 1 == seen.record.seq) {
            self.summary_holds = matches!(entry, Some(Entry::Key { .. } | Entry::Reopened { .. }));
        }
        if self.summary_head() == Some(seen.hash) {
            (self.summary_at, self.summary_end) = (Some(seen.record.seq), self.end);
        }
        let Some(entry) = entry else { return };
        match entry {
            Entry::Job { operator, signed_blake3, .. } => {
                self.job = Some(LoggedJob {
                    operator: operator.clone(),
                    signed_blake3: *signed_blake3,
                    trust: seen.trust.cloned(),
                    at: seen.at(),
                });
            }
            Entry::Checkpoint { step, manifest_blake3 } => {
                self.checkpoints.insert(*step, *manifest_blake3);
            }
            Entry::Deletion { manifest_blake3, .. } => {
                self.deleted.insert(*manifest_blake3);
            }
            Entry::End { steps, params_blake3, .. } => self.end = Some((*steps, *params_blake3)),
            _ => {}
        }
    }

    /// How many records stand after the expected head.
    pub(super) fn since_expected(&self, verified: &Verified) -> Option<u64> {
        self.expected_at.map(|at| verified.records - 1 - at)
    }

    /// Says how many checkpoints are gone by word of `deletions.jsonl` alone, which nobody signed.
    ///
    /// Invariant 5 of [`super`].
    pub(super) fn compare(&self) -> Result<u64, AuditLogError> {
        let log = self.run_dir.audit_log();
        if let (Some(expected), None) = (self.expected, self.expected_at) {
            let what = format!(
                "no record has the expected head {expected}: the log was cut before it, or is another one"
            );
            return Err(AuditLogError::Incomplete { path: log, what });
        }
        self.signed_job()?;
        self.summary()?;
        let layout = Layout::new(&self.run_dir.checkpoints());
        // Where nobody could sign, a deletion is recorded beside the checkpoints alone.
        let records = retention::read_deletions(&layout)
            .map_err(|error| differs(&layout.deletions(), error.to_string()))?;
        let pruned: BTreeSet<Hex> = records.iter().map(|record| Hex(record.manifest_blake3.0)).collect();
        let mut unsigned = 0;
        for (step, logged) in &self.checkpoints {
            let path = layout.manifest(*step);
            match read_small(&path)? {
                Some(bytes) if Hex::hash(&bytes) == *logged => {}
                Some(_) => {
                    return Err(differs(&path, format!("the log names manifest {logged} at step {step}")));
                }
                None if self.deleted.contains(logged) => {}
                None if pruned.contains(logged) => unsigned += 1,
                None => {
                    let what =
                        format!("it is gone, and no record says that it was deleted (manifest {logged})");
                    return Err(differs(&path, what));
                }
            }
        }
        Ok(unsigned)
    }

    fn signed_job(&self) -> Result<(), AuditLogError> {
        let path = self.run_dir.signed_job();
        let (Some(logged), Some(bytes)) = (&self.job, read_small(&path)?) else { return Ok(()) };
        if Hex::hash(&bytes) != logged.signed_blake3 {
            return Err(differs(&path, "it is not the job that the log names".into()));
        }
        let signed = SignedJob::from_bytes(&bytes).map_err(|e| differs(&path, e.to_string()))?;
        let Some(trust) = &logged.trust else { return Ok(()) };
        let (_, signer) = signed.check(trust, logged.at).map_err(|e| differs(&path, e.to_string()))?;
        if signer.short() != logged.operator {
            let what = format!("{} signed it, the log says {}", signer.short(), logged.operator);
            return Err(differs(&path, what));
        }
        Ok(())
    }

    fn summary(&self) -> Result<(), AuditLogError> {
        let path = self.run_dir.summary();
        let Some(summary) = &self.summary else { return Ok(()) };
        let Some(head) = &summary.audit_head else { return Ok(()) };
        if self.summary_at.is_none() {
            let what = format!(
                "it names the head {head}, which no record of the log has: the log was cut before it, or is another one"
            );
            return Err(differs(&path, what));
        }
        if !self.summary_holds {
            return Err(differs(
                &path,
                format!("it names {head} as the run's last record, and the run goes on"),
            ));
        }
        if let Some((steps, hash)) = &self.summary_end
            && (*steps != summary.steps || hash.map(String::from).as_ref() != Some(&summary.params_blake3))
        {
            return Err(differs(&path, "its steps or params_blake3 are not those of the log's end".into()));
        }
        Ok(())
    }
}

fn differs(path: &Path, what: String) -> AuditLogError {
    AuditLogError::Differs { path: path.to_owned(), what }
}

/// A file of bounded size; `None` if it is not there.
fn read_small(path: &Path) -> Result<Option<Vec<u8>>, AuditLogError> {
    use std::io::Read as _;
    let refused = |e: std::io::Error| super::lines::file_error(path, "cannot be read", &e);
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(refused)?,
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MOST + 1).read_to_end(&mut bytes).map_err(refused)?;
    if bytes.len() as u64 > BYTES_MOST {
        return Err(differs(path, format!("it is longer than {BYTES_MOST} bytes")));
    }
    Ok(Some(bytes))
}

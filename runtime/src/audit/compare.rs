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
    job: Option<LoggedJob>,
    end: Option<(u64, Option<Hex>)>,
    checkpoints: BTreeMap<u64, Hex>,
    deleted: BTreeSet<Hex>,
}

impl<'a> Facts<'a> {
    pub(super) fn new(run_dir: &'a RunDir, expected: Option<Hex>) -> Result<Facts<'a>, AuditLogError> {
        let path = run_dir.summary();
        let summary = match read_small(&path)? {
            Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|e| differs(&path, e.to_string()))?),
            None => None,
        };
        Ok(Facts {
            run_dir,
            expected,
            expected_at: None,
            summary,
            summary_at: None,
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
        if self.summary_head() == Some(seen.hash) {
            self.summary_at = Some(seen.record.seq);
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

    /// Invariant 4 of [`super`].
    pub(super) fn compare(&self, verified: &Verified) -> Result<(), AuditLogError> {
        let log = self.run_dir.audit_log();
        if let (Some(expected), None) = (self.expected, self.expected_at) {
            let what = format!(
                "no record has the expected head {expected}: the log was cut before it, or is another one"
            );
            return Err(AuditLogError::Incomplete { path: log, what });
        }
        self.signed_job()?;
        self.summary(verified)?;
        let layout = Layout::new(&self.run_dir.checkpoints());
        // What was pruned after the run, or put aside when it was resumed, is recorded beside the checkpoints alone.
        let records = retention::read_deletions(&layout)
            .map_err(|error| differs(&layout.deletions(), error.to_string()))?;
        let pruned: BTreeSet<Hex> = records.iter().map(|record| Hex(record.manifest_blake3.0)).collect();
        for (step, logged) in &self.checkpoints {
            let path = layout.manifest(*step);
            match read_small(&path)? {
                Some(bytes) if Hex::hash(&bytes) == *logged => {}
                Some(_) => {
                    return Err(differs(&path, format!("the log names manifest {logged} at step {step}")));
                }
                None if self.deleted.contains(logged) || pruned.contains(logged) => {}
                None => {
                    let what =
                        format!("it is gone, and no record says that it was deleted (manifest {logged})");
                    return Err(differs(&path, what));
                }
            }
        }
        Ok(())
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

    fn summary(&self, verified: &Verified) -> Result<(), AuditLogError> {
        let path = self.run_dir.summary();
        let Some(summary) = &self.summary else { return Ok(()) };
        let Some(head) = &summary.audit_head else { return Ok(()) };
        let Some(at) = self.summary_at else {
            let what = format!(
                "it names the head {head}, which no record of the log has: the log was cut before it, or is another one"
            );
            return Err(differs(&path, what));
        };
        // A run that was resumed may have gone on after the summary of its last end.
        let is_last = at + 1 == verified.records;
        let goes_on = verified.sessions.iter().any(|session| session.first == at + 1);
        if !is_last && !goes_on {
            return Err(differs(&path, format!("it names record {at} as the last one, and the log goes on")));
        }
        if let (true, Some((steps, hash))) = (is_last, &self.end)
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

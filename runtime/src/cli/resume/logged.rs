//! What the audit log knows of a run's checkpoints. Workers that keep residuals may write to the folder of checkpoints, with its list of
//! CAs; to the log they may not.

use std::collections::BTreeSet;

use testudo_actors::audit::{Entry, Hex};
use testudo_transport::Trust;

use crate::audit;
use crate::checkpoint::store::Whole;
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::error::Failure;
use crate::rundir::RunDir;

/// The manifests that a log names, and the CAs of the runs in it.
pub(super) struct Logged {
    named: BTreeSet<[u8; 32]>,
    trusted: Vec<Trust>,
}

impl Logged {
    /// What the log of `run_dir` says; `None` where there is none. With `cas` (DER), every key of it must be of one of them.
    pub(super) fn read(run_dir: &RunDir, cas: &[Vec<u8>]) -> Result<Option<Logged>, Failure> {
        let path = run_dir.audit_log();
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let mut logged = Logged { named: BTreeSet::new(), trusted: Vec::new() };
        let options = audit::Options { unfinished: true, cas: cas.to_vec(), ..audit::Options::default() };
        audit::read(&path, &options, |_, entry| match entry {
            Some(Entry::Key { trust_domain, job, ca, resumed_from, .. }) => {
                logged.trusted.extend(Trust::from_der_for(&ca.0, trust_domain, job));
                logged.named.extend(resumed_from.map(|from| from.manifest_blake3.0));
            }
            Some(Entry::Checkpoint { manifest_blake3: Hex(hash), .. }) => {
                logged.named.insert(*hash);
            }
            _ => {}
        })
        .map_err(Failure::misconfigured)?;
        Ok(Some(logged))
    }

    /// Whether the log names this checkpoint, or the CA of whoever signed it: one may be whole before it is named.
    pub(super) fn check(&self, checkpoints: &Checkpoints, whole: &Whole) -> Result<(), CheckpointError> {
        if self.named.contains(&whole.manifest_blake3.0) {
            return Ok(());
        }
        checkpoints.check_signer(whole, &self.trusted).map_err(|error| match error {
            CheckpointError::Untrusted { path, .. } => CheckpointError::Untrusted {
                path,
                reason:
                    "the audit log names neither this checkpoint nor the CA that its signature holds under"
                        .into(),
            },
            other => other,
        })
    }
}

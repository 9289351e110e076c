//! The chain's head: which checkpoint is the newest, signed, in one small file.
//!
//! Each manifest names the one before it, so a head names a whole history. Whoever deletes the newest checkpoint, or puts an
//! older state of the folder in its place, has to forge the head as well, or to put back the head of that time. The latter
//! is seen only by someone who remembers a newer one: the audit log, or an operator who noted it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use testudo_transport::Identity;

use super::CheckpointError;
use super::layout::Layout;
use super::manifest::{Hex, Signature, json, read_small};
use super::storage::{Storage, replace};
use super::store::TrustedCas;

/// Domain separation of the signature.
const CONTEXT: &[u8] = b"testudo checkpoint head, format 1\0";

/// The newest checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The job's name.
    pub job: String,
    /// The job's trust domain.
    pub trust_domain: String,
    /// The run, as in the manifest.
    pub run: Hex,
    /// The checkpoint's step.
    pub step: u64,
    /// BLAKE3 of its manifest.
    pub manifest_blake3: Hex,
    /// Seconds since 1970 when it became the newest.
    pub at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    head: Head,
    signed: Signature,
}

impl Head {
    /// The bytes that are signed.
    fn message(&self) -> Vec<u8> {
        let names = format!("{}\0{}\0", self.trust_domain, self.job);
        [
            names.as_bytes(),
            &self.run.0,
            &self.step.to_be_bytes(),
            &self.manifest_blake3.0,
            &self.at.to_be_bytes(),
        ]
        .concat()
    }

    /// Puts this head in place of the one before.
    ///
    /// # Errors
    /// [`CheckpointError`] when it cannot be signed or written; the one before is still there then.
    pub fn write(
        &self,
        storage: &dyn Storage,
        layout: &Layout,
        identity: &Identity,
    ) -> Result<(), CheckpointError> {
        let path = layout.head();
        let signed = Signature::make(identity, CONTEXT, &self.message())?;
        let mut bytes = serde_json::to_vec_pretty(&File { head: self.clone(), signed })
            .map_err(|e| CheckpointError::malformed(&path, e))?;
        bytes.push(b'\n');
        replace(storage, &path, &bytes).map_err(CheckpointError::io("write", &path))
    }

    /// Reads the head and checks its signature; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is no head, or nobody's of the run.
    pub fn read(layout: &Layout, trusted: &TrustedCas) -> Result<Option<Head>, CheckpointError> {
        let path: &Path = &layout.head();
        if !path.exists() {
            return Ok(None);
        }
        let File { head, signed } = json(path, &read_small(path)?)?;
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(head.at));
        signed.check(
            path,
            &trusted.of(&head.trust_domain, &head.job),
            CONTEXT,
            &head.message(),
            at.unwrap_or(SystemTime::UNIX_EPOCH),
        )?;
        Ok(Some(head))
    }
}

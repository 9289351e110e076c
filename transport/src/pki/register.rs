//! The register: what a CA issued, for whoever revokes, renews or looks.
//!
//! The file is `issued.jsonl` in the CA's directory, one line a certificate:
//! `{"serial":"4f...","id":"spiffe://...","not_after":1700000000,"spki_sha256":"ab..."}`.
//!
//! A certificate is in the register, on disk, before [`JobCa::issue`](super::JobCa::issue) and its kin hand it out: a CA that was
//! loaded from its directory has issued nothing that is not there.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::{PkiError, certificate};
use crate::identity::SpiffeId;

/// Name of the register in a CA's directory.
pub const REGISTER_FILE: &str = "issued.jsonl";

/// One certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Serial number: the bytes of the DER integer, in lower-case hexadecimal.
    pub serial: String,
    /// To whom.
    pub id: SpiffeId,
    /// Valid until, in seconds since 1970 UTC.
    pub not_after: i64,
    /// SHA-256 of the key's SubjectPublicKeyInfo, in lower-case hexadecimal.
    pub spki_sha256: String,
}

impl Issued {
    /// What the register says of a certificate.
    ///
    /// # Errors
    /// [`PkiError`] when it is not a node's.
    pub fn of(certificate_der: &[u8]) -> Result<Issued, PkiError> {
        let id = certificate::leaf_identity(certificate_der)?;
        let (serial, not_after) = certificate::serial_and_end(certificate_der)?;
        let spki_sha256 = spki_sha256(&certificate::public_key(certificate_der)?);
        Ok(Issued { serial: hex(&serial), id, not_after, spki_sha256 })
    }

    /// Whether the certificate is still within its time.
    #[must_use]
    pub fn is_live(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        u64::try_from(self.not_after).is_ok_and(|end| end >= now)
    }
}

/// The register of the CA in one directory.
#[derive(Debug, Clone)]
pub struct Register(Journal<Issued>);

impl Register {
    /// That of the CA in `directory`.
    #[must_use]
    pub fn of(directory: &Path) -> Register {
        Register(Journal::at(directory.join(REGISTER_FILE)))
    }

    /// Every certificate ever issued from the directory, oldest first.
    ///
    /// # Errors
    /// [`PkiError::File`] naming a line that is none, or [`PkiError::NotPrivate`].
    pub fn read(&self) -> Result<Vec<Issued>, PkiError> {
        self.0.read()
    }

    /// The certificates of one identity that have not expired, oldest first.
    ///
    /// # Errors
    /// As for [`Register::read`].
    pub fn live(&self, id: &SpiffeId, now: SystemTime) -> Result<Vec<Issued>, PkiError> {
        let mut issued = self.read()?;
        issued.retain(|one| one.id == *id && one.is_live(now));
        Ok(issued)
    }

    /// Records a certificate; it is on disk when this returns.
    pub(super) fn record(&self, certificate_der: &[u8]) -> Result<(), PkiError> {
        let issued = Issued::of(certificate_der)?;
        self.0.lock()?.append(&issued)
    }
}

/// SHA-256 of a SubjectPublicKeyInfo in DER, in lower-case hexadecimal: how a key is named.
pub(super) fn spki_sha256(spki_der: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki_der).as_ref())
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

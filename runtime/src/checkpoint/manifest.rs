//! The manifest: what a checkpoint consists of, and whose word that is.
//!
//! `manifest.json` is JSON for people and programs alike; `manifest.sig` holds the scheduler's certificate and its ECDSA
//! P-256 signature over a fixed context and the manifest's bytes as they are. The manifest's own BLAKE3 is what the next
//! manifest, the head, a resumed job and the audit log know it by.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use testudo_actors::Best;
use testudo_actors::checkpoint::PartReceipt;
pub use testudo_observability::audit::Hex;
use testudo_transport::pki::{Serial, bundle_parts, describe};
use testudo_transport::{Crl, Expected, Identity, Role, Trust};

use super::CheckpointError;
use super::layout::{part_name, residuals_name};
use super::part::open_regular;
use super::store::TrustedCas;

/// What `format` says.
pub const FORMAT: &str = "testudo checkpoint, format 1";
/// What `hash` says.
const HASH: &str = "blake3";
/// What `encryption` says.
const ENCRYPTION: &str = "age-encryption.org/v1 X25519";
/// What `tensors` says.
const TENSORS: &str = "safetensors";
/// Domain separation of the scheduler's signature.
const CONTEXT: &[u8] = b"testudo checkpoint manifest, format 1\0";
/// Bytes of a manifest, or of any other such file, at most: thousands of servers' worth.
const BYTES_MOST: u64 = 4 << 20;

/// One part, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// Its file name, which follows from the server's index.
    pub name: String,
    /// The server that wrote it.
    pub server: u32,
    /// Slices in it.
    pub slices: u32,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub blake3: Hex,
}

impl PartEntry {
    /// Size and hash.
    #[must_use]
    pub fn receipt(&self) -> PartReceipt {
        PartReceipt { bytes: self.bytes, blake3: self.blake3.0 }
    }
}

/// A worker's part, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualEntry {
    /// Its file name, which follows from the worker's index.
    pub name: String,
    /// The worker that wrote it.
    pub worker: u32,
    /// The logical shards whose residuals it holds, ascending.
    pub shards: Vec<u32>,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub blake3: Hex,
}

impl ResidualEntry {
    /// Size and hash.
    #[must_use]
    pub fn receipt(&self) -> PartReceipt {
        PartReceipt { bytes: self.bytes, blake3: self.blake3.0 }
    }
}

/// Where the next step's examples begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPosition {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The position in the epoch's shuffled order.
    pub first: u64,
}

/// Everything that a checkpoint says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The job's name.
    pub job: String,
    /// The job's trust domain.
    pub trust_domain: String,
    /// The run: BLAKE3 of the certificate of its first CA.
    pub run: Hex,
    /// BLAKE3 of the signed job under which it was written.
    pub job_blake3: Hex,
    /// Steps taken.
    pub step: u64,
    /// BLAKE3 of the manifest of the checkpoint before, if there is one.
    pub parent: Option<Hex>,
    /// The parts, by server.
    pub parts: Vec<PartEntry>,
    /// Those of workers, by worker, where error feedback keeps residuals.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residuals: Vec<ResidualEntry>,
    /// What a job that resumes must agree in, each in the words of [`super::resume`].
    pub settings: BTreeMap<String, String>,
    /// Where the next step's examples begin.
    pub data: DataPosition,
    /// Training examples seen.
    pub samples: u64,
    /// Mean loss of the last step.
    pub last_loss: Option<f64>,
    /// The best evaluation before this step, if the run may stop early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Seconds since 1970 when it was written.
    pub created: u64,
    /// Whom the parts are encrypted to.
    pub recipients: Vec<String>,
    /// The hash function of everything here.
    pub hash: String,
    /// How parts are encrypted.
    pub encryption: String,
    /// What parts hold.
    pub tensors: String,
}

impl Manifest {
    /// The fixed fields, for a manifest that is being written: formats and algorithms.
    #[must_use]
    pub fn formats() -> (String, String, String, String) {
        (FORMAT.to_owned(), HASH.to_owned(), ENCRYPTION.to_owned(), TENSORS.to_owned())
    }

    /// As it is written.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`] when JSON cannot hold it.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| CheckpointError::malformed(path, e))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads `bytes`, the manifest at `path` in the folder of `step`. Nothing that it names can be anything but a part of
    /// that folder.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`] saying what it is not.
    pub fn parse(path: &Path, bytes: &[u8], step: u64) -> Result<Manifest, CheckpointError> {
        let manifest: Manifest = json(path, bytes)?;
        let refuse = |reason: String| Err(CheckpointError::malformed(path, reason));
        let (format, hash, encryption, tensors) = Manifest::formats();
        for (found, known) in [
            (&manifest.format, &format),
            (&manifest.hash, &hash),
            (&manifest.encryption, &encryption),
            (&manifest.tensors, &tensors),
        ] {
            if found != known {
                return refuse(format!("it says {found:?} where this build knows {known:?}"));
            }
        }
        if manifest.step != step {
            return refuse(format!("it is of step {} in the folder of step {step}", manifest.step));
        }
        for (part, next) in manifest.parts.iter().zip(manifest.parts.iter().skip(1)) {
            if part.server >= next.server {
                return refuse(format!("server {} stands twice or out of order", next.server));
            }
        }
        for part in &manifest.parts {
            if part.name != part_name(part.server) {
                return refuse(format!("{:?} is no name of a part", part.name));
            }
        }
        for (part, next) in manifest.residuals.iter().zip(manifest.residuals.iter().skip(1)) {
            if part.worker >= next.worker {
                return refuse(format!("worker {} stands twice or out of order", next.worker));
            }
        }
        let mut shards = BTreeSet::new();
        for part in &manifest.residuals {
            if part.name != residuals_name(part.worker) {
                return refuse(format!("{:?} is no name of a worker's part", part.name));
            }
            if let Some(twice) = part.shards.iter().find(|shard| !shards.insert(**shard)) {
                return refuse(format!("the residuals of logical shard {twice} stand twice"));
            }
        }
        Ok(manifest)
    }

    /// The file name of every part, with its size and hash.
    pub fn files(&self) -> impl Iterator<Item = (&str, PartReceipt)> {
        let parts = self.parts.iter().map(|part| (part.name.as_str(), part.receipt()));
        parts.chain(self.residuals.iter().map(|part| (part.name.as_str(), part.receipt())))
    }

    /// When it was written, as it says.
    #[must_use]
    pub fn created_at(&self) -> SystemTime {
        // A time beyond what the clock can hold is no time that a certificate was good at.
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.created))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// A signature with the certificate that it holds under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The signer's certificate, DER in Base64.
    pub certificate: String,
    /// ECDSA P-256 over SHA-256, ASN.1 DER in Base64.
    pub signature: String,
}

impl Signature {
    /// The signature of `identity`'s newest certificate over `context` and `bytes`.
    ///
    /// # Errors
    /// [`CheckpointError::Pki`] when the key cannot sign.
    pub fn make(identity: &Identity, context: &[u8], bytes: &[u8]) -> Result<Signature, CheckpointError> {
        let identity = identity.latest();
        let signature = identity.sign(&[context, bytes].concat())?;
        Ok(Signature {
            certificate: BASE64.encode(identity.certificate_der()),
            signature: BASE64.encode(signature),
        })
    }

    /// Checks it as of `at`, against any of `trusted`: the signer must be the job's scheduler or an operator.
    ///
    /// # Errors
    /// [`CheckpointError::Untrusted`] with what the last of `trusted` says.
    pub fn check(
        &self,
        path: &Path,
        trusted: &[Trust],
        context: &[u8],
        bytes: &[u8],
        at: SystemTime,
    ) -> Result<(), CheckpointError> {
        let decode = |text: &str| BASE64.decode(text).map_err(|e| CheckpointError::malformed(path, e));
        let (certificate, signature) = (decode(&self.certificate)?, decode(&self.signature)?);
        let message = [context, bytes].concat();
        let mut reason = "the run has no CA to check it against".to_owned();
        for trust in trusted {
            match trust.verify_signature_at(&certificate, &Expected::Member, &message, &signature, at) {
                Ok(signer) if matches!(signer.role(), Role::Scheduler | Role::Operator) => return Ok(()),
                Ok(signer) => reason = format!("it is signed by {signer}, which may not"),
                Err(why) => reason = why.to_string(),
            }
        }
        Err(CheckpointError::untrusted(path, reason))
    }

    /// Checks that no certificate that it holds under is on one of these lists of revoked ones.
    ///
    /// # Errors
    /// [`CheckpointError::Untrusted`] with the number of one that is.
    pub(super) fn check_lists(&self, path: &Path, lists: &[Arc<Crl>]) -> Result<(), CheckpointError> {
        if lists.is_empty() {
            return Ok(());
        }
        let malformed = |e: &dyn std::fmt::Display| CheckpointError::malformed(path, e);
        let der = BASE64.decode(&self.certificate).map_err(|e| malformed(&e))?;
        for part in bundle_parts(&der).map_err(|e| malformed(&e))? {
            let pem =
                format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64.encode(part));
            let info = describe(pem.as_bytes()).map_err(|e| malformed(&e))?;
            let serial = Serial::from_hex(&info.serial).map_err(|e| malformed(&e))?;
            if lists.iter().any(|list| list.issuer_name() == info.issuer && list.has(&serial)) {
                let reason = format!("the certificate that signed it ({serial}) is revoked");
                return Err(CheckpointError::untrusted(path, reason));
            }
        }
        Ok(())
    }
}

/// Signs a manifest's bytes.
///
/// # Errors
/// [`CheckpointError::Pki`] when the key cannot sign.
pub fn sign(identity: &Identity, manifest: &[u8]) -> Result<Signature, CheckpointError> {
    Signature::make(identity, CONTEXT, manifest)
}

/// Checks the signature at `path` over a manifest's bytes.
///
/// # Errors
/// [`CheckpointError::Untrusted`] when it does not hold.
pub fn check(
    path: &Path,
    signature: &Signature,
    trusted: &TrustedCas,
    bytes: &[u8],
    manifest: &Manifest,
) -> Result<(), CheckpointError> {
    let trusted = trusted.of(&manifest.trust_domain, &manifest.job);
    check_under(path, signature, &trusted, bytes, manifest)
}

/// The same, where it is known in what a CA is trusted.
pub(super) fn check_under(
    path: &Path,
    signature: &Signature,
    trusted: &[Trust],
    bytes: &[u8],
    manifest: &Manifest,
) -> Result<(), CheckpointError> {
    signature.check(path, trusted, CONTEXT, bytes, manifest.created_at())
}

/// Reads a file of a few kilobytes whole: a regular one, no link.
pub(super) fn read_small(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let (file, bytes) = open_regular(path)?;
    if bytes > BYTES_MOST {
        return Err(CheckpointError::malformed(path, format!("{bytes} bytes, {BYTES_MOST} at most")));
    }
    let mut read = Vec::new();
    file.take(BYTES_MOST).read_to_end(&mut read).map_err(CheckpointError::io("read", path))?;
    Ok(read)
}

pub(super) fn json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, CheckpointError> {
    serde_json::from_slice(bytes).map_err(|e| CheckpointError::malformed(path, e))
}

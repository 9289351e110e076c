//! A job under its operator's signature: how it is stored, sent and opened.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use testudo_transport::{Expected, Identity, Role, SpiffeId, Trust};

use super::{JobError, JobSpec, MAX_SIGNED_JOB};

/// Domain separation: what the operator's key signs begins with this, so that the signature means nothing elsewhere.
const SIGNATURE_CONTEXT: &[u8] = b"testudo job specification, format 6\0";

/// A job with the operator's signature and certificate, as it is stored and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedJob {
    spec: Vec<u8>,
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedJob {
    /// Signs `spec` as `operator`.
    ///
    /// # Errors
    /// [`JobError`] when the job is invalid or the key cannot sign.
    pub fn sign(spec: &JobSpec, operator: &Identity) -> Result<SignedJob, JobError> {
        spec.validate()?;
        let spec = testudo_transport::encode(spec);
        let signature =
            operator.sign(&signed_bytes(&spec)).map_err(|e| JobError::Signature(e.to_string()))?;
        Ok(SignedJob { spec, certificate: operator.certificate_der().to_vec(), signature })
    }

    /// Checks the signature (an operator of this node's job, under the job's CA, good now and not revoked by the list in force at
    /// this node) and the job, and returns the job.
    ///
    /// # Errors
    /// [`JobError`] saying which of these does not hold.
    pub fn open(&self, node: &Identity) -> Result<JobSpec, JobError> {
        let (trust, message) = (node.trust(), signed_bytes(&self.spec));
        let signer = trust.verify_signature(&self.certificate, &Expected::Member, &message, &self.signature);
        self.read(&signer.map_err(|e| JobError::Signature(e.to_string()))?)
    }

    /// As [`open`](SignedJob::open), for whoever checks later: what was signed, if its signer's certificate was good at `at`,
    /// whatever has been revoked since, and who that was.
    ///
    /// # Errors
    /// [`JobError`] saying what does not hold.
    pub fn check(&self, trust: &Trust, at: SystemTime) -> Result<(JobSpec, SpiffeId), JobError> {
        let signer = trust
            .verify_signature_at(
                &self.certificate,
                &Expected::Member,
                &signed_bytes(&self.spec),
                &self.signature,
                at,
            )
            .map_err(|e| JobError::Signature(e.to_string()))?;
        self.read(&signer).map(|spec| (spec, signer))
    }

    /// As [`open`](SignedJob::open), long after the run: for whoever checks what a run left behind and has `trust` in its CA.
    /// The operator's certificate may have ended since.
    ///
    /// # Errors
    /// As [`open`](SignedJob::open).
    pub fn open_kept(&self, trust: &Trust) -> Result<JobSpec, JobError> {
        let signer = trust
            .verify_signature_kept(
                &self.certificate,
                &Expected::Member,
                &signed_bytes(&self.spec),
                &self.signature,
            )
            .map_err(|e| JobError::Signature(e.to_string()))?;
        self.read(&signer)
    }

    /// The job that `signer` signed, who is of the job that the reader trusts.
    fn read(&self, signer: &SpiffeId) -> Result<JobSpec, JobError> {
        if signer.role() != Role::Operator {
            return Err(JobError::NotOperator(signer.clone()));
        }
        let spec: JobSpec = testudo_transport::decode_canonical(&self.spec)
            .map_err(|e| JobError::Unreadable(e.to_string()))?;
        spec.validate()?;
        if (spec.trust_domain.as_str(), spec.name.as_str()) != (signer.trust_domain(), signer.job()) {
            return Err(JobError::OtherJob {
                found: format!("{}/{}", spec.trust_domain, spec.name),
                expected: format!("{}/{}", signer.trust_domain(), signer.job()),
            });
        }
        Ok(spec)
    }

    /// BLAKE3 of the specification's bytes.
    #[must_use]
    pub fn spec_blake3(&self) -> [u8; 32] {
        *blake3::hash(&self.spec).as_bytes()
    }

    /// The file form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        testudo_transport::encode(self)
    }

    /// Reads the file form; the signature is not checked until [`open`](SignedJob::open).
    ///
    /// # Errors
    /// [`JobError::Unreadable`] when the bytes are no signed job.
    pub fn from_bytes(bytes: &[u8]) -> Result<SignedJob, JobError> {
        if bytes.len() > MAX_SIGNED_JOB as usize {
            return Err(JobError::Unreadable(format!("{} bytes, {MAX_SIGNED_JOB} at most", bytes.len())));
        }
        testudo_transport::decode_canonical(bytes).map_err(|e| JobError::Unreadable(e.to_string()))
    }
}

fn signed_bytes(spec: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, spec].concat()
}

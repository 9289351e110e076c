//! What a run's audit log tells of.
//!
//! The chain and its signatures are `testudo_observability::audit`'s, files and keys are the runtime's; what stands in the
//! records is said here, because the scheduler knows it first. An [`Entry`] is a record's kind and body; `docs/audit.md`
//! explains each to people.

use serde::{Deserialize, Serialize};
pub use testudo_observability::audit::{Base64, Hex};

use crate::message::Outcome;

/// The name of the actor whose key signs the log: `spiffe://<trust-domain>/job/<job>/actor/audit`.
pub const KEY_NAME: &str = "audit";

/// The same as a node's role and name.
pub const KEY_NODE: &str = "actor/audit";

/// Characters of a text in a record at most.
const MAX_TEXT: usize = 400;

/// The content of a record: `kind` is the variant's name, `body` its members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "body", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// The key that signs from here on, certified by the job's CA: the first record, and the first after a resumption.
    Key {
        /// The trust domain.
        trust_domain: String,
        /// The job's name.
        job: String,
        /// The CA's certificate, in DER.
        ca: Base64,
        /// The audit key's certificate, in DER.
        certificate: Base64,
        /// The checkpoint that the run goes on from, if it goes on.
        resumed_from: Option<CheckpointName>,
        /// Bytes of a record that a crash cut short and that were removed.
        torn_bytes: u64,
    },
    /// The job, as its operator signed it.
    Job {
        /// Who signed.
        operator: String,
        /// BLAKE3 of the job specification's bytes.
        spec_blake3: Hex,
        /// BLAKE3 of the file `job.signed`: specification, certificate and signature.
        signed_blake3: Hex,
    },
    /// A node was admitted.
    Join {
        /// Who: its role and index.
        node: String,
        /// How many times it has joined.
        incarnation: u64,
        /// The certificate that it showed, in DER; none over memory.
        certificate: Option<Base64>,
    },
    /// A node, or the key that signs this log (as `actor/audit`), goes on with another certificate.
    Renewed {
        /// Who.
        node: String,
        /// The certificate that what it signs from here on is checked with, in DER.
        certificate: Base64,
    },
    /// A node is a member no longer.
    Leave {
        /// Who.
        node: String,
        /// Which of its joins that ends.
        incarnation: u64,
        /// Why.
        reason: String,
    },
    /// An operator commanded something.
    Command {
        /// Who.
        operator: String,
        /// Whether it was done.
        done: bool,
        /// What was done, or why nothing was.
        answer: String,
    },
    /// What the parameters are, told by the servers.
    Parameters {
        /// Steps taken.
        step: u64,
        /// Their hash: [`params_blake3`](crate::checkpoint::params_blake3).
        params_blake3: Hex,
    },
    /// A worker signed what it contributed to a step: [`contributions`](crate::contributions) says over what.
    Contributions {
        /// The worker.
        node: String,
        /// The step, from 0.
        step: u64,
        /// How many pushes it signed.
        count: u64,
        /// BLAKE3 over them.
        digest: Hex,
        /// ECDSA P-256 with SHA-256, ASN.1 DER, by the certificate that it joined with, or renewed since.
        signature: Base64,
    },
    /// A node signed a head of this log: [`countersign`](crate::countersign) says over what.
    Countersignature {
        /// The node.
        node: String,
        /// The record whose hash the head is.
        record: u64,
        /// That hash.
        head: Hex,
        /// The head that the node signed before, by record and hash.
        before: Option<Head>,
        /// ECDSA P-256 with SHA-256, ASN.1 DER, by the certificate that it joined with, or renewed since.
        signature: Base64,
    },
    /// Whom a node refused, since its last such record.
    Refusals {
        /// The node that refused.
        node: String,
        /// Whom, why, and how often.
        refused: Vec<Refusal>,
    },
    /// A list of revoked certificates was put in force; the command of the operator who handed it in follows.
    Revocation {
        /// The list's number.
        list: String,
        /// Certificates in it.
        revoked: u64,
        /// BLAKE3 of the list, in DER.
        crl_blake3: Hex,
    },
    /// A server is found to have given a worker other values than the contributions make: [`witness`](crate::witness) says how.
    Finding {
        /// The server.
        server: String,
        /// The parameter's name.
        parameter: String,
        /// The slice of it.
        slice: u32,
        /// The first element of the parameter that is hashed.
        first: u64,
        /// How many elements are hashed.
        elements: u64,
        /// The step, from 1, whose update is wrong; `null` for the values that training begins with.
        step: Option<u64>,
        /// BLAKE3 of what these elements should be, as little-endian f32.
        right_blake3: Hex,
        /// BLAKE3 of what the worker said that it was given.
        found_blake3: Hex,
        /// The worker.
        worker: String,
    },
    /// A checkpoint is whole.
    Checkpoint {
        /// Its step.
        step: u64,
        /// BLAKE3 of its manifest.
        manifest_blake3: Hex,
    },
    /// A checkpoint was deleted.
    Deletion {
        /// Its step.
        step: u64,
        /// BLAKE3 of its manifest.
        manifest_blake3: Hex,
        /// Why.
        why: String,
    },
    /// After the run, or before it is resumed, a command goes on with the log, under the same key.
    Reopened {
        /// Which command.
        command: String,
        /// Bytes of a record that a crash cut short and that were removed.
        torn_bytes: u64,
    },
    /// The log could not be written for a while, and so much could not wait: these records are missing before this one.
    LeftOut {
        /// How many.
        records: u64,
    },
    /// The run's own key, which opened its checkpoints, was destroyed.
    KeyDestroyed {
        /// The age recipients that it was the key of.
        recipients: Vec<String>,
    },
    /// The run is over.
    End {
        /// Steps taken.
        steps: u64,
        /// BLAKE3 of the final parameters, if the run came to its end.
        params_blake3: Option<Hex>,
        /// Why the run failed, if it did.
        failure: Option<String>,
    },
}

/// A head of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The record.
    pub record: u64,
    /// Its hash.
    pub hash: Hex,
}

/// So many refusals of one cause and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// One of [`Cause`](testudo_transport::Cause)'s words.
    pub cause: String,
    /// A node, a proved address, `anyone` where neither is known, or `others` where there were too many to name.
    pub who: String,
    /// How often.
    pub count: u64,
}

/// A checkpoint, by what it is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointName {
    /// Its step.
    pub step: u64,
    /// BLAKE3 of its manifest.
    pub manifest_blake3: Hex,
}

impl Entry {
    /// The end of a run that has taken `steps` steps.
    #[must_use]
    pub fn end(steps: u64, outcome: &Outcome) -> Entry {
        match outcome {
            Outcome::Finished(finished) => Entry::End {
                steps: finished.steps,
                params_blake3: Some(Hex(finished.params_blake3)),
                failure: None,
            },
            Outcome::Failed(reason) | Outcome::ServerLost(reason) => {
                Entry::End { steps, params_blake3: None, failure: Some(text(reason)) }
            }
        }
    }

    /// What was commanded, and what became of it.
    #[must_use]
    pub fn command(operator: &str, result: &Result<String, String>) -> Entry {
        let (Ok(answer) | Err(answer)) = result;
        Entry::Command { operator: operator.to_owned(), done: result.is_ok(), answer: text(answer) }
    }
}

/// A text of bounded length, without control characters.
#[must_use]
pub fn text(text: &str) -> String {
    printable(text, MAX_TEXT)
}

/// Another's text for a person's eyes: no control characters, and at most so many characters.
pub(crate) fn printable(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

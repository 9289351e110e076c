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
        /// BLAKE3 of the certificate that it showed; none over memory.
        certificate_blake3: Option<Hex>,
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
            Outcome::Failed(reason) => Entry::End { steps, params_blake3: None, failure: Some(text(reason)) },
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
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

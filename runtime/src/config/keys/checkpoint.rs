//! The rows about what is kept of training and of the final model.

use super::super::check;
use super::{Absent, Base, Key, Rule};

const RECIPIENT: Rule =
    Rule::Text { check: check::recipient, allowed: "age recipient, as `age-keygen -y` prints it" };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "checkpoint.export",
        rule: Rule::Boolean,
        absent: Absent::Is("true"),
        applies: None,
        doc: "Whether the final model is written in the clear, to `checkpoint/final/model.safetensors`.",
    },
    Key {
        path: "checkpoint.every_steps",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("0"),
        applies: None,
        doc: "Steps between training checkpoints, which hold everything that training needs to go on; 0 for none on the way. One that falls due while the one before is still being written is skipped, with a notice: training does not wait.",
    },
    Key {
        path: "checkpoint.at_end",
        rule: Rule::Boolean,
        absent: Absent::Is("true"),
        applies: None,
        doc: "Whether a run that is stopped, or has taken its last step, ends with a training checkpoint, so that it can be resumed.",
    },
    Key {
        path: "checkpoint.keep_last",
        rule: Rule::Integer { min: 1, max: 1_000_000 },
        absent: Absent::Is("3"),
        applies: None,
        doc: "How many training checkpoints are kept: with each new one, the oldest beyond that are deleted, which is recorded.",
    },
    Key {
        path: "checkpoint.max_age_hours",
        rule: Rule::Integer { min: 0, max: 1_000_000 },
        absent: Absent::Is("0"),
        applies: None,
        doc: "Hours after which a training checkpoint is deleted when the next is written, but never the last one; 0 for never.",
    },
    Key {
        path: "checkpoint.recipients",
        rule: Rule::List { each: &RECIPIENT, most: 64 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "age recipients (`age1...`, X25519 public keys) that can read training checkpoints; to resume, give the key with `--identity-file`. Without any, the run makes a key of its own, `checkpoint/key.txt`.",
    },
    Key {
        path: "checkpoint.sign_key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("a key made for the run, and gone with it"),
        applies: None,
        doc: "PEM file of the private key that signs the final model, as `testudo sign --new-key` makes it; nobody but its owner may read it. `testudo run` alone reads it, no node does.",
    },
];

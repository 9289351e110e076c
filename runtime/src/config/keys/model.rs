//! The rows about the network that is trained.

use super::{Absent, Key, Rule};

const WIDTH: Rule = Rule::Integer { min: 1, max: 1 << 24 };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "model.kind",
        rule: Rule::Choice(&["mlp"]),
        absent: Absent::Required,
        applies: None,
        doc: "The network: `mlp` is fully connected layers with ReLU between them.",
    },
    Key {
        path: "model.inputs",
        rule: WIDTH,
        absent: Absent::Required,
        applies: None,
        doc: "Numbers in one example (784 for MNIST).",
    },
    Key {
        path: "model.hidden",
        rule: Rule::List { each: &WIDTH, most: 64 },
        absent: Absent::Is("[512, 512]"),
        applies: None,
        doc: "Widths of the hidden layers, first to last; `[]` makes a linear classifier.",
    },
    Key {
        path: "model.classes",
        rule: Rule::Integer { min: 2, max: 1 << 24 },
        absent: Absent::Required,
        applies: None,
        doc: "Classes to tell apart (10 for MNIST); labels are 0 up to one less.",
    },
];

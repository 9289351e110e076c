//! The rows about what is trained on.

use super::rules::{FRACTION, POSITIVE};
use super::{Absent, Base, Key, Rule};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "data.kind",
        rule: Rule::Choice(&["mnist"]),
        absent: Absent::Required,
        applies: None,
        doc: "The data set's format: `mnist` is four IDX files, gzipped or not.",
    },
    Key {
        path: "data.path",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Required,
        applies: None,
        doc: "The folder that holds the data set.",
    },
    Key {
        path: "data.mean",
        rule: FRACTION,
        absent: Absent::Is("0.1307"),
        applies: None,
        doc: "Subtracted from each pixel (scaled to 0 to 1); the default is the mean of MNIST's training pixels.",
    },
    Key {
        path: "data.std",
        rule: POSITIVE,
        absent: Absent::Is("0.3081"),
        applies: None,
        doc: "Divides each pixel after that; the default is the standard deviation of MNIST's training pixels.",
    },
];

//! The rows about what is trained on.

use super::rules::{FRACTION, POSITIVE};
use super::{Absent, Applies, Base, Key, Rule};

const MNIST: Option<Applies> = Some(Applies { selector: "data.kind", kinds: &["mnist"] });
const TEXT: Option<Applies> = Some(Applies { selector: "data.kind", kinds: &["text"] });

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "data.kind",
        rule: Rule::Choice(&["mnist", "text"]),
        absent: Absent::Required,
        applies: None,
        doc: "The data set's format: `mnist` is four IDX files, gzipped or not; `text` is a file of bytes, for a `gpt`.",
    },
    Key {
        path: "data.path",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Required,
        applies: None,
        doc: "The folder that holds the data set; for `text`, the file.",
    },
    Key {
        path: "data.mean",
        rule: FRACTION,
        absent: Absent::Is("0.1307"),
        applies: MNIST,
        doc: "Subtracted from each pixel (scaled to 0 to 1); the default is the mean of MNIST's training pixels.",
    },
    Key {
        path: "data.std",
        rule: POSITIVE,
        absent: Absent::Is("0.3081"),
        applies: MNIST,
        doc: "Divides each pixel after that; the default is the standard deviation of MNIST's training pixels.",
    },
    Key {
        path: "data.stride",
        rule: Rule::Integer { min: 1, max: 1 << 32 },
        absent: Absent::Unset("`model.context`: an epoch predicts each byte once"),
        applies: TEXT,
        doc: "Bytes from one training window's begin to the next one's; with less than `model.context`, windows overlap.",
    },
    Key {
        path: "data.test_fraction",
        rule: Rule::Number { min: 0.0, above: true, max: 1.0, below: true },
        absent: Absent::Is("0.1"),
        applies: TEXT,
        doc: "The part of the text, from its end, that is held out and tested on.",
    },
];

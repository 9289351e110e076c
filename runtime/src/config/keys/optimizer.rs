//! The rows about the update rule.
//!
//! Constants of these names have keys of their own, whichever program has them; all others stand under
//! `[optimizer.constants]`. `config/optimizer.rs` says what of it fits together.

use testudo_kernels::optimizer::MAX_PATTERNS;

use super::super::check;
use super::rules::POSITIVE;
use super::{Absent, Applies, Key, Rule};

/// Programs that ship, and one's own.
const KINDS: &[&str] = &[
    "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "ftrl",
    "lion", "lamb", "lars", OWN,
];
/// The kind that takes a program from the cluster file.
pub const OWN: &str = "program";
/// What it may be, the program says.
const CONSTANT: Rule = Rule::Number { min: f64::MIN, above: false, max: f64::MAX, below: false };
/// Whether it is the rule of a constant.
pub(super) fn is_constant(rule: &Rule) -> bool {
    matches!(rule, Rule::Number { min: f64::MIN, .. })
}

const BY_PROGRAM: Absent = Absent::Unset("the program's default");

/// Programs with weight decay.
const DECAYING: Option<Applies> = with(&[
    "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lion",
    "lamb", "lars", OWN,
]);
const PATTERN: Rule = Rule::Text { check: check::pattern, allowed: "pattern of 1 to 128 bytes" };

const fn with(kinds: &'static [&'static str]) -> Option<Applies> {
    Some(Applies { selector: "optimizer.kind", kinds })
}

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "optimizer.kind",
        rule: Rule::Choice(KINDS),
        absent: Absent::Is("\"momentum\""),
        applies: None,
        doc: "The update rule: a program that ships ([optimizers.md](optimizers.md)), or `program` for one's own.",
    },
    Key {
        path: "optimizer.learning_rate",
        rule: POSITIVE,
        absent: Absent::ByKind {
            selector: "optimizer.kind",
            cases: &[
                ("adam", "0.001"),
                ("adamw", "0.001"),
                ("nadam", "0.002"),
                ("rmsprop", "0.01"),
                ("adagrad", "0.01"),
                ("adadelta", "1.0"),
                ("lion", "0.0001"),
                ("lamb", "0.001"),
            ],
            otherwise: "0.1",
        },
        applies: None,
        doc: "The learning rate before the schedule's factor. Required with a program of one's own.",
    },
    Key {
        path: "optimizer.program",
        rule: Rule::Text { check: |_| Ok(()), allowed: "the program's text, in `'''` for several lines" },
        absent: Absent::Required,
        applies: with(&[OWN]),
        doc: "A program in the language of [optimizers.md](optimizers.md), checked before anything starts.",
    },
    Key {
        path: "optimizer.weight_decay",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: DECAYING,
        doc: "Weight decay, 0 or more: decoupled for `adamw`, `lion` and `lamb`, added to the gradient for the others. 0 by default, but 0.01 for `adamw` and `lamb`.",
    },
    Key {
        path: "optimizer.no_decay",
        rule: Rule::List { each: &PATTERN, most: MAX_PATTERNS },
        absent: Absent::Is("[]"),
        applies: DECAYING,
        doc: "Parameters whose `weight_decay` is 0: patterns of names, in which `*` stands for any characters and `?` for one, such as `[\"*.bias\", \"*ln?.weight\", \"lnf.weight\"]`.",
    },
    Key {
        path: "optimizer.momentum",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: with(&["momentum", "nesterov", "lars", OWN]),
        doc: "Decay of the velocity, from 0 to below 1. 0.9 by default.",
    },
    Key {
        path: "optimizer.beta1",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: with(&["adam", "adamw", "nadam", "lion", "lamb", OWN]),
        doc: "Decay of the gradient's running mean, from 0 to below 1. 0.9 by default.",
    },
    Key {
        path: "optimizer.beta2",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: with(&["adam", "adamw", "nadam", "lion", "lamb", OWN]),
        doc: "Decay of the squared gradient's running mean (of the mean itself for `lion`), from 0 to below 1. 0.999 by default, but 0.99 for `lion`.",
    },
    Key {
        path: "optimizer.epsilon",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: with(&["adam", "adamw", "nadam", "rmsprop", "adagrad", "adadelta", "lamb", OWN]),
        doc: "Added to the denominator, above 0. 1e-8 by default, but 1e-6 for `adadelta` and `lamb`, 1e-10 for `adagrad`.",
    },
    Key {
        path: "optimizer.constants.*",
        rule: CONSTANT,
        absent: BY_PROGRAM,
        applies: None,
        doc: "Any other constant of the program, by its name: `rho = 0.95`. What it may be, the program says.",
    },
];

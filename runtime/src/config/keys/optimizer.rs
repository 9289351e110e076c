//! The rows about the update rule.

use super::rules::POSITIVE;
use super::{Absent, Applies, Key, Rule};

const NOT_NEGATIVE: Rule = Rule::Number { min: 0.0, above: false, max: f64::MAX, below: false };
const BETA: Rule = Rule::Number { min: 0.0, above: false, max: 1.0, below: true };
const OPTIMIZERS: &[&str] = &["sgd", "momentum", "nesterov", "adam", "adamw"];
const MOMENTA: Option<Applies> =
    Some(Applies { selector: "optimizer.kind", kinds: &["momentum", "nesterov"] });
const ADAMS: Option<Applies> = Some(Applies { selector: "optimizer.kind", kinds: &["adam", "adamw"] });

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "optimizer.kind",
        rule: Rule::Choice(OPTIMIZERS),
        absent: Absent::Is("\"momentum\""),
        applies: None,
        doc: "The update rule, each as PyTorch defines it.",
    },
    Key {
        path: "optimizer.learning_rate",
        rule: POSITIVE,
        absent: Absent::ByKind {
            selector: "optimizer.kind",
            cases: &[("adam", "0.001"), ("adamw", "0.001")],
            otherwise: "0.1",
        },
        applies: None,
        doc: "The learning rate before the schedule's factor.",
    },
    Key {
        path: "optimizer.weight_decay",
        rule: NOT_NEGATIVE,
        absent: Absent::ByKind { selector: "optimizer.kind", cases: &[("adamw", "0.01")], otherwise: "0.0" },
        applies: None,
        doc: "Weight decay: decoupled for `adamw`, added to the gradient for the others.",
    },
    Key {
        path: "optimizer.momentum",
        rule: BETA,
        absent: Absent::Is("0.9"),
        applies: MOMENTA,
        doc: "Decay of the velocity.",
    },
    Key {
        path: "optimizer.beta1",
        rule: BETA,
        absent: Absent::Is("0.9"),
        applies: ADAMS,
        doc: "Decay of the gradient's running mean.",
    },
    Key {
        path: "optimizer.beta2",
        rule: BETA,
        absent: Absent::Is("0.999"),
        applies: ADAMS,
        doc: "Decay of the squared gradient's running mean.",
    },
    Key {
        path: "optimizer.epsilon",
        rule: POSITIVE,
        absent: Absent::Is("1e-8"),
        applies: ADAMS,
        doc: "Added to the denominator.",
    },
];

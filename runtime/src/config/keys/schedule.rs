//! The rows about how the learning rate changes.

use super::rules::FRACTION;
use super::{Absent, Applies, Key, Rule};

const DECAYING: Option<Applies> =
    Some(Applies { selector: "schedule.kind", kinds: &["cosine", "linear", "onecycle"] });
const WARMING: Option<Applies> =
    Some(Applies { selector: "schedule.kind", kinds: &["cosine", "linear", "step"] });
const STEPPED: Option<Applies> = Some(Applies { selector: "schedule.kind", kinds: &["step"] });
const CYCLE: Option<Applies> = Some(Applies { selector: "schedule.kind", kinds: &["onecycle"] });

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "schedule.kind",
        rule: Rule::Choice(&["constant", "cosine", "linear", "step", "onecycle"]),
        absent: Absent::Is("\"constant\""),
        applies: None,
        doc: "How the learning rate changes over the planned steps (`training.epochs` of them): `cosine` and `linear` fall to `final_fraction` after a warm-up (a constant rate after a warm-up is `linear` with `final_fraction = 1`), `step` falls by `gamma` every `every_steps`, `onecycle` rises and falls by half a cosine each (Smith and Topin, 2019; PyTorch's `OneCycleLR`).",
    },
    Key {
        path: "schedule.warmup_steps",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("0"),
        applies: WARMING,
        doc: "Steps over which the learning rate first rises from 0.",
    },
    Key {
        path: "schedule.final_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.0"),
        applies: DECAYING,
        doc: "The last step's learning rate as a fraction of `optimizer.learning_rate`. PyTorch's `OneCycleLR` ends at `4e-6` of it.",
    },
    Key {
        path: "schedule.every_steps",
        rule: Rule::Integer { min: 1, max: i64::MAX },
        absent: Absent::Required,
        applies: STEPPED,
        doc: "Steps between two falls of the learning rate.",
    },
    Key {
        path: "schedule.gamma",
        rule: FRACTION,
        absent: Absent::Is("0.1"),
        applies: STEPPED,
        doc: "What is left of the learning rate at each fall.",
    },
    Key {
        path: "schedule.rise_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.3"),
        applies: CYCLE,
        doc: "The part of the steps over which the learning rate rises.",
    },
    Key {
        path: "schedule.start_fraction",
        rule: FRACTION,
        absent: Absent::Is("0.04"),
        applies: CYCLE,
        doc: "The first step's learning rate as a fraction of `optimizer.learning_rate`.",
    },
];

//! The rows that say what nodes compute on.

use super::super::device;
use super::{Absent, Key, Rule};

const DEVICE: Rule = Rule::Text {
    check: device::check,
    allowed: "`auto`, `cpu`, or `cuda:` and a GPU's number, as in `cuda:0`",
};

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "servers.device",
        rule: DEVICE,
        absent: Absent::Is("\"cpu\""),
        applies: None,
        doc: "What servers sum and update on: the CPU, a GPU, or with `auto` the first GPU, if there is one that has memory for what a server holds. The result does not depend on it. A GPU that is asked for and missing is an error. See [GPUs](gpu.md).",
    },
    Key {
        path: "workers.device",
        rule: DEVICE,
        absent: Absent::Is("\"cpu\""),
        applies: None,
        doc: "What workers compute gradients on, likewise; GPUs have no kernels for `training.precision = \"bf16\"`, so `auto` is the CPU then. The result does not depend on it.",
    },
    Key {
        path: "workers.products",
        rule: Rule::Choice(&["exact", "f32", "tf32", "bf16"]),
        absent: Absent::Is("\"exact\""),
        applies: None,
        doc: "How workers on a GPU multiply matrices: `exact` by kernels that give the CPU's bits; the others by cuBLAS, in f32, or on tensor cores with factors rounded to TF32 or BF16. Those have bits of their own, so `training.determinism` must be `\"relaxed\"`. Convolutions and attention are not products here.",
    },
];

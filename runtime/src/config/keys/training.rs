//! The rows about the batch, its parts and how contributions become one gradient.

use super::rules::{NOT_NEGATIVE, POSITIVE};
use super::{Absent, Applies, Key, Rule};

const SELECTOR: &str = "training.aggregation";
const ROBUST: Option<Applies> = Some(Applies {
    selector: SELECTOR,
    kinds: &[
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "geometric_median",
        "centred_clipping",
        "norm_bound",
    ],
});
const CENTRED: Option<Applies> = Some(Applies { selector: SELECTOR, kinds: &["centred_clipping"] });
const BOUNDED: Option<Applies> = Some(Applies { selector: SELECTOR, kinds: &["norm_bound"] });

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "training.seed",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("42"),
        applies: None,
        doc: "Seeds the initial parameters and every epoch's shuffle. It is no secret and secures nothing.",
    },
    Key {
        path: "training.epochs",
        rule: Rule::Integer { min: 1, max: 1_000_000 },
        absent: Absent::Is("1"),
        applies: None,
        doc: "Passes over the training set.",
    },
    Key {
        path: "training.batch_size",
        rule: Rule::Integer { min: 1, max: 1 << 24 },
        absent: Absent::Is("128"),
        applies: None,
        doc: "Examples a step, over all workers together; a multiple of `training.logical_shards`.",
    },
    Key {
        path: "training.logical_shards",
        rule: Rule::Integer { min: 1, max: 1 << 16 },
        absent: Absent::Is("4"),
        applies: None,
        doc: "Parts a batch is cut into. Gradients belong to these parts and not to workers, which is why the result does not depend on how many workers there are.",
    },
    Key {
        path: "training.accumulate",
        rule: Rule::Integer { min: 1, max: 1 << 16 },
        absent: Absent::Is("1"),
        applies: None,
        doc: "Batches that one step sums before the parameters change (gradient accumulation): a step has so many times `batch_size` examples in so many times `logical_shards` parts. A worker holds the activations of one part at a time, and sends the sum of all its parts once. `transport.push_codec` had better be `f32` then: `f16` and `bf16` encode each part by itself, so that a worker sends so many times as much, and codecs that keep residuals are refused. Not under a robust `training.aggregation`, where a worker has one vote.",
    },
    Key {
        path: "training.aggregation",
        rule: Rule::Choice(&[
            "mean",
            "median",
            "trimmed_mean",
            "krum",
            "multi_krum",
            "geometric_median",
            "centred_clipping",
            "norm_bound",
        ]),
        absent: Absent::Is("\"mean\""),
        applies: None,
        doc: "How the workers' contributions become one gradient. Under every rule but `mean`, every worker has one vote, and a minority that lies cannot bend the result, each rule in its own sense: see [aggregation](aggregation.md). They need `training.logical_shards` to equal `cluster.workers`.",
    },
    Key {
        path: "training.hostile_workers",
        rule: Rule::Integer { min: 1, max: 2047 },
        absent: Absent::Is("1"),
        applies: ROBUST,
        doc: "Votes that may be lies: workers that may be hostile, and workers whose death is to be borne, together; fewer than half of `cluster.workers`, and for `krum` and `multi_krum` of two less. `trimmed_mean` drops as many of each coordinate's votes at either end.",
    },
    Key {
        path: "training.clip_radius",
        rule: POSITIVE,
        absent: Absent::Required,
        applies: CENTRED,
        doc: "To which norm a vote's difference from the aggregate before is shortened. Honest votes should lie within it, or little beyond.",
    },
    Key {
        path: "training.norm_bound",
        rule: POSITIVE,
        absent: Absent::Required,
        applies: BOUNDED,
        doc: "To which norm a vote is shortened. Honest votes should lie within it, or little beyond.",
    },
    Key {
        path: "training.clip_norm",
        rule: POSITIVE,
        absent: Absent::Unset("gradients are not clipped"),
        applies: None,
        doc: "The norm that a step's gradient, over all parameters together, is clipped to. Slices then wait for each other in every step: see [aggregation](aggregation.md).",
    },
    Key {
        path: "training.max_steps",
        rule: Rule::Integer { min: 1, max: i64::MAX },
        absent: Absent::Unset("run every epoch"),
        applies: None,
        doc: "Stops the run after this many steps. No schedule reads it: the steps that are taken are those of the full run.",
    },
    Key {
        path: "training.evaluate_every",
        rule: Rule::Integer { min: 0, max: i64::MAX },
        absent: Absent::Is("0"),
        applies: None,
        doc: "Steps after which the test set is evaluated, again and again; what it finds is in `evaluations.jsonl`, in the progress line and in the plot. 0 for the end alone. Training waits for it, and no bit of training depends on it.",
    },
    Key {
        path: "training.patience",
        rule: Rule::Integer { min: 1, max: 1_000_000 },
        absent: Absent::Unset("train to the end"),
        applies: None,
        doc: "Stops the run after so many evaluations in a row whose test loss is not below the best one (early stopping). What is then said of the test set flatters the model: it chose the step. Each part of the test set is one worker's to evaluate, so a worker that lies can end the run: not with a robust `aggregation`.",
    },
    Key {
        path: "training.min_improvement",
        rule: NOT_NEGATIVE,
        absent: Absent::Is("0.0"),
        applies: None,
        doc: "By how much a test loss must be below the best one to count as better, for `patience`.",
    },
    Key {
        path: "training.precision",
        rule: Rule::Choice(&["f32", "bf16"]),
        absent: Absent::Is("\"f32\""),
        applies: None,
        doc: "What workers compute matrix products and convolutions in. With `bf16` (mixed precision), weights, activations and gradients of activations are rounded to bfloat16 before a product, which sums in `f32`; servers keep and update the parameters in `f32`, and losses are not scaled. Activations that wait for the backward pass take half the memory: see [networks](networks.md#mixed-precision). A CPU is no faster for it.",
    },
    Key {
        path: "training.determinism",
        rule: Rule::Choice(&["strict", "relaxed"]),
        absent: Absent::Is("\"strict\""),
        applies: None,
        doc: "With `strict`, a node whose arithmetic could give other bits is refused; with `relaxed`, mixed processors train together and runs may differ in the last bits.",
    },
];

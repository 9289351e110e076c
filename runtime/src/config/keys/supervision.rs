//! The rows that say what becomes of nodes that die, and of workers that join a running job.

use super::rules::DAY_MS;
use super::{Absent, Key, Rule};

/// As often as the scheduler lets an identity join within ten minutes (`actors/src/scheduler/core/returning.rs`), but for its first
/// time.
const RESTARTS: Rule = Rule::Integer { min: 0, max: 31 };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "cluster.max_workers",
        rule: Rule::Integer { min: 1, max: 4096 },
        absent: Absent::Unset("`cluster.workers`"),
        applies: None,
        doc: "How many workers may take part at a time; at most `training.logical_shards`. Those beyond `cluster.workers` may join while the job is under way. Memory and places are shared out for as many. Under a robust rule it is `cluster.workers`.",
    },
    Key {
        path: "cluster.restarts",
        rule: RESTARTS,
        absent: Absent::Is("3"),
        applies: None,
        doc: "How often within ten minutes `testudo run`, or the script for Slurm, goes on by itself from the newest checkpoint when a server, the scheduler or a peer has died, a little later each time; on Kubernetes, how often in all. The bits of the result stay what they are. Without a checkpoint (`checkpoint.every_steps`) the run ends.",
    },
    Key {
        path: "cluster.worker_restarts",
        rule: RESTARTS,
        absent: Absent::Is("3"),
        applies: None,
        doc: "How often within ten minutes `testudo run`, or the script for Slurm, starts a worker again that has died, a little later each time. The bits of the result stay what they are, but where the push codec keeps residuals of error feedback (`int8`, `2bit`, `1bit`, `topk`): those of a dead worker are lost. Beyond that, the run goes on without it. On Kubernetes the manifests say how often: six times, and once for each of `cluster.restarts`. For peers (`cluster.placement`) it means nothing: a peer's death ends the run.",
    },
    Key {
        path: "cluster.worker_return_ms",
        rule: Rule::Integer { min: 0, max: DAY_MS },
        absent: Absent::Is("60000"),
        applies: None,
        doc: "Milliseconds that a run waits for a worker to come back when none is left, before it has failed for good; with 0 it ends at once. On Kubernetes let it be 900000 or more. For peers (`cluster.placement`) it is 0: none is started again.",
    },
];

//! What a worker's push brings to a server's arithmetic, and in which order such contributions are summed.

use crate::placement::SliceId;
use crate::tree::Node;

/// How contributions are summed. Only [`SumOrder::Canonical`] is ever configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SumOrder {
    /// By the reduction tree.
    #[default]
    Canonical,
    /// As they arrive: a mutant, kept so that the tests of determinism can be seen to catch it.
    Arrival,
    /// By the reduction tree, but in that one step the first element of every sum is off by one: a mutant, kept so that
    /// replays and witnesses can be seen to name a server that applies wrong updates.
    Wrong {
        /// The step.
        step: u64,
    },
}

/// One accepted push, to be summed.
#[derive(Debug)]
pub struct Contribution {
    /// The slice.
    pub slice: SliceId,
    /// The step.
    pub step: u64,
    /// The tree node that the values sum over.
    pub node: Node,
    /// The values; as many as the slice has elements.
    pub values: Vec<f32>,
}

//! What the last pass but one writes down for the last one, so that it need not compute it again: new states, and one value more where
//! the gradient sum stood, if nobody needs that any more.
//!
//! Invariants:
//! 1. What is kept can be computed in that pass, and is, for a reduction.
//! 2. What is written over is read neither by the last pass nor by that one's reductions themselves.

use super::{Seat, feeds};
use crate::optimizer::language::{Graph, Node, NodeId};

/// The nodes that the pass before `last` keeps, each with its seat; `levels` as in `Plan`.
pub(super) fn kept(graph: &Graph, levels: &[usize], last: usize) -> Vec<(NodeId, Seat)> {
    let Some(before) = last.checked_sub(1) else { return Vec::new() };
    let feeds: Vec<NodeId> = feeds(graph, levels, before).map(|(_, _, operand)| operand).collect();
    let search = Search { graph, levels, last, computed: needed(graph, feeds.iter().copied(), &[]), feeds };
    let in_place_of_the_sum = graph.ids().filter(|id| search.may_keep(*id));
    in_place_of_the_sum.rev().find_map(|id| search.with(id)).unwrap_or_else(|| search.states(None))
}

struct Search<'a> {
    graph: &'a Graph,
    levels: &'a [usize],
    last: usize,
    /// By node: whether the pass before the last computes it.
    computed: Vec<bool>,
    /// What that pass's reductions are of.
    feeds: Vec<NodeId>,
}

impl Search<'_> {
    fn may_keep(&self, id: NodeId) -> bool {
        let (node, kind) = self.graph.nodes()[id.index()];
        let is_leaf = matches!(node, Node::State(_) | Node::Weights | Node::Gradient);
        kind.is_tensor() && !is_leaf && self.levels[id.index()] < self.last && self.computed[id.index()]
    }

    /// All that is kept if `value` is, where the gradient sum stood; `None` if the last pass needs that, or has no use for the value.
    fn with(&self, value: NodeId) -> Option<Vec<(NodeId, Seat)>> {
        let kept = self.states(Some(value));
        let needed = self.needed_at_last(&kept);
        let mut nodes = self.graph.nodes().iter().zip(&needed);
        let reads_sum = nodes.any(|((node, _), needed)| *needed && *node == Node::Gradient);
        (needed[value.index()] && !reads_sum && kept.contains(&(value, Seat::OUT))).then_some(kept)
    }

    /// The new states that are kept, beside a value in the place of the gradient sum.
    fn states(&self, value: Option<NodeId>) -> Vec<(NodeId, Seat)> {
        let mut kept: Vec<(NodeId, Seat)> = Vec::new();
        for (state, id) in self.graph.states().iter().enumerate() {
            let is_fed =
                self.feeds.iter().any(|feed| self.graph.nodes()[feed.index()].0 == Node::State(state));
            if self.may_keep(*id) && !is_fed && !kept.iter().any(|(known, _)| known == id) {
                kept.push((*id, Seat::state(state)));
            }
        }
        if let Some(value) = value.filter(|value| !kept.iter().any(|(known, _)| known == value)) {
            kept.push((value, Seat::OUT));
        }
        // Without one of them, the last pass may need another's old value.
        loop {
            let needed = self.needed_at_last(&kept);
            let reads = |seat: Seat| {
                let mut nodes = self.graph.nodes().iter().zip(&needed);
                nodes.any(|((node, _), needed)| match node {
                    Node::State(state) => *needed && Seat::state(*state) == seat,
                    _ => false,
                })
            };
            let before = kept.len();
            kept.retain(|(_, seat)| !reads(*seat));
            if kept.len() == before {
                return kept;
            }
        }
    }

    fn needed_at_last(&self, kept: &[(NodeId, Seat)]) -> Vec<bool> {
        needed(self.graph, self.graph.states().iter().copied().chain([self.graph.weights()]), kept)
    }
}

/// By node: whether a pass reads or computes it for `roots`, where `kept` is there already.
fn needed(graph: &Graph, roots: impl Iterator<Item = NodeId>, kept: &[(NodeId, Seat)]) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes().len()];
    roots.for_each(|root| needed[root.index()] = true);
    for id in graph.ids().rev() {
        if needed[id.index()] && !kept.iter().any(|(known, _)| *known == id) {
            let operands = graph.nodes()[id.index()].0.operands();
            operands
                .filter(|operand| graph.kind(*operand).is_tensor())
                .for_each(|operand| needed[operand.index()] = true);
        }
    }
    needed
}

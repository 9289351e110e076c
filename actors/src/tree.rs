//! The canonical reduction tree over logical shards: the one order in which gradients are summed.
//!
//! The tree over `n` leaves splits at the largest power of two below `n`, recursively (the shape of RFC 9162's
//! Merkle trees). It depends on `training.logical_shards` alone, so sums have the same bits whoever computes them.
//!
//! 1. Every sum is a fold of this tree: two siblings are added, never an accumulator and an arrival.
//! 2. [`Partials`] accepts whole nodes in any order and yields the root's value exactly once.

use serde::{Deserialize, Serialize};

/// A node of the tree: the run of `leaves` logical shards that starts at shard `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    /// Its first logical shard.
    pub first: u32,
    /// How many logical shards it holds; at least 1 in a node of any tree.
    pub leaves: u32,
}

impl Node {
    /// The single logical shard `shard`.
    #[must_use]
    pub const fn leaf(shard: u32) -> Node {
        Node { first: shard, leaves: 1 }
    }

    /// Whether every shard of `other` lies in this node.
    #[must_use]
    pub fn covers(&self, other: &Node) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }

    /// One past its last shard.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.leaves)
    }

    /// Its two children in the canonical tree; `None` for a leaf.
    #[must_use]
    pub fn children(&self) -> Option<(Node, Node)> {
        if self.leaves < 2 {
            return None;
        }
        let left = 1u32 << (31 - (self.leaves - 1).leading_zeros());
        let right = Node { first: self.first + left, leaves: self.leaves - left };
        Some((Node { first: self.first, leaves: left }, right))
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.leaves {
            1 => write!(f, "shard {}", self.first),
            _ => write!(f, "shards {} to {}", self.first, self.end().saturating_sub(1)),
        }
    }
}

/// The tree over a fixed number of logical shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReductionTree {
    leaves: u32,
}

impl ReductionTree {
    /// The tree over `leaves` logical shards; `None` for no shards at all.
    #[must_use]
    pub fn new(leaves: u32) -> Option<ReductionTree> {
        (leaves > 0).then_some(ReductionTree { leaves })
    }

    /// The tree of one shard.
    #[must_use]
    pub fn single() -> ReductionTree {
        ReductionTree { leaves: 1 }
    }

    /// The node of all shards.
    #[must_use]
    pub fn root(&self) -> Node {
        Node { first: 0, leaves: self.leaves }
    }

    /// How many logical shards there are.
    #[must_use]
    pub fn leaves(&self) -> u32 {
        self.leaves
    }

    /// The parent and the sibling of `node`; `None` for the root and for what is no node of this tree.
    #[must_use]
    pub fn parent_and_sibling(&self, node: Node) -> Option<(Node, Node)> {
        let mut parent = self.root();
        loop {
            let (left, right) = parent.children()?;
            if left == node {
                return Some((parent, right));
            }
            if right == node {
                return Some((parent, left));
            }
            parent = if left.covers(&node) {
                left
            } else if right.covers(&node) {
                right
            } else {
                return None;
            };
        }
    }

    /// Whether `node` is a node of this tree.
    #[must_use]
    pub fn contains(&self, node: Node) -> bool {
        node.leaves > 0 && (node == self.root() || self.parent_and_sibling(node).is_some())
    }

    /// The fewest nodes that make up shards `first .. end`, in order.
    #[must_use]
    pub fn cover(&self, first: u32, end: u32) -> Vec<Node> {
        let mut out = Vec::new();
        let wanted = Node { first, leaves: end.min(self.leaves).saturating_sub(first) };
        if wanted.leaves > 0 {
            Self::cover_below(self.root(), wanted, &mut out);
        }
        out
    }

    fn cover_below(node: Node, wanted: Node, out: &mut Vec<Node>) {
        if wanted.covers(&node) {
            out.push(node);
        } else if node.end() > u64::from(wanted.first)
            && wanted.end() > u64::from(node.first)
            && let Some((left, right)) = node.children()
        {
            Self::cover_below(left, wanted, out);
            Self::cover_below(right, wanted, out);
        }
    }
}

/// Values at nodes of the tree that wait for their siblings (invariants 1 and 2 of the module).
#[derive(Debug)]
pub struct Partials<V> {
    waiting: Vec<(Node, V)>,
}

impl<V> Default for Partials<V> {
    fn default() -> Self {
        Partials { waiting: Vec::new() }
    }
}

impl<V> Partials<V> {
    /// Puts `value` at `node`, adds siblings as far up as they are there, and returns the value of `target`
    /// (a node at or above `node`) when that is complete. `add` gets the left value, then the right one.
    pub fn insert(
        &mut self,
        tree: ReductionTree,
        target: Node,
        mut node: Node,
        mut value: V,
        mut add: impl FnMut(V, V) -> V,
    ) -> Option<V> {
        while node != target {
            let Some((parent, sibling)) = tree.parent_and_sibling(node) else { break };
            let Some(at) = self.waiting.iter().position(|(held, _)| *held == sibling) else { break };
            let (_, other) = self.waiting.swap_remove(at);
            value = if sibling.first < node.first { add(other, value) } else { add(value, other) };
            node = parent;
        }
        if node == target {
            return Some(value);
        }
        self.waiting.push((node, value));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all_nodes(node: Node, out: &mut Vec<Node>) {
        out.push(node);
        if let Some((left, right)) = node.children() {
            all_nodes(left, out);
            all_nodes(right, out);
        }
    }

    #[test]
    fn splits_at_the_largest_power_of_two_below() {
        let split = |leaves| Node { first: 0, leaves }.children().map(|(l, r)| (l.leaves, r.leaves));
        assert_eq!(split(1), None);
        assert_eq!(split(2), Some((1, 1)));
        assert_eq!(split(5), Some((4, 1)));
        assert_eq!(split(8), Some((4, 4)));
        assert_eq!(split(u32::MAX), Some((1 << 31, (1 << 31) - 1)));
    }

    #[test]
    fn what_is_no_node_is_refused() {
        let tree = ReductionTree::new(4).unwrap();
        for (first, leaves) in [(1, 2), (0, 3), (0, 5), (4, 1), (0, 0), (u32::MAX, 1), (3, u32::MAX)] {
            assert!(!tree.contains(Node { first, leaves }), "{first}+{leaves}");
        }
    }

    proptest! {
        #[test]
        fn covers_are_nodes_and_exact(leaves in 1u32..200, a in 0u32..200, b in 0u32..200) {
            let tree = ReductionTree::new(leaves).unwrap();
            let (first, end) = (a.min(b).min(leaves), a.max(b).min(leaves));
            let cover = tree.cover(first, end);
            prop_assert!(cover.iter().all(|n| tree.contains(*n)));
            let shards: Vec<u32> = cover.iter().flat_map(|n| n.first..n.first + n.leaves).collect();
            prop_assert_eq!(shards, (first..end).collect::<Vec<_>>());
        }

        /// Invariants 1 and 2: any cut into whole nodes, in any order, is one and the same expression.
        #[test]
        fn any_order_of_arrival_is_one_expression(leaves in 1u32..40, seed in any::<u64>()) {
            let tree = ReductionTree::new(leaves).unwrap();
            let expression = |node: Node| {
                fn walk(node: Node) -> String {
                    match node.children() {
                        None => node.first.to_string(),
                        Some((l, r)) => format!("({}+{})", walk(l), walk(r)),
                    }
                }
                walk(node)
            };
            let mut random = seed;
            let mut next = move || { random = random.wrapping_mul(6364136223846793005).wrapping_add(1); random >> 33 };
            let mut cut = vec![tree.root()];
            for _ in 0..next() % 40 {
                let at = (next() % cut.len() as u64) as usize;
                if let Some((l, r)) = cut[at].children() { cut.swap_remove(at); cut.push(l); cut.push(r); }
            }
            for i in (1..cut.len()).rev() { cut.swap(i, (next() % (i as u64 + 1)) as usize); }
            let mut partials = Partials::default();
            let mut results = Vec::new();
            for node in &cut {
                results.extend(partials.insert(tree, tree.root(), *node, expression(*node), |l, r| format!("({l}+{r})")));
            }
            prop_assert_eq!(results, vec![expression(tree.root())]);
        }

        #[test]
        fn every_node_knows_its_family(leaves in 1u32..100) {
            let tree = ReductionTree::new(leaves).unwrap();
            let mut nodes = Vec::new();
            all_nodes(tree.root(), &mut nodes);
            prop_assert_eq!(nodes.len() as u32, 2 * leaves - 1);
            for node in nodes {
                prop_assert!(tree.contains(node));
                if node != tree.root() {
                    let (parent, sibling) = tree.parent_and_sibling(node).unwrap();
                    let (l, r) = parent.children().unwrap();
                    prop_assert!((l, r) == (node, sibling) || (l, r) == (sibling, node));
                }
            }
        }
    }
}

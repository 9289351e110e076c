//! Who computes which part of the global batch.
//!
//! A lease gives one worker one node of the reduction tree, from a step on, until the membership changes.
//!
//! 1. Live leases cover every logical shard exactly once.
//! 2. A change of membership only ever moves a node or cuts it finer, so a step that was half pushed under the old
//!    leases can be completed under the new ones: a server never meets a node above one that it has accepted.
//! 3. A worker keeps what it had: its pushes under way stay valid across the change. What moved carries the new
//!    epoch in `since`, so nothing that the former holder still sends can count.
//! 4. Siblings that one worker holds are contributed as their parent once nobody else can have contributed to the step below
//!    it: a loss costs the survivors what was lost, and not the sums that they would otherwise no longer make before they push.
//! 5. Where nothing may be summed before it is pushed ([`JobSpec::sums_shards`](crate::JobSpec::sums_shards)), every lease is one
//!    logical shard's, and none is ever joined to another.

use serde::{Deserialize, Serialize};

use crate::tree::{Node, ReductionTree};

/// The epoch of the first leases: later ones were another worker's before.
pub const FIRST_EPOCH: u64 = 1;

/// One worker's right, and duty, to contribute one node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The node of the reduction tree.
    pub node: Node,
    /// The index of the worker that holds it.
    pub worker: u32,
    /// The membership epoch in which that worker got it.
    pub since: u64,
    /// The first step for which it holds.
    pub from_step: u64,
    /// The first step that no former holder can have contributed to: from here on the node may be joined to its sibling.
    pub alone_from: u64,
}

/// The nodes that `worker` contributes to `step`: what it holds, and siblings as their parent where that may be.
#[must_use]
pub fn contributed(tree: ReductionTree, leases: &[Lease], worker: u32, step: u64) -> Vec<Node> {
    let held = leases.iter().filter(|l| l.worker == worker && l.from_step <= step);
    let (alone, shared): (Vec<&Lease>, Vec<&Lease>) = held.partition(|l| l.alone_from <= step);
    let mut alone: Vec<Node> = alone.into_iter().map(|l| l.node).collect();
    alone.sort_unstable();
    let mut nodes: Vec<Node> = Vec::with_capacity(alone.len() + shared.len());
    for mut node in alone {
        // In the order of shards, a left sibling is whole just before its right one is.
        while let Some((parent, sibling)) = tree.parent_and_sibling(node)
            && nodes.last() == Some(&sibling)
        {
            nodes.pop();
            node = parent;
        }
        nodes.push(node);
    }
    nodes.extend(shared.into_iter().map(|l| l.node));
    nodes.sort_unstable();
    nodes
}

/// Whether `worker` may contribute `node` to `step` by the leases that it has had since `epoch` or longer: it is one that it
/// holds, or is made of such as it may join.
#[must_use]
pub fn may_contribute(
    tree: ReductionTree,
    leases: &[Lease],
    (worker, epoch): (u32, u64),
    (node, step): (Node, u64),
) -> bool {
    let mut joined = 0;
    for lease in leases.iter().filter(|l| l.worker == worker && l.since <= epoch && l.from_step <= step) {
        if lease.node == node {
            return true;
        }
        if node.covers(&lease.node) && lease.alone_from <= step {
            joined += u64::from(lease.node.leaves);
        }
    }
    // Leases share no shard (invariant 1), so as many as the node has are all of it.
    joined > 0 && joined == u64::from(node.leaves) && tree.contains(node)
}

/// The first leases: contiguous runs of shards, as even as can be, over `workers` in the order given.
/// Workers beyond the number of logical shards get none. `sums` says whether workers sum what they hold (invariant 5).
#[must_use]
pub fn assign(tree: ReductionTree, workers: &[u32], epoch: u64, from_step: u64, sums: bool) -> Vec<Lease> {
    let count = workers.len() as u64;
    let boundary = |i: usize| (i as u64 * u64::from(tree.leaves()) / count.max(1)) as u32;
    let alone_from = if sums { from_step } else { u64::MAX };
    workers
        .iter()
        .enumerate()
        .flat_map(|(i, worker)| {
            let (first, end) = (boundary(i), boundary(i + 1));
            let nodes = if sums { tree.cover(first, end) } else { (first..end).map(Node::leaf).collect() };
            nodes.into_iter().map(move |node| Lease {
                node,
                worker: *worker,
                since: epoch,
                from_step,
                alone_from,
            })
        })
        .collect()
}

/// Moves what `dead` held to `survivors`: nodes are cut until there is one for each survivor if possible, and each goes
/// to whoever holds the fewest shards (lowest index first). `from_step(node)` says from which step a node is still owed, and
/// `alone_from` which step the dead can have contributed nothing to (`None`: what moves is never joined).
#[must_use]
pub fn reassign(
    leases: &[Lease],
    dead: u32,
    survivors: &[u32],
    epoch: u64,
    (from_step, alone_from): (impl Fn(Node) -> u64, Option<u64>),
) -> Vec<Lease> {
    let alone_from = alone_from.unwrap_or(u64::MAX);
    let (moving, mut kept): (Vec<Lease>, Vec<Lease>) = leases.iter().partition(|l| l.worker == dead);
    let mut nodes: Vec<Node> = moving.iter().map(|l| l.node).collect();
    while nodes.len() < survivors.len() {
        let Some(at) = (0..nodes.len()).filter(|i| nodes[*i].leaves > 1).max_by_key(|i| nodes[*i].leaves)
        else {
            break;
        };
        if let Some((left, right)) = nodes.swap_remove(at).children() {
            nodes.extend([left, right]);
        }
    }
    nodes.sort_by_key(|node| (std::cmp::Reverse(node.leaves), node.first));
    let mut load: Vec<(u64, u32)> = survivors
        .iter()
        .map(|w| (kept.iter().filter(|l| l.worker == *w).map(|l| u64::from(l.node.leaves)).sum(), *w))
        .collect();
    for node in nodes {
        let Some(lightest) = load.iter_mut().min() else { break };
        lightest.0 += u64::from(node.leaves);
        kept.push(Lease { node, worker: lightest.1, since: epoch, from_step: from_step(node), alone_from });
    }
    kept.sort_by_key(|l| l.node);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shards(leases: &[Lease]) -> Vec<u32> {
        let mut all: Vec<u32> =
            leases.iter().flat_map(|l| l.node.first..l.node.first + l.node.leaves).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn one_worker_holds_the_root() {
        let tree = ReductionTree::new(4).unwrap();
        let leases = assign(tree, &[7], 1, 0, true);
        assert_eq!(leases, vec![lease(tree.root(), 0)]);
    }

    /// Invariant 5, through a death as well.
    #[test]
    fn without_sums_every_shard_is_contributed_by_itself() {
        let tree = ReductionTree::new(6).unwrap();
        let leases = assign(tree, &[3, 7], 1, 0, false);
        let leaves = |shards: std::ops::Range<u32>| shards.map(Node::leaf).collect::<Vec<_>>();
        assert_eq!(contributed(tree, &leases, 3, 9), leaves(0..3));
        let next = reassign(&leases, 7, &[3], 2, (|_| 4, None));
        assert_eq!(contributed(tree, &next, 3, u64::MAX - 1), leaves(0..6));
        assert!(!may_contribute(tree, &next, (3, 2), (tree.root(), 9)));
    }

    fn lease(node: Node, alone_from: u64) -> Lease {
        Lease { node, worker: 7, since: 1, from_step: 0, alone_from }
    }

    /// Invariant 4: not before nobody else can have contributed below.
    #[test]
    fn siblings_are_joined_from_the_step_on_that_is_theirs_alone() {
        let tree = ReductionTree::new(4).unwrap();
        let [left, right] = [Node { first: 0, leaves: 2 }, Node { first: 2, leaves: 2 }];
        let leases = [lease(left, 0), lease(Node::leaf(2), 5), lease(Node::leaf(3), 9)];
        let at = |step| contributed(tree, &leases, 7, step);
        assert_eq!(at(8), [left, Node::leaf(2), Node::leaf(3)]);
        assert_eq!(at(9), [tree.root()]);
        assert_eq!(contributed(tree, &leases, 8, 9), []);
        let may = |node, step| may_contribute(tree, &leases, (7, 1), (node, step));
        assert!(may(left, 0) && !may(right, 8) && may(right, 9) && may(tree.root(), 9));
        assert!(!may(Node { first: 1, leaves: 2 }, 9) && !may(Node::leaf(0), 9), "made of no leases");
        assert!(!may(Node { first: 4, leaves: 0 }, 9) && !may(Node { first: 0, leaves: u32::MAX }, 9));
        assert!(!may_contribute(tree, &leases, (7, 0), (right, 9)), "it held that only later");
    }

    proptest! {
        /// Invariants 1 to 4, through any number of deaths.
        #[test]
        fn deaths_move_and_cut_but_never_join(leaves in 1u32..64, workers in 1u32..9, deaths in prop::collection::vec(0usize..8, 0..8)) {
            let tree = ReductionTree::new(leaves).unwrap();
            let mut live: Vec<u32> = (0..workers).collect();
            let mut leases = assign(tree, &live, 1, 0, true);
            prop_assert_eq!(shards(&leases), (0..leaves).collect::<Vec<_>>());
            for (epoch, pick) in (2u64..).zip(deaths) {
                if live.len() == 1 { break; }
                let dead = live.remove(pick % live.len());
                let alone_from = epoch * 10;
                let next = reassign(&leases, dead, &live, epoch, (|_| 5, Some(alone_from)));
                prop_assert_eq!(shards(&next), (0..leaves).collect::<Vec<_>>());
                for lease in &next {
                    prop_assert!(tree.contains(lease.node));
                    prop_assert!(live.contains(&lease.worker));
                    let before = leases.iter().find(|l| l.node.covers(&lease.node));
                    prop_assert!(before.is_some(), "a node only ever moves or is cut");
                    if lease.since < epoch { prop_assert!(leases.contains(lease)); }
                    else { prop_assert_eq!(before.unwrap().worker, dead); }
                }
                for step in [5, alone_from - 1, alone_from] {
                    let mut covered = Vec::new();
                    for worker in &live {
                        for node in contributed(tree, &next, *worker, step) {
                            prop_assert!(may_contribute(tree, &next, (*worker, epoch), (node, step)));
                            let moved = next.iter().any(|l| l.since == epoch && node != l.node && node.covers(&l.node));
                            prop_assert!(!moved || step >= alone_from, "joined what the dead may have contributed to");
                            covered.extend(node.first..node.first + node.leaves);
                        }
                    }
                    covered.sort_unstable();
                    prop_assert_eq!(covered, (0..leaves).collect::<Vec<_>>());
                }
                if live.len() == 1 {
                    prop_assert_eq!(contributed(tree, &next, live[0], alone_from), vec![tree.root()]);
                }
                leases = next;
            }
        }
    }
}

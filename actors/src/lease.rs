//! Who computes which part of the global batch.
//!
//! A lease gives one worker one node of the reduction tree, from a step on, until the membership changes.
//!
//! 1. Live leases cover every logical shard exactly once.
//! 2. A change of membership only ever moves a node or cuts it finer, so a step that was half pushed under the old
//!    leases can be completed under the new ones: a server never meets a node above one that it has accepted.
//! 3. A worker keeps what it had: its pushes under way stay valid across the change. What moved carries the new
//!    epoch in `since`, so nothing that the former holder still sends can count.

use serde::{Deserialize, Serialize};

use crate::tree::{Node, ReductionTree};

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
}

/// The first leases: contiguous runs of shards, as even as can be, over `workers` in the order given.
/// Workers beyond the number of logical shards get none.
#[must_use]
pub fn assign(tree: ReductionTree, workers: &[u32], epoch: u64, from_step: u64) -> Vec<Lease> {
    let count = workers.len() as u64;
    let boundary = |i: usize| (i as u64 * u64::from(tree.leaves()) / count.max(1)) as u32;
    workers
        .iter()
        .enumerate()
        .flat_map(|(i, worker)| {
            tree.cover(boundary(i), boundary(i + 1)).into_iter().map(move |node| Lease {
                node,
                worker: *worker,
                since: epoch,
                from_step,
            })
        })
        .collect()
}

/// Moves what `dead` held to `survivors`: nodes are cut until there is one for each survivor if possible, and each goes
/// to whoever holds the fewest shards (lowest index first). `from_step(node)` says from which step a node is still owed.
#[must_use]
pub fn reassign(
    leases: &[Lease],
    dead: u32,
    survivors: &[u32],
    epoch: u64,
    from_step: impl Fn(Node) -> u64,
) -> Vec<Lease> {
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
        kept.push(Lease { node, worker: lightest.1, since: epoch, from_step: from_step(node) });
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
        let leases = assign(tree, &[7], 1, 0);
        assert_eq!(leases, vec![Lease { node: tree.root(), worker: 7, since: 1, from_step: 0 }]);
    }

    proptest! {
        /// Invariants 1 to 3, through any number of deaths.
        #[test]
        fn deaths_move_and_cut_but_never_join(leaves in 1u32..64, workers in 1u32..9, deaths in prop::collection::vec(0usize..8, 0..8)) {
            let tree = ReductionTree::new(leaves).unwrap();
            let mut live: Vec<u32> = (0..workers).collect();
            let mut leases = assign(tree, &live, 1, 0);
            prop_assert_eq!(shards(&leases), (0..leaves).collect::<Vec<_>>());
            for (epoch, pick) in (2u64..).zip(deaths) {
                if live.len() == 1 { break; }
                let dead = live.remove(pick % live.len());
                let next = reassign(&leases, dead, &live, epoch, |_| 5);
                prop_assert_eq!(shards(&next), (0..leaves).collect::<Vec<_>>());
                for lease in &next {
                    prop_assert!(tree.contains(lease.node));
                    prop_assert!(live.contains(&lease.worker));
                    let before = leases.iter().find(|l| l.node.covers(&lease.node));
                    prop_assert!(before.is_some(), "a node only ever moves or is cut");
                    if lease.since < epoch { prop_assert!(leases.contains(lease)); }
                    else { prop_assert_eq!(before.unwrap().worker, dead); }
                }
                leases = next;
            }
        }
    }
}

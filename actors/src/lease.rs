//! Who computes which part of the global batch.
//!
//! A lease gives one worker one node of the reduction tree, from a step on, until the membership changes.
//!
//! 1. Live leases cover every logical shard exactly once in every step that is still owed.
//! 2. In steps that may have been begun, a change of membership only ever moves a node or cuts it finer, so a step that was half
//!    pushed under the old leases can be completed under the new ones: a server never meets a node above one that it has accepted.
//! 3. A worker keeps what it had: its pushes under way stay valid across the change. What moved carries the new
//!    epoch in `since`, so nothing that the former holder still sends can count.
//! 4. Siblings that one worker holds are contributed as their parent once nobody else can have contributed to the step below
//!    it: a loss costs the survivors what was lost, and not the sums that they would otherwise no longer make before they push.
//! 5. Where nothing may be summed before it is pushed ([`JobSpec::sums_shards`](crate::JobSpec::sums_shards)), every lease is one
//!    logical shard's, and none is ever joined to another.
//! 6. A worker that joins a running job gets its leases from the horizon on, where nobody can have begun a step; whoever had
//!    them keeps them below it ([`rebalance`]). With everybody back, leases are what they were at the beginning.

use serde::{Deserialize, Serialize};

use crate::tree::{Node, ReductionTree};

/// The epoch of the first leases: later ones were another worker's before.
pub const FIRST_EPOCH: u64 = 1;

/// Steps that workers may begin beyond the last completed one: enough that no worker ever waits for the scheduler,
/// few enough that a stop takes effect soon.
pub const LEASED_AHEAD: u64 = 4;

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
    /// The first step for which it holds no longer, if another worker has the node from there on.
    pub to_step: Option<u64>,
}

impl Lease {
    /// Whether it holds for `step`.
    #[must_use]
    pub fn holds_in(&self, step: u64) -> bool {
        self.from_step <= step && self.to_step.is_none_or(|to| step < to)
    }
}

/// The nodes that `worker` contributes to `step`: what it holds, and siblings as their parent where that may be.
#[must_use]
pub fn contributed(tree: ReductionTree, leases: &[Lease], worker: u32, step: u64) -> Vec<Node> {
    let held = leases.iter().filter(|l| l.worker == worker && l.holds_in(step));
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
    for lease in leases.iter().filter(|l| l.worker == worker && l.since <= epoch && l.holds_in(step)) {
        if lease.node == node {
            return true;
        }
        if node.covers(&lease.node) && lease.alone_from <= step {
            joined += u64::from(lease.node.leaves);
        }
    }
    // Leases of one step share no shard (invariant 1), so as many as the node has are all of it.
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
                to_step: None,
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
    let (mut moving, mut kept): (Vec<Lease>, Vec<Lease>) = leases.iter().partition(|l| l.worker == dead);
    // What holds for few more steps is not worth cutting.
    while moving.iter().filter(|l| l.to_step.is_none()).count() < survivors.len() {
        let can_be_cut = |l: &Lease| l.to_step.is_none() && l.node.leaves > 1;
        let Some(at) =
            (0..moving.len()).filter(|i| can_be_cut(&moving[*i])).max_by_key(|i| moving[*i].node.leaves)
        else {
            break;
        };
        let lease = moving.swap_remove(at);
        if let Some((left, right)) = lease.node.children() {
            moving.extend([left, right].map(|node| Lease { node, ..lease }));
        }
    }
    moving.sort_by_key(|l| (std::cmp::Reverse(l.node.leaves), l.node.first, l.from_step));
    let open = |l: &Lease| if l.to_step.is_none() { u64::from(l.node.leaves) } else { 0 };
    let mut load: Vec<(u64, u32)> =
        survivors.iter().map(|w| (kept.iter().filter(|l| l.worker == *w).map(open).sum(), *w)).collect();
    for lease in moving {
        let from_step = from_step(lease.node).max(lease.from_step);
        // Nothing of it is owed any more.
        if lease.to_step.is_some_and(|to| to <= from_step) {
            continue;
        }
        let Some(lightest) = load.iter_mut().min() else { break };
        lightest.0 += open(&lease);
        kept.push(Lease { worker: lightest.1, since: epoch, from_step, alone_from, ..lease });
    }
    kept.sort_by_key(|l| (l.node, l.from_step));
    kept
}

/// Leases for `live`, some of whom have just joined: from `horizon` on, the first step that nobody can have begun, as if the job had
/// begun with `base` and those of it who are not live had died at once. Below it everything stays as it is, and what does not
/// change keeps its lease (invariant 6).
#[must_use]
pub fn rebalance(
    tree: ReductionTree,
    leases: &[Lease],
    (base, live): (&[u32], &[u32]),
    (epoch, horizon): (u64, u64),
    sums: bool,
) -> Vec<Lease> {
    let mut wanted = assign(tree, base, epoch, horizon, sums);
    for absent in base.iter().filter(|worker| !live.contains(worker)) {
        wanted = reassign(&wanted, *absent, live, epoch, (|_| horizon, sums.then_some(horizon)));
    }
    let mut next: Vec<Lease> = Vec::with_capacity(leases.len() + wanted.len());
    for lease in leases.iter().filter(|l| l.from_step < horizon) {
        let stays = |l: &Lease| (l.worker, l.node) == (lease.worker, lease.node);
        match lease.to_step.is_none().then(|| wanted.iter().position(stays)).flatten() {
            Some(at) => {
                wanted.swap_remove(at);
                next.push(*lease);
            }
            None => next.push(Lease { to_step: Some(lease.to_step.unwrap_or(horizon)), ..*lease }),
        }
    }
    next.extend(wanted);
    next.sort_by_key(|l| (l.node, l.from_step));
    next
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
        Lease { node, worker: 7, since: 1, from_step: 0, alone_from, to_step: None }
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

    /// Invariant 6: who comes back has its own again, from the horizon on and not before.
    #[test]
    fn who_comes_back_takes_its_own_up_from_the_horizon_on() {
        let tree = ReductionTree::new(8).unwrap();
        let begun = assign(tree, &[0, 1, 2, 3], 1, 0, true);
        let alone = reassign(&begun, 2, &[0, 1, 3], 2, (|_| 5, Some(9)));
        let back = rebalance(tree, &alone, (&[0, 1, 2, 3], &[0, 1, 2, 3]), (3, 14), true);
        for worker in 0..4 {
            for step in [9, 13] {
                assert_eq!(
                    contributed(tree, &back, worker, step),
                    contributed(tree, &alone, worker, step),
                    "nothing changes below the horizon"
                );
            }
            assert_eq!(contributed(tree, &back, worker, 14), contributed(tree, &begun, worker, 14));
        }
        let own = begun.iter().find(|l| l.worker == 2).unwrap().node;
        assert!(
            !may_contribute(tree, &back, (2, 2), (own, 14)),
            "not by what it was told before it came back"
        );
        assert!(
            may_contribute(tree, &back, (2, 3), (own, 14)) && !may_contribute(tree, &back, (2, 3), (own, 13))
        );
        // One more than the job began with; and votes stay apart.
        let more = rebalance(tree, &back, (&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 4]), (4, 20), true);
        assert!(!contributed(tree, &more, 4, 20).is_empty() && contributed(tree, &more, 4, 19).is_empty());
        let apart = assign(tree, &(0..8).collect::<Vec<_>>(), 1, 0, false);
        let lost = reassign(&apart, 5, &[0, 1, 2, 3, 4, 6, 7], 2, (|_| 3, None));
        let all: Vec<u32> = (0..8).collect();
        let votes = rebalance(tree, &lost, (&all, &all), (3, 7), false);
        (0..8).for_each(|w| assert_eq!(contributed(tree, &votes, w, u64::MAX - 1), [Node::leaf(w)]));
    }

    proptest! {
        /// Invariants 1, 2 and 6, through any number of deaths and returns, some of them at one horizon.
        #[test]
        fn deaths_and_returns_leave_every_step_covered_once(
            leaves in 1u32..40, workers in 1u32..7, events in prop::collection::vec((0u32..8, 0u64..3), 0..14), sums: bool
        ) {
            let tree = ReductionTree::new(leaves).unwrap();
            let base: Vec<u32> = (0..workers.min(leaves)).collect();
            let mut live = base.clone();
            let mut leases = assign(tree, &live, 1, 0, sums);
            let (mut owed, mut horizon) = (0, 4);
            for (epoch, (worker, steps)) in (2u64..).zip(events) {
                owed += steps;
                horizon = horizon.max(owed + 4 - steps);
                leases.retain(|l| l.to_step.is_none_or(|to| to > owed));
                let before = leases.clone();
                match live.iter().position(|w| *w == worker) {
                    Some(at) if live.len() > 1 => {
                        live.remove(at);
                        leases = reassign(&leases, worker, &live, epoch, (|_| owed, sums.then_some(horizon)));
                    }
                    None if base.contains(&worker) => {
                        live.push(worker);
                        live.sort_unstable();
                        leases = rebalance(tree, &leases, (&base, &live), (epoch, horizon), sums);
                    }
                    _ => continue,
                }
                for step in owed..horizon + 3 {
                    let at = |leases: &[Lease]| {
                        let mut nodes: Vec<Node> =
                            base.iter().flat_map(|w| contributed(tree, leases, *w, step)).collect();
                        nodes.sort_unstable();
                        nodes
                    };
                    let (now, then) = (at(&leases), at(&before));
                    prop_assert_eq!(
                        now.iter().flat_map(|n| n.first..n.first + n.leaves).collect::<Vec<_>>(),
                        (0..leaves).collect::<Vec<_>>(), "step {}", step
                    );
                    for node in &now {
                        let holder = live.iter().find(|w| contributed(tree, &leases, **w, step).contains(node));
                        prop_assert!(may_contribute(tree, &leases, (*holder.unwrap(), epoch), (*node, step)));
                        prop_assert!(step >= horizon || then.iter().any(|n| n.covers(node)), "joined below the horizon");
                    }
                }
                prop_assert!(leases.len() as u64 <= 8 * u64::from(leaves) + 8);
            }
        }

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

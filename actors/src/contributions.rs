//! What a worker signs of a step: which values it pushed, by their hashes.
//!
//! The MAC of a push convinces its server alone. A signature convinces anybody, later: whoever computes the step again knows
//! whether this worker, and no other, contributed something else.
//!
//! 1. A digest stands for exactly the pushes of the nodes that are reported: each by node, slice and the BLAKE3 hash of its values.
//! 2. Every report is signed, of no push too: a worker whose report comes without is sent away (`scheduler/actor/audited.rs`).
//! 3. What is signed is bound to the step and to nothing but this use; the certificate binds it to the job and the worker.

use std::collections::BTreeMap;

use crate::placement::SliceId;
use crate::tree::Node;

/// Domain separation of the signature.
const CONTEXT: &[u8] = b"testudo contributions, format 1\0";

/// Steps for which pushes are remembered beyond the one that is reported: workers are never so far apart.
const KEPT: u64 = 16;

/// A node of the tree in a step.
type Place = (u64, u32, u32);

/// The pushes of a worker that have not been reported yet.
#[derive(Debug, Default)]
pub struct Pushed {
    open: BTreeMap<Place, Vec<(SliceId, [u8; 32])>>,
}

/// What stands for the pushes of some nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many pushes.
    pub count: u64,
    /// BLAKE3 over them.
    pub blake3: [u8; 32],
}

impl Pushed {
    /// Values with this hash are on their way.
    pub fn add(&mut self, step: u64, node: Node, slice: SliceId, hash: [u8; 32]) {
        self.open.entry((step, node.first, node.leaves)).or_default().push((slice, hash));
    }

    /// The digest of what was pushed for `nodes` of `step`, which are reported now: of nothing, if that is nothing.
    pub fn take(&mut self, step: u64, nodes: impl IntoIterator<Item = Node>) -> Digest {
        let mut pushes = Vec::new();
        for node in nodes {
            let found = self.open.remove(&(step, node.first, node.leaves)).unwrap_or_default();
            pushes.extend(found.into_iter().map(|(slice, hash)| (node, slice, hash)));
        }
        self.open = self.open.split_off(&(step.saturating_sub(KEPT), 0, 0));
        digest(&mut pushes)
    }
}

/// The digest of `pushes`: BLAKE3 over, for each, in order of nodes and slices, the node's first leaf and number of leaves, the
/// slice's parameter and index (each 4 bytes, little-endian), and the hash of its values.
pub fn digest(pushes: &mut [(Node, SliceId, [u8; 32])]) -> Digest {
    pushes.sort_by_key(|(node, slice, _)| (node.first, node.leaves, *slice));
    let mut hasher = blake3::Hasher::new();
    for (node, slice, hash) in pushes.iter() {
        for number in [node.first, node.leaves, slice.parameter, slice.index] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(hash);
    }
    Digest { count: pushes.len() as u64, blake3: *hasher.finalize().as_bytes() }
}

/// What the worker signs.
#[must_use]
pub fn signed_bytes(step: u64, digest: &Digest) -> Vec<u8> {
    [CONTEXT, &step.to_be_bytes(), &digest.count.to_be_bytes(), &digest.blake3].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(first: u32) -> Node {
        Node { first, leaves: 1 }
    }

    fn slice(index: u32) -> SliceId {
        SliceId { parameter: 0, index }
    }

    /// Invariant 1.
    #[test]
    fn a_digest_stands_for_its_pushes_and_no_others() {
        let of = |pushes: &[(u64, u32, u32, u8)], step: u64, nodes: &[u32]| {
            let mut pushed = Pushed::default();
            for (step, first, index, value) in pushes {
                pushed.add(*step, node(*first), slice(*index), [*value; 32]);
            }
            pushed.take(step, nodes.iter().map(|n| node(*n)))
        };
        let all = [(3, 0, 0, 1), (3, 0, 1, 2), (3, 1, 0, 3), (4, 0, 0, 9)];
        let whole = of(&all, 3, &[0, 1]);
        assert_eq!(whole.count, 3);
        let mut turned = all;
        turned.reverse();
        assert_eq!(of(&turned, 3, &[1, 0]), whole, "in whatever order they were pushed");
        let changed = |at: usize, to| {
            let mut other = all;
            other[at] = to;
            of(&other, 3, &[0, 1])
        };
        for (at, to) in [(0, (3, 0, 0, 7)), (0, (3, 0, 2, 1)), (1, (3, 1, 1, 2)), (2, (4, 1, 0, 3))] {
            assert_ne!(changed(at, to), whole, "{to:?}");
        }
        assert_eq!(changed(3, (4, 0, 0, 8)), whole, "another step's");
        assert_eq!(of(&all, 5, &[0, 1]).count, 0);
        assert_ne!(signed_bytes(3, &whole), signed_bytes(4, &whole));
    }

    #[test]
    fn what_is_never_reported_is_forgotten() {
        let mut pushed = Pushed::default();
        for step in 0..100 {
            pushed.add(step, node(0), slice(0), [0; 32]);
            pushed.add(step, node(1), slice(0), [0; 32]);
            assert_eq!(pushed.take(step, [node(0)]).count, 1);
        }
        assert!(pushed.open.len() as u64 <= KEPT + 1, "{}", pushed.open.len());
    }
}

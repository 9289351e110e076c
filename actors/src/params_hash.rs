//! `params_blake3` out of pieces: every server hashes what it keeps, and the scheduler has the hash of the whole.
//!
//! The parameters, as little-endian f32, tensors in the order of their names, are one stream of bytes, and
//! [`params_blake3`](crate::checkpoint::params_blake3) is its BLAKE3 hash. BLAKE3 hashes chunks of 1,024 bytes and then pairs of
//! hashes, so the hash of a whole subtree can be computed by whoever has its bytes (the BLAKE3 paper, section 5.3;
//! `blake3::hazmat`). A slice is cut into whole subtrees, as large as they come, whose hashes go into its [`Piece`], and the
//! bytes of the two chunks at its edges that it shares with its neighbours, which go into it as they are: some 2 KiB at most.
//!
//! 1. Pieces of any slicing, in any order, give the hash of the stream, or an error.
//! 2. What a piece must consist of follows from where it lies; one of another form is refused.
//! 3. A piece's size is bounded: less than 2,048 bytes and 128 hashes.

use std::collections::BTreeMap;

use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};
use testudo_kernels::ParameterSpec;

use crate::placement::{Slice, SliceId};

/// BLAKE3's chunk, in bytes.
const CHUNK: u64 = blake3::CHUNK_LEN as u64;

/// Where every tensor lies in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    starts: Vec<u64>,
    total: u64,
}

impl Stream {
    /// The stream of tensors with these names and numbers of elements, in the model's order.
    #[must_use]
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a str, usize)>) -> Stream {
        let tensors: Vec<(&str, usize)> = tensors.into_iter().collect();
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|at| tensors.get(*at).map_or("", |(name, _)| *name));
        let mut starts = vec![0; tensors.len()];
        let mut total = 0;
        for at in order {
            if let (Some(start), Some((_, elements))) = (starts.get_mut(at), tensors.get(at)) {
                *start = total;
                total += *elements as u64 * 4;
            }
        }
        Stream { starts, total }
    }

    /// The stream of a model's parameters.
    #[must_use]
    pub fn of(parameters: &[ParameterSpec]) -> Stream {
        Stream::new(parameters.iter().map(|p| (p.name.as_str(), p.shape.elements())))
    }

    /// Where `slice` lies, in bytes.
    #[must_use]
    pub fn range(&self, slice: &Slice) -> Option<Range> {
        let start = *self.starts.get(slice.id.parameter as usize)? + slice.first as u64 * 4;
        Some(Range { start, end: start + slice.elements as u64 * 4, total: self.total })
    }
}

/// A range of bytes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    end: u64,
    total: u64,
}

/// What one slice contributes to the hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The slice.
    pub slice: SliceId,
    /// The bytes before its first whole chunk, then those after its last.
    pub edges: Vec<u8>,
    /// The hashes of the subtrees between, in order.
    pub nodes: Vec<ChainingValue>,
}

/// Why pieces are no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// A piece is not what its slice must give.
    #[error("the piece of {0} is not of the form that its place asks for")]
    Form(SliceId),
    /// Pieces do not tile the stream.
    #[error("a piece at byte {found}, where one at {expected} is due")]
    Gap {
        /// Where it begins.
        found: u64,
        /// Where one should.
        expected: u64,
    },
}

impl Range {
    /// Its first byte.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes before the first whole chunk.
    fn head(&self) -> u64 {
        let boundary = self.start.next_multiple_of(CHUNK).min(self.end);
        // A stream of one chunk has no subtree but itself, and that is the root.
        if self.total <= CHUNK { self.end - self.start } else { boundary - self.start }
    }

    /// The first byte after the last whole chunk.
    fn tail(&self) -> u64 {
        (self.end - self.end % CHUNK).max(self.start + self.head())
    }

    /// The whole subtrees between: first byte and length of each.
    fn subtrees(&self) -> Vec<(u64, u64)> {
        let (mut at, end) = ((self.start + self.head()) / CHUNK, self.tail() / CHUNK);
        let mut found = Vec::new();
        while at < end {
            let aligned = if at == 0 { u64::MAX } else { 1 << at.trailing_zeros() };
            let fits = 1 << (end - at).ilog2();
            let mut chunks: u64 = fits.min(aligned);
            // The whole is the root, which is hashed in another way: its two halves stand for it.
            if chunks * CHUNK >= self.total {
                chunks /= 2;
            }
            found.push((at * CHUNK, chunks * CHUNK));
            at += chunks;
        }
        found
    }

    /// The piece of `slice`, which lies here and has these bytes.
    #[must_use]
    pub fn piece(&self, slice: SliceId, bytes: &[u8]) -> Piece {
        let part = |from: u64, to: u64| {
            let (from, to) = ((from - self.start) as usize, (to - self.start) as usize);
            bytes.get(from..to).unwrap_or(&[])
        };
        let hash = |(from, length): (u64, u64)| {
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(from);
            hasher.update(part(from, from + length));
            hasher.finalize_non_root()
        };
        let head = part(self.start, self.start + self.head());
        let edges = [head, part(self.tail(), self.end)].concat();
        Piece { slice, edges, nodes: self.subtrees().into_iter().map(hash).collect() }
    }

    /// Whether `piece` has the form that this place asks for (invariant 2).
    #[must_use]
    pub fn admits(&self, piece: &Piece) -> bool {
        let edges = self.head() + (self.end - self.tail());
        piece.edges.len() as u64 == edges && piece.nodes.len() == self.subtrees().len()
    }
}

/// The hash of the stream that `pieces` tile.
///
/// # Errors
/// [`PieceError`] when they do not.
pub fn combine(pieces: &BTreeMap<u64, (Range, Piece)>, stream: &Stream) -> Result<[u8; 32], PieceError> {
    let mut tree = Tree { total: stream.total, ..Tree::default() };
    let mut due = 0;
    for (start, (range, piece)) in pieces {
        if *start != due {
            return Err(PieceError::Gap { found: *start, expected: due });
        }
        if !range.admits(piece) {
            return Err(PieceError::Form(piece.slice));
        }
        let (head, tail) = piece.edges.split_at(piece.edges.len().min(range.head() as usize));
        tree.bytes(head);
        for ((_, length), node) in range.subtrees().into_iter().zip(&piece.nodes) {
            tree.subtree(length, *node);
        }
        tree.bytes(tail);
        due = range.end;
    }
    if due != stream.total {
        return Err(PieceError::Gap { found: stream.total, expected: due });
    }
    Ok(tree.root())
}

/// The hashes of the complete subtrees so far, the largest first, and the chunk that is being filled.
#[derive(Default)]
struct Tree {
    total: u64,
    at: u64,
    stack: Vec<(u64, ChainingValue)>,
    chunk: Vec<u8>,
}

impl Tree {
    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = CHUNK as usize - self.chunk.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            if self.chunk.len() as u64 == CHUNK && self.total > CHUNK {
                self.close_chunk();
            }
        }
    }

    fn close_chunk(&mut self) {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.at);
        hasher.update(&self.chunk);
        self.chunk.clear();
        self.subtree(CHUNK, hasher.finalize_non_root());
    }

    /// Adds the next subtree, of `length` bytes as if it were full, and joins what has become whole, but for the root.
    fn subtree(&mut self, length: u64, node: ChainingValue) {
        self.at += length;
        let (mut length, mut node) = (length, node);
        while let Some((before, left)) = self.stack.pop() {
            if before != length || length * 2 >= self.total {
                self.stack.push((before, left));
                break;
            }
            node = merge_subtrees_non_root(&left, &node, Mode::Hash);
            length *= 2;
        }
        self.stack.push((length, node));
    }

    fn root(mut self) -> [u8; 32] {
        if self.total <= CHUNK {
            return *blake3::hash(&self.chunk).as_bytes();
        }
        if !self.chunk.is_empty() {
            self.close_chunk();
        }
        let mut right = self.stack.pop().map_or([0; 32], |(_, node)| node);
        while let Some((_, left)) = self.stack.pop() {
            right = match self.stack.is_empty() {
                true => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
                false => merge_subtrees_non_root(&left, &right, Mode::Hash),
            };
        }
        right
    }
}

#[cfg(test)]
#[path = "params_hash/tests.rs"]
mod tests;

//! The inner products of vectors that are cut into slices: what norms and distances of whole gradients come from.
//!
//! 1. A tensor is cut into blocks of 1,024 elements, counted from its start. Of each block, or of the part of it that a slice
//!    holds, element `i` is multiplied and added, as `f64`, to lane `i mod 16`, in ascending order; lanes are added pairwise
//!    (8, 4, 2, 1 apart). A product of two `f32` is exact in `f64`.
//! 2. Blocks' sums are added exactly (`robust/exact.rs`), so the result depends neither on who keeps which slice, nor on their order, nor
//!    on SIMD width; nor on where slices end, if that is between blocks.
//! 3. Memory: 80 bytes for each product, and a block of each vector as `f64` while a slice is added.

use super::AggregationError;
use super::exact::Exact;
use crate::simd::vectorized;

/// Elements that are summed before their sum is added exactly: that costs little beside them, and a block of each of some dozen
/// vectors stays in the second-level cache.
pub const BLOCK: usize = 1024;

/// Partial sums of a block.
const LANES: usize = 16;

/// Inner products of some vectors, as far as they have been summed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Products {
    vectors: usize,
    /// Of pairs (0, 0), (1, 0), (1, 1), (2, 0), and so on; or of (0, 0), (1, 1), and so on.
    sums: Vec<Exact>,
    pairs: Vec<(usize, usize)>,
}

impl Products {
    /// None yet, of so many vectors: of each with each and itself, or, if `norms_alone`, of each with itself.
    #[must_use]
    pub fn new(vectors: usize, norms_alone: bool) -> Products {
        let row = |i: usize| (if norms_alone { i } else { 0 }..=i).map(move |j| (i, j));
        let pairs: Vec<(usize, usize)> = (0..vectors).flat_map(row).collect();
        Products { vectors, sums: vec![Exact::default(); pairs.len()], pairs }
    }

    /// Adds a slice of each vector, from element `first` of its tensor on.
    ///
    /// # Errors
    /// [`AggregationError::Length`] when the slices have different lengths; [`AggregationError::Vectors`] when there are not as
    /// many as was said.
    pub fn add(&mut self, first: usize, slices: &[&[f32]]) -> Result<(), AggregationError> {
        if slices.len() != self.vectors {
            return Err(AggregationError::Vectors { expected: self.vectors, found: slices.len() });
        }
        let expected = slices.first().map_or(0, |slice| slice.len());
        if let Some(other) = slices.iter().find(|slice| slice.len() != expected) {
            return Err(AggregationError::Length { expected, found: other.len() });
        }
        let mut rows = vec![[0.0; BLOCK]; slices.len()];
        let (mut at, mut length) = (0, BLOCK - first % BLOCK);
        while at < expected {
            let end = expected.min(at + length);
            for (row, slice) in rows.iter_mut().zip(slices) {
                widen(row, slice.get(at..end).unwrap_or(&[]));
            }
            multiply(&rows, end - at, &self.pairs, &mut self.sums);
            (at, length) = (end, BLOCK);
        }
        Ok(())
    }

    /// The pairs of vectors that have a product, in their order.
    pub(crate) fn pairs(&self) -> &[(usize, usize)] {
        &self.pairs
    }

    /// Adds sums of blocks that were computed elsewhere (invariant 1): as many for each pair, one pair after another.
    pub(crate) fn add_blocks(&mut self, blocks: &[f64]) {
        let each = blocks.len() / self.sums.len().max(1);
        for (sum, blocks) in self.sums.iter_mut().zip(blocks.chunks_exact(each.max(1))) {
            blocks.iter().for_each(|block| sum.add(*block));
        }
    }

    /// Adds what was summed over other slices of the same vectors.
    ///
    /// # Errors
    /// [`AggregationError::Vectors`] when these are other products.
    pub fn merge(&mut self, other: &Products) -> Result<(), AggregationError> {
        if self.pairs != other.pairs {
            return Err(AggregationError::Vectors { expected: self.vectors, found: other.vectors });
        }
        for (sum, more) in self.sums.iter_mut().zip(&other.sums) {
            sum.merge(more);
        }
        Ok(())
    }

    /// How many vectors.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Bytes that [`to_bytes`](Products::to_bytes) gives.
    #[must_use]
    pub fn size(&self) -> usize {
        self.sums.len() * Exact::BYTES
    }

    /// Everything that was summed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sums.iter().flat_map(|sum| sum.to_bytes()).collect()
    }

    /// The same products, summed elsewhere; `None` when `bytes` are not as many as these take.
    #[must_use]
    pub fn from_bytes(&self, bytes: &[u8]) -> Option<Products> {
        let (sums, rest) = bytes.as_chunks::<{ Exact::BYTES }>();
        let fits = rest.is_empty() && sums.len() == self.sums.len();
        fits.then(|| Products { sums: sums.iter().map(Exact::from_bytes).collect(), ..self.clone() })
    }

    /// The matrix of inner products (Gram's), each rounded once. Where norms alone were summed, other products are 0.
    pub(super) fn gram(&self) -> Gram {
        let mut values = vec![0.0; self.vectors * self.vectors];
        for ((i, j), sum) in self.pairs.iter().zip(&self.sums) {
            for at in [i * self.vectors + j, j * self.vectors + i] {
                if let Some(value) = values.get_mut(at) {
                    *value = sum.value();
                }
            }
        }
        Gram { vectors: self.vectors, values }
    }
}

/// A symmetric matrix of inner products, all finite. Nothing more is relied on: a peer may have sent it.
#[derive(Clone, Debug)]
pub(super) struct Gram {
    vectors: usize,
    values: Vec<f64>,
}

impl Gram {
    pub(super) fn product(&self, i: usize, j: usize) -> f64 {
        self.values.get(i * self.vectors + j).copied().unwrap_or(0.0)
    }

    /// The norm of a vector.
    pub(super) fn norm(&self, i: usize) -> f64 {
        self.product(i, i).max(0.0).sqrt()
    }

    /// The square of the distance of two vectors. What the square of a norm loses in `f64` is lost: distances below some 2^-26 of
    /// the norms, where `f32` has lost them too.
    pub(super) fn distance_squared(&self, i: usize, j: usize) -> f64 {
        (self.product(i, i) + self.product(j, j) - 2.0 * self.product(i, j)).max(0.0)
    }

    /// The inner products of each vector with a combination of all.
    pub(super) fn with(&self, weights: &[f64]) -> Vec<f64> {
        let row = |i| weights.iter().enumerate().map(|(j, weight)| weight * self.product(i, j)).sum();
        (0..self.vectors).map(row).collect()
    }

    /// The square of a combination's norm.
    pub(super) fn norm_squared(&self, weights: &[f64]) -> f64 {
        let terms = weights.iter().zip(self.with(weights));
        terms.map(|(weight, product)| weight * product).sum::<f64>().max(0.0)
    }
}

vectorized! {
    fn widen<'a>(row: &'a mut [f64; BLOCK], values: &'a [f32]) {
        for (into, value) in row.iter_mut().zip(values) {
            *into = f64::from(*value);
        }
    }

    /// Adds the inner products of the rows' first `length` elements.
    fn multiply<'a>(rows: &'a [[f64; BLOCK]], length: usize, pairs: &'a [(usize, usize)], sums: &'a mut [Exact]) {
        for ((i, j), sum) in pairs.iter().zip(sums) {
            if let (Some(left), Some(right)) = (rows.get(*i), rows.get(*j))
                && let (Some(left), Some(right)) = (left.get(..length), right.get(..length))
            {
                sum.add(dot(left, right));
            }
        }
    }
}

#[inline(always)]
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = left.as_chunks::<LANES>();
    let (others, other_tail) = right.as_chunks::<LANES>();
    for (chunk, other) in chunks.iter().zip(others) {
        for ((lane, a), b) in lanes.iter_mut().zip(chunk).zip(other) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(tail).zip(other_tail) {
        *lane += a * b;
    }
    for distance in [8, 4, 2, 1] {
        for lane in 0..distance {
            lanes[lane] += lanes[lane + distance];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced;

    fn vectors(count: usize, length: usize) -> Vec<Vec<f32>> {
        let value = |vector: usize, at: usize| {
            let bits = ((vector * 7919 + at) as u32).wrapping_mul(0x9e37_79b9);
            // Exponents near one's, and some far from it.
            f32::from_bits(if at.is_multiple_of(7) {
                bits & 0xbfff_ffff
            } else {
                bits & 0xbf7f_ffff | 0x3c00_0000
            })
        };
        (0..count).map(|vector| (0..length).map(|at| value(vector, at)).collect()).collect()
    }

    fn of(vectors: &[Vec<f32>], cut: usize) -> Products {
        let length = vectors[0].len();
        // Slices in descending order, each summed by itself and then joined.
        let mut products = Products::new(vectors.len(), false);
        for first in (0..length).step_by(cut).rev() {
            let slices: Vec<&[f32]> = vectors.iter().map(|v| &v[first..length.min(first + cut)]).collect();
            let mut part = Products::new(vectors.len(), false);
            part.add(first, &slices).unwrap();
            products.merge(&products.from_bytes(&part.to_bytes()).unwrap()).unwrap();
        }
        products
    }

    /// Invariant 1, against its words.
    #[test]
    fn a_product_is_what_it_says() {
        let vectors = vectors(3, 2500);
        let products = of(&vectors, 2500);
        for i in 0..3 {
            for j in 0..=i {
                let mut expected = Exact::default();
                for (left, right) in vectors[i].chunks(BLOCK).zip(vectors[j].chunks(BLOCK)) {
                    let mut lanes = [0.0; LANES];
                    let terms = left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b));
                    terms.enumerate().for_each(|(at, term)| lanes[at % LANES] += term);
                    for distance in [8, 4, 2, 1] {
                        (0..distance).for_each(|lane| lanes[lane] += lanes[lane + distance]);
                    }
                    expected.add(lanes[0]);
                }
                assert_eq!(products.sums[i * (i + 1) / 2 + j], expected);
                assert_eq!(products.gram().product(j, i).to_bits(), expected.value().to_bits());
            }
        }
        let mut norms = Products::new(3, true);
        norms.add(0, &vectors.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let (norms, gram) = (norms.gram(), products.gram());
        (0..3).for_each(|i| assert_eq!(norms.norm(i).to_bits(), gram.norm(i).to_bits()));
    }

    /// Invariant 2.
    #[test]
    fn neither_cuts_between_blocks_nor_widths_change_a_bit() {
        let vectors = vectors(4, 5000);
        forced::assert_same(|| of(&vectors, 5000));
        let whole = of(&vectors, 5000);
        for cut in [BLOCK, 2 * BLOCK, 4 * BLOCK] {
            assert_eq!(of(&vectors, cut), whole, "cut every {cut}");
        }
        // A cut within a block rounds once more; it changes little.
        let (ragged, whole) = (of(&vectors, 1000).gram(), whole.gram());
        for (a, b) in ragged.values.iter().zip(&whole.values) {
            assert!((a - b).abs() <= 1e-12 * whole.values.iter().fold(0.0, |most: f64, v| most.max(v.abs())));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut products = Products::new(2, false);
        assert_eq!(products.add(0, &[&[1.0]]), Err(AggregationError::Vectors { expected: 2, found: 1 }));
        assert_eq!(
            products.add(0, &[&[1.0], &[1.0, 2.0]]),
            Err(AggregationError::Length { expected: 1, found: 2 })
        );
        assert!(products.merge(&Products::new(2, true)).is_err());
        let bytes = products.to_bytes();
        assert_eq!(bytes.len(), products.size());
        assert!(products.from_bytes(&bytes[1..]).is_none());
        assert!(Products::new(2, true).from_bytes(&bytes).is_none());
        products.add(5, &[&[], &[]]).unwrap();
        assert_eq!(products, Products::new(2, false));
    }

    /// The greatest numbers and the least: nothing overflows, nothing vanishes.
    #[test]
    fn extremes_have_products() {
        for value in [f32::MAX, f32::from_bits(1)] {
            let vector = vec![value; 5000];
            let mut products = Products::new(1, false);
            products.add(0, &[&vector]).unwrap();
            let expected = f64::from(value) * f64::from(value) * 5000.0;
            assert!((products.gram().product(0, 0) / expected - 1.0).abs() < 1e-12);
        }
    }
}

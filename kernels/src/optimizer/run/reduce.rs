//! Sums over a tensor whose bits do not depend on how it is cut.
//!
//! Invariant: element `i` of the tensor is added, as f64, to lane `i mod 16` of its block of 4,096 elements, in
//! ascending order; a block's lanes are added pairwise (8, 4, 2, 1 apart), and blocks' sums one after another. All this
//! is counted from the tensor's start, so a slice's end says nothing.

use crate::optimizer::language::Reduction;

const LANES: usize = 16;
const BLOCK: usize = 4096;

/// A sum under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accumulator {
    total: f64,
    lanes: [f64; LANES],
    /// Elements of the block that `lanes` hold.
    held: usize,
}

impl Accumulator {
    pub(super) const fn new() -> Self {
        Self { total: 0.0, lanes: [0.0; LANES], held: 0 }
    }

    /// Adds the tensor's next elements. A square of an f32 is exact in f64.
    #[inline(always)]
    pub(super) fn add(&mut self, reduction: Reduction, values: &[f32]) {
        match reduction {
            Reduction::Sum => self.feed(values, |value| value),
            Reduction::SumOfSquares => self.feed(values, |value| value * value),
        }
    }

    #[inline(always)]
    fn feed(&mut self, mut values: &[f32], term: impl Fn(f64) -> f64) {
        while !values.is_empty() {
            let (now, later) = values.split_at(values.len().min(BLOCK - self.held));
            let ragged = now.len().min(self.held.next_multiple_of(LANES) - self.held);
            let (head, rest) = now.split_at(ragged);
            for (lane, value) in self.lanes[self.held % LANES..].iter_mut().zip(head) {
                *lane += term(f64::from(*value));
            }
            let (chunks, tail) = rest.as_chunks::<LANES>();
            let mut lanes = self.lanes;
            for chunk in chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += term(f64::from(*value));
                }
            }
            for (lane, value) in lanes.iter_mut().zip(tail) {
                *lane += term(f64::from(*value));
            }
            self.lanes = lanes;
            self.held += now.len();
            if self.held == BLOCK {
                self.close();
            }
            values = later;
        }
    }

    /// Adds the block's sum to the total.
    fn close(&mut self) {
        for distance in [8, 4, 2, 1] {
            for lane in 0..distance {
                self.lanes[lane] += self.lanes[lane + distance];
            }
        }
        self.total += self.lanes[0];
        (self.lanes, self.held) = ([0.0; LANES], 0);
    }

    /// The sum of all that was added.
    pub(super) fn finish(mut self) -> f64 {
        if self.held > 0 {
            self.close();
        }
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{forced, vectorized};

    vectorized! {
        fn add<'a>(accumulator: &'a mut Accumulator, values: &'a [f32]) {
            accumulator.add(Reduction::Sum, values);
        }
    }

    /// The invariant, against its words.
    #[test]
    fn no_cut_changes_a_bit() {
        let values: Vec<f32> = (0..10_000).map(|i| ((i as f32 * 0.37).fract() - 0.5) * 1e3).collect();
        let mut expected = 0.0;
        for block in values.chunks(BLOCK) {
            let mut lanes = [0.0f64; LANES];
            block.iter().enumerate().for_each(|(i, value)| lanes[i % LANES] += f64::from(*value));
            for distance in [8, 4, 2, 1] {
                (0..distance).for_each(|lane| lanes[lane] += lanes[lane + distance]);
            }
            expected += lanes[0];
        }
        for cut in [10_000, 1, 5, 16, 17, 511, 4096, 4097] {
            forced::each(|| {
                let mut sum = Accumulator::new();
                values.chunks(cut).for_each(|slice| add(&mut sum, slice));
                assert_eq!(sum.finish().to_bits(), f64::to_bits(expected), "cut every {cut}");
            });
        }
    }

    #[test]
    fn nothing_sums_to_zero() {
        assert_eq!(Accumulator::new().finish().to_bits(), 0);
    }
}

//! Dropout of attention's probabilities, as GPT-2 has it, without a matrix of positions by positions: what is dropped is a
//! function that both passes compute.
//!
//! Invariants:
//! 1. Whether a probability is dropped is a function of (seed, step, position of its example in the step's global batch, site,
//!    head, query, key), drawn by Philox with [`Purpose::AttentionDropout`]: the counter of an example's stream holds (site,
//!    head, query, block of four keys).
//! 2. It is dropped when a number uniform in [0, 1) is below the rate; what is kept is multiplied by `1 / (1 - rate)`, rounded to
//!    f32. The gradient passes through the same function.

use crate::linear::Panel;
use crate::model::Place;
use crate::random::{Philox, Purpose};
use crate::simd::vectorized;

/// Keys that one block of random numbers is for.
const KEYS: usize = 4;
/// Queries whose random numbers are drawn side by side.
const SIDE: usize = 8;

/// What is dropped of the probabilities of one layer of a network, for the batch at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drops {
    rate: f32,
    heads: usize,
    /// Of an example.
    positions: usize,
    site: usize,
    place: Place,
}

impl Drops {
    /// Of layer `site`; `None` if nothing is dropped.
    pub(crate) fn new(rate: f32, [heads, positions, site]: [usize; 3], place: Place) -> Option<Drops> {
        (rate > 0.0).then_some(Drops { rate, heads, positions, site, place })
    }

    /// Whether `sites` layers have counters enough in one stream.
    pub(crate) fn fits(sites: usize, heads: usize, positions: usize) -> bool {
        let rows = sites.checked_mul(heads).and_then(|n| n.checked_mul(positions));
        let blocks = rows.and_then(|n| n.checked_mul(positions.div_ceil(KEYS)));
        blocks.is_some_and(|blocks| u32::try_from(blocks).is_ok())
    }

    /// Those of one head of one of the batch's examples.
    pub(super) fn of(self, example: usize, head: usize) -> OfHead {
        let Place { seed, step, first } = self.place;
        let stream = Philox::new(seed, Purpose::AttentionDropout, step, first.wrapping_add(example as u64));
        let row = self.positions.div_ceil(KEYS) as u32;
        let rows = (self.site * self.heads + head) * self.positions;
        OfHead { stream, first: row.wrapping_mul(rows as u32), row, rate: self.rate }
    }
}

/// What is dropped of one head's probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfHead {
    stream: Philox,
    /// The counter of the first query and key.
    first: u32,
    /// Counters of a query.
    row: u32,
    rate: f32,
}

impl OfHead {
    /// Drops elements of a panel of `values`: rows are keys from `keys` on, a multiple of four, lanes are queries from `queries`
    /// on.
    pub(super) fn apply(self, panel: Panel, queries: usize, keys: usize, values: &mut [f32]) {
        let first = self.first.wrapping_add(self.row.wrapping_mul((queries + panel.start) as u32));
        drop(self, panel.width, first.wrapping_add((keys / KEYS) as u32), values);
    }
}

vectorized! {
    /// As [`OfHead::apply`]; `first` is the counter of the first lane's first keys.
    fn drop<'a>(of: OfHead, width: usize, first: u32, values: &'a mut [f32]) {
        let scale = 1.0 / (1.0 - of.rate);
        for (block, rows) in values.chunks_mut(KEYS * width).enumerate() {
            for start in (0..width).step_by(SIDE) {
                let counter = first.wrapping_add(block as u32);
                let counters: [u32; SIDE] =
                    std::array::from_fn(|lane| counter.wrapping_add(of.row.wrapping_mul((start + lane) as u32)));
                let draws = of.stream.uniforms(counters);
                for (row, draws) in rows.chunks_exact_mut(width).zip(&draws) {
                    let lanes = row.get_mut(start..).unwrap_or_default();
                    for (value, draw) in lanes.iter_mut().zip(draws) {
                        *value = if *draw < of.rate { 0.0 } else { *value * scale };
                    }
                }
            }
        }
    }
}

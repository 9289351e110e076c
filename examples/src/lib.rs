//! What the examples share: a small data set.
//!
//! The programs are in `src/bin/`: a cluster embedded in one process (`embedded`), a model of one's own (`own_model`), an actor of one's own
//! (`own_actor`), federated averaging with a robust rule (`federated`), and a candle model (`candle`, with `--features candle`).

use testudo::kernels::{Philox, Purpose};
use testudo::{Dataset, ModelSpec};

/// Points on three rings around one centre; the ring is the class. Example `index` is a function of `seed` and `index`.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// What the points are drawn by.
    pub seed: u64,
    /// How many points there are.
    pub examples: usize,
}

/// Rings, and so classes.
pub const RINGS: usize = 3;

impl Dataset for Rings {
    fn len(&self) -> usize {
        self.examples
    }

    fn input_elements(&self) -> usize {
        2
    }

    fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
        let ring = index % RINGS;
        let [radius, angle, ..] = Philox::new(self.seed, Purpose::Noise, 0, index as u64).uniform(0);
        let (radius, angle) = (ring as f32 + 0.4 + 0.5 * radius, angle * std::f32::consts::TAU);
        if let [x, y] = input {
            (*x, *y) = (radius * angle.cos(), radius * angle.sin());
        }
        labels.fill(ring as u32);
    }
}

/// A small network for them.
#[must_use]
pub fn network() -> ModelSpec {
    ModelSpec::Mlp { inputs: 2, hidden: vec![32, 32], classes: RINGS }
}

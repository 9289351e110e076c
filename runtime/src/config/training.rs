//! `[training]` and `[schedule]`: how long, how large, how contributions become one gradient, and how fast it is followed.

use serde::Serialize;
use testudo_kernels::Precision;

/// `[training]`: how long and how large.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// Seed of the training random source.
    pub seed: u64,
    /// Passes over the training set, at least 1.
    pub epochs: u64,
    /// Examples a step, over all workers.
    pub batch_size: u32,
    /// Parts a batch is cut into; divides [`Training::batch_size`].
    pub logical_shards: u32,
    /// Batches that a step sums.
    pub accumulate: u32,
    /// How contributions become one gradient.
    #[serde(flatten)]
    pub aggregation: Aggregation,
    /// The norm that a step's whole gradient is clipped to; `None` for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Steps after which to stop; `None` for all epochs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Steps after which the test set is evaluated; 0 for the end alone.
    pub evaluate_every: u64,
    /// Evaluations without a better loss after which to stop; `None` for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// How much better a loss has to be.
    pub min_improvement: f64,
    /// What workers compute in.
    pub precision: Precision,
    /// Whether differing arithmetic is refused.
    pub determinism: Determinism,
}

impl Training {
    /// Examples that a step sums.
    #[must_use]
    pub fn step_examples(&self) -> u32 {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// Parts that a step sums.
    #[must_use]
    pub fn step_shards(&self) -> u32 {
        self.logical_shards.saturating_mul(self.accumulate)
    }
}

/// How contributions become one gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "aggregation", rename_all = "snake_case")]
pub enum Aggregation {
    /// The mean over all examples.
    Mean,
    /// The coordinate-wise median of one vote per worker.
    Median {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The coordinate-wise mean without the lowest and highest votes.
    TrimmedMean {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The vote that has the nearest neighbours.
    Krum {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The mean of the votes that have the nearest neighbours.
    MultiKrum {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The point whose distances to all votes sum to the least.
    GeometricMedian {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
    },
    /// The aggregate before, moved by votes' shortened differences from it.
    CentredClipping {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
        /// To which differences are shortened.
        clip_radius: f64,
    },
    /// The mean of shortened votes.
    NormBound {
        /// Workers that may be hostile, and deaths to bear.
        hostile_workers: u32,
        /// To which votes are shortened.
        norm_bound: f64,
    },
}

/// Whether nodes of differing arithmetic may train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Determinism {
    /// They are refused.
    Strict,
    /// They may; runs can differ in the last bits.
    Relaxed,
}

/// `[schedule]`: the learning rate over the planned steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Schedule {
    /// Always the same.
    Constant,
    /// Warm-up, then half a cosine down.
    Cosine {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
    /// Warm-up, then a straight line down.
    Linear {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
    /// Warm-up, then a fall every so many steps.
    Step {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Steps between two falls.
        every_steps: u64,
        /// What is left at each, 0 to 1.
        gamma: f64,
    },
    /// Half a cosine up, half a cosine down.
    OneCycle {
        /// The part of the steps that rises, 0 to 1.
        rise_fraction: f64,
        /// The first factor, 0 to 1.
        start_fraction: f64,
        /// The last factor, 0 to 1.
        final_fraction: f64,
    },
}

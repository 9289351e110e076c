//! The training random source: counter-based, so that a value is a function of what it is for and never of who
//! computes it or when.
//!
//! Invariants:
//! 1. A value is a function of (seed, purpose, step, example, element) alone.
//! 2. The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//!    SC 2011) and gives its published known answers.
//! 3. The numbers of [`Purpose`] never change: they are part of what a seed means.
//!
//! It is predictable to anyone who knows the seed: never use it for keys, nonces or privacy noise.

use crate::math::{circle, ln};

/// What random numbers are for. Different purposes draw from unrelated streams.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Purpose {
    /// Initial parameters.
    Initialize = 1,
    /// The order of examples in an epoch.
    Shuffle = 2,
    /// Dropout masks.
    Dropout = 3,
    /// Noise that regularizes or augments. Not for privacy, which needs the operating system's source.
    Noise = 4,
    /// What a model of sequences goes on with.
    Sample = 5,
    /// Dropout of attention's probabilities.
    AttentionDropout = 6,
}

/// A stream of random numbers, addressed by counter.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
    step: [u32; 2],
    purpose: u32,
}

impl Philox {
    /// The stream of (seed, purpose, step, example).
    ///
    /// Philox has 64 bits of key and 128 of counter, fewer than the coordinates together. So the stream's key is
    /// itself drawn by Philox under the seed, at (example, purpose), and the counter holds (block, step, purpose).
    pub fn new(seed: u64, purpose: Purpose, step: u64, example: u64) -> Self {
        let purpose = purpose as u32;
        let [example_low, example_high] = halves(example);
        let [low, high, _, _] = philox4x32_10([example_low, example_high, purpose, STREAM_KEY], halves(seed));
        Self { key: [low, high], step: halves(step), purpose }
    }

    /// Four random words, the `counter`th of the stream.
    #[inline(always)]
    pub fn block(&self, counter: u32) -> [u32; 4] {
        philox4x32_10([counter, self.step[0], self.step[1], self.purpose], self.key)
    }

    /// Four numbers uniform in [0, 1), multiples of 2^-24, from block `counter`.
    #[inline(always)]
    pub fn uniform(&self, counter: u32) -> [f32; 4] {
        self.block(counter).map(unit)
    }

    /// [`uniform`](Self::uniform) of several counters at once: number `i` of counter `lane` is `[i][lane]`.
    #[inline(always)]
    pub(crate) fn uniforms<const LANES: usize>(&self, counters: [u32; LANES]) -> [[f32; LANES]; 4] {
        let [step_low, step_high] = self.step;
        let mut words = [counters, [step_low; LANES], [step_high; LANES], [self.purpose; LANES]];
        let mut key = self.key;
        for _ in 0..ROUNDS {
            let products = |words: [u32; LANES], by: u32| words.map(|word| u64::from(word) * u64::from(by));
            let (first, second) = (products(words[0], MULTIPLIERS[0]), products(words[2], MULTIPLIERS[1]));
            words = std::array::from_fn(|word| {
                std::array::from_fn(|lane| match word {
                    0 => (second[lane] >> 32) as u32 ^ words[1][lane] ^ key[0],
                    1 => second[lane] as u32,
                    2 => (first[lane] >> 32) as u32 ^ words[3][lane] ^ key[1],
                    _ => first[lane] as u32,
                })
            });
            key = next_key(key);
        }
        words.map(|words| words.map(unit))
    }

    /// Four normal numbers of mean 0 and deviation 1 from block `counter`, by Box and Muller (1958). None is beyond
    /// 5.8, for the uniform numbers have 24 bits.
    #[inline(always)]
    pub fn normal(&self, counter: u32) -> [f32; 4] {
        let [a, b, c, d] = self.block(counter);
        let ([x0, y0], [x1, y1]) = (normal_pair(a, b), normal_pair(c, d));
        [x0, y0, x1, y1]
    }
}

/// A permutation of `0..len`: the order of an epoch's examples, a function of (seed, epoch, len) alone, by Fisher
/// and Yates with unbiased draws. Data sets are counted by `u32`: of a longer one, the first `u32::MAX` are shuffled.
pub fn permutation(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut order: Vec<u32> = (0..len).collect();
    let mut draws = Draws::new(Philox::new(seed, Purpose::Shuffle, epoch, 0));
    for remaining in (2..=len).rev() {
        order.swap(remaining as usize - 1, draws.below(remaining) as usize);
    }
    order
}

/// Words of a stream, one after the other.
struct Draws {
    stream: Philox,
    counter: u32,
    block: [u32; 4],
    used: usize,
}

impl Draws {
    fn new(stream: Philox) -> Self {
        Self { stream, counter: 0, block: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.block = self.stream.block(self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.used = 0;
        }
        let word = self.block[self.used & 3];
        self.used += 1;
        word
    }

    /// A number below `bound`, each equally likely (Lemire, "Fast random integer generation in an interval", 2019).
    fn below(&mut self, bound: u32) -> u32 {
        let reject_below = bound.wrapping_neg() % bound; // 2^32 mod bound
        loop {
            let product = u64::from(self.word()) * u64::from(bound);
            if product as u32 >= reject_below {
                return (product >> 32) as u32;
            }
        }
    }
}

/// Rounds of Philox4x32-10.
const ROUNDS: usize = 10;
/// What its words are multiplied by.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];

/// The key of the next round.
#[inline(always)]
fn next_key(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)]
}

/// Ten rounds of Philox on four words: multiply, exchange, and add the key of the round.
#[inline(always)]
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [low_0, high_0] = halves(u64::from(counter[0]) * u64::from(MULTIPLIERS[0]));
        let [low_1, high_1] = halves(u64::from(counter[2]) * u64::from(MULTIPLIERS[1]));
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = next_key(key);
    }
    counter
}

/// Tells the counters that draw a stream's key from all others: no [`Purpose`] has this number.
const STREAM_KEY: u32 = 0x7374_7265;

#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// Uniform in [0, 1) from the upper 24 bits: every value is exact.
#[inline(always)]
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[inline(always)]
fn normal_pair(a: u32, b: u32) -> [f32; 2] {
    // In (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * ln(((a >> 8) + 1) as f32 * (1.0 / 16_777_216.0))).sqrt();
    let (cos, sin) = circle(unit(b));
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2: the known answers that come with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    /// Invariants 1 and 3: what a seed means. These words must never change.
    #[test]
    fn streams_are_stable_and_distinct() {
        let stream = Philox::new(7, Purpose::Dropout, 3, 5);
        let again = Philox::new(7, Purpose::Dropout, 3, 5);
        assert_eq!(stream.block(11), again.block(11));
        let others = [
            Philox::new(8, Purpose::Dropout, 3, 5),
            Philox::new(7, Purpose::Noise, 3, 5),
            Philox::new(7, Purpose::Dropout, 4, 5),
            Philox::new(7, Purpose::Dropout, 3, 6),
            Philox::new(7 | 1 << 32, Purpose::Dropout, 3, 5),
            Philox::new(7, Purpose::Dropout, 3 | 1 << 32, 5),
            Philox::new(7, Purpose::Dropout, 3, 5 | 1 << 32),
        ];
        for other in others {
            assert_ne!(stream.block(11), other.block(11), "{other:?}");
        }
        assert_ne!(stream.block(11), stream.block(12));
        let purposes =
            [Purpose::Initialize, Purpose::Shuffle, Purpose::Dropout, Purpose::Noise, Purpose::Sample];
        assert_eq!(purposes.map(|purpose| purpose as u32), [1, 2, 3, 4, 5]);
        assert_eq!(Purpose::AttentionDropout as u32, 6);
    }

    #[test]
    fn numbers_drawn_side_by_side_are_those_drawn_alone() {
        let stream = Philox::new(9, Purpose::AttentionDropout, 1 << 33 | 5, 3);
        let counters = [0, 1, 7, u32::MAX, 1 << 31];
        let found = stream.uniforms(counters);
        for (lane, counter) in counters.into_iter().enumerate() {
            assert_eq!(found.map(|numbers| numbers[lane]), stream.uniform(counter));
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let stream = Philox::new(1, Purpose::Noise, 0, 0);
        let count = 100_000;
        let (mut mean, mut normal, mut below) = (0.0, [0.0f64; 4], 0);
        for counter in 0..count / 4 {
            for u in stream.uniform(counter) {
                assert!((0.0..1.0).contains(&u));
                mean += f64::from(u) / f64::from(count);
            }
            for n in stream.normal(counter).map(f64::from) {
                for (power, moment) in normal.iter_mut().enumerate() {
                    *moment += n.powi(power as i32 + 1) / f64::from(count);
                }
                below += u32::from(n < 1.0);
            }
        }
        assert!((mean - 0.5).abs() < 0.004, "{mean}");
        for (moment, (expected, tolerance)) in
            normal.iter().zip([(0.0, 0.02), (1.0, 0.03), (0.0, 0.07), (3.0, 0.2)])
        {
            assert!((moment - expected).abs() < tolerance, "{normal:?}");
        }
        assert!((f64::from(below) / f64::from(count) - 0.841_345).abs() < 0.005);
    }

    #[test]
    fn permutations_are_permutations_and_stable() {
        for len in [0, 1, 2, 3, 1000] {
            let mut order = permutation(3, 1, len);
            assert_eq!(order, permutation(3, 1, len));
            order.sort_unstable();
            assert!(order.iter().enumerate().all(|(index, &value)| index == value as usize));
        }
        assert_ne!(permutation(3, 1, 100), permutation(3, 2, 100));
        assert_ne!(permutation(3, 1, 100), permutation(4, 1, 100));
    }

    /// Each of the six orders of three comes equally often (chi-squared, five degrees of freedom, p = 0.001).
    #[test]
    fn permutations_are_unbiased() {
        let mut counts = std::collections::HashMap::new();
        for epoch in 0..60_000 {
            *counts.entry(permutation(9, epoch, 3)).or_insert(0.0f64) += 1.0;
        }
        assert_eq!(counts.len(), 6);
        let chi: f64 = counts.values().map(|count| (count - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi < 20.5, "{counts:?}");
    }
}

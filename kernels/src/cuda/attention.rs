//! Causal self-attention on a device, on values row by row.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;
use crate::model::Place;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// Self-attention: queries, keys and values stand one after the other in `3 heads size` features, as `layers/attention.rs` has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceAttention {
    /// How many heads there are.
    pub heads: usize,
    /// Features of a head.
    pub size: usize,
    /// Tokens of an example.
    pub positions: usize,
}

/// What is dropped of the probabilities of one layer, `layers/attention/drops.rs` says how.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct DeviceDrops {
    /// The share of them, 0 to below 1.
    pub rate: f32,
    /// The layer's number in its network.
    pub site: usize,
    /// Where the batch stands in training.
    pub place: Place,
}

/// Threads of a block, as attention.cu has them.
const THREADS: u32 = 64;

impl DeviceAttention {
    /// `out`, of `heads size` features a token, of `qkv`, of three times as many. `kept` takes a number for each head of each token.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn forward<D: Device>(
        self,
        device: &mut D,
        (tokens, drops): (usize, Option<DeviceDrops>),
        qkv: &Numbers<D>,
        out: &mut Numbers<D>,
        kept: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(tokens, [qkv], [&*out], [&*kept])?;
        let mut arguments = vec![qkv.input(), out.output(), kept.output()];
        arguments.extend(self.numbers(tokens, drops));
        self.launch(device, "attention_forward", tokens, &mut arguments)
    }

    /// The gradient of `qkv` into `gradient`, of `dy`; `qkv`, `out` and `kept` are those of [`forward`](Self::forward). `delta` is room for
    /// as much as `kept` takes.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn backward<D: Device>(
        self,
        device: &mut D,
        (tokens, drops): (usize, Option<DeviceDrops>),
        (qkv, out, kept): (&Numbers<D>, &Numbers<D>, &Numbers<D>),
        dy: &Numbers<D>,
        gradient: &mut Numbers<D>,
        delta: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(tokens, [qkv, &*gradient], [out, dy], [kept, &*delta])?;
        let counts = [self.heads, self.size].map(|count| Argument::U32(count as u32));
        let mut arguments = vec![out.input(), dy.input(), delta.output()];
        arguments.extend(counts);
        arguments.push(Argument::U64(tokens as u64));
        let geometry = Geometry::each(tokens.saturating_mul(self.heads), device.blocks());
        device.launch(&Source::attention(), "attention_delta", geometry, &mut arguments)?;
        for kernel in ["attention_queries", "attention_keys"] {
            let mut arguments = vec![qkv.input(), kept.input(), delta.input(), dy.input(), gradient.output()];
            arguments.extend(self.numbers(tokens, drops));
            self.launch(device, kernel, tokens, &mut arguments)?;
        }
        Ok(())
    }

    /// Tensors of `3 heads size` features a token, of `heads size`, and of `heads`.
    fn check<M, const N: usize>(
        self,
        tokens: usize,
        wide: [&Buffer<M, f32>; N],
        narrow: [&Buffer<M, f32>; N],
        numbers: [&Buffer<M, f32>; N],
    ) -> Result<(), DeviceError> {
        let width = tokens.saturating_mul(self.heads).saturating_mul(self.size);
        wide.iter().try_for_each(|tensor| tensor.check(width.saturating_mul(3)))?;
        narrow.iter().try_for_each(|tensor| tensor.check(width))?;
        numbers.iter().try_for_each(|tensor| tensor.check(tokens.saturating_mul(self.heads)))
    }

    fn numbers<'a, M>(self, tokens: usize, drops: Option<DeviceDrops>) -> [Argument<'a, M>; 10] {
        let none = DeviceDrops { rate: 0.0, site: 0, place: Place::default() };
        let DeviceDrops { rate, site, place: Place { seed, step, first } } = drops.unwrap_or(none);
        let scale = (1.0 / (self.size as f64).sqrt()) as f32;
        [
            Argument::F32(scale),
            Argument::U32(self.heads as u32),
            Argument::U32(self.size as u32),
            Argument::U64(self.positions.max(1) as u64),
            Argument::U64(tokens as u64),
            Argument::F32(rate),
            Argument::U64(seed),
            Argument::U64(step),
            Argument::U64(first),
            Argument::U64(site as u64),
        ]
    }

    fn launch<D: Device>(
        self,
        device: &mut D,
        kernel: &str,
        tokens: usize,
        arguments: &mut [Argument<'_, D::Memory>],
    ) -> Result<(), DeviceError> {
        let geometry = Geometry::new(tokens.saturating_mul(self.heads), 1, THREADS, device.blocks());
        device.launch(&Source::attention(), kernel, geometry, arguments)
    }
}

//! Batch normalisation of images on a device, as `layers/batch_norm.rs` defines it.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::image::ImageSize;
use super::operations::divide;
use super::source::Source;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// A normalisation of images of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceBatchNorm {
    /// The images' sizes.
    pub image: ImageSize,
}

/// What each channel is normalised by.
#[derive(Debug)]
pub struct DeviceStatistics<M> {
    /// The mean.
    pub mean: Buffer<M, f32>,
    /// The variance.
    pub variance: Buffer<M, f32>,
    /// One over the standard deviation.
    pub inverse: Buffer<M, f32>,
}

/// Channels and interleaved sums of a block of threads, as batch_norm.cu has them.
const NORM_CHANNELS: u32 = 32;
const NORM_SUMS: u32 = 16;

impl<M> DeviceStatistics<M> {
    /// Room for the statistics of so many channels of the norm of that name.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        name: &str,
        channels: usize,
    ) -> Result<Self, DeviceError> {
        let mut of = |what: &str| Buffer::zeros(device, &format!("{what} of {name}"), channels);
        Ok(Self { mean: of("mean")?, variance: of("variance")?, inverse: of("inverse deviation")? })
    }

    /// Computes the inverse anew, after mean and variance were set to running statistics.
    ///
    /// # Errors
    /// What a launch may meet.
    pub fn invert<D: Device<Memory = M>>(&mut self, device: &mut D) -> Result<(), DeviceError> {
        let channels = self.variance.elements();
        self.inverse.check(channels)?;
        let arguments = vec![self.variance.input(), self.inverse.output(), Argument::U64(channels as u64)];
        each(device, "invert", channels, arguments)
    }
}

impl DeviceBatchNorm {
    /// The shard's own statistics.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn measure<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        x: &Numbers<D>,
        of: &mut DeviceStatistics<D::Memory>,
    ) -> Result<(), DeviceError> {
        self.check(examples, &[x], &[&of.mean, &of.variance])?;
        let number = self.number(examples);
        self.sum(device, "channel_sums", examples, vec![x.input(), of.mean.output()])?;
        divide(device, &mut of.mean, number)?;
        let arguments = vec![x.input(), of.mean.input(), of.variance.output()];
        self.sum(device, "channel_squares", examples, arguments)?;
        divide(device, &mut of.variance, number)?;
        of.invert(device)
    }

    /// A shard's parts in the running mean and variance, into `mean` and `variance`.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn parts<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        of: &DeviceStatistics<D::Memory>,
        (mean, variance): (&mut Numbers<D>, &mut Numbers<D>),
    ) -> Result<(), DeviceError> {
        self.check(examples, &[], &[&of.mean, &of.variance, mean, variance])?;
        let (number, channels) = (self.number(examples), self.image.channels);
        let unbiased = if number > 1.0 { number / (number - 1.0) } else { 1.0 };
        for (from, to, by) in [(&of.mean, mean, 1.0), (&of.variance, variance, unbiased)] {
            let mut arguments = vec![from.input(), to.output(), Argument::F32(by)];
            arguments.extend([Argument::F32(examples as f32), Argument::U64(channels as u64)]);
            each(device, "scaled", channels, arguments)?;
        }
        Ok(())
    }

    /// `y` of `x`; `parameters` are weight and bias.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn forward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        (weight, bias): (&Numbers<D>, &Numbers<D>),
        by: &DeviceStatistics<D::Memory>,
        x: &Numbers<D>,
        y: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.check(examples, &[x, y], &[weight, bias, &by.mean, &by.inverse])?;
        let elements = x.elements();
        let mut arguments =
            vec![x.input(), weight.input(), bias.input(), by.mean.input(), by.inverse.input()];
        arguments.extend([y.output(), self.channels(), Argument::U64(elements as u64)]);
        each(device, "normalise", elements, arguments)
    }

    /// The gradients of weight and bias, and that of `x` in the place of `dy`.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn backward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        weight: &Numbers<D>,
        by: &DeviceStatistics<D::Memory>,
        (x, dy): (&Numbers<D>, &mut Numbers<D>),
        (of_weight, of_bias): (&mut Numbers<D>, &mut Numbers<D>),
    ) -> Result<(), DeviceError> {
        self.check(examples, &[x, dy], &[weight, &by.mean, &by.inverse, of_weight, of_bias])?;
        let (elements, channels) = (x.elements(), self.image.channels);
        self.sum(device, "channel_sums", examples, vec![dy.input(), of_bias.output()])?;
        let arguments = vec![dy.input(), x.input(), by.mean.input(), of_weight.output()];
        self.sum(device, "channel_products", examples, arguments)?;
        let mut arguments = vec![x.input(), weight.input(), by.mean.input(), by.inverse.input()];
        arguments.extend([of_weight.input(), of_bias.input(), dy.output()]);
        arguments.push(Argument::F32(self.number(examples)));
        arguments.extend([self.channels(), Argument::U64(elements as u64)]);
        each(device, "normalise_gradient", elements, arguments)?;
        let arguments = vec![of_weight.output(), by.inverse.input(), Argument::U64(channels as u64)];
        each(device, "multiply_by", channels, arguments)
    }

    fn number(self, examples: usize) -> f32 {
        examples.saturating_mul(self.image.height).saturating_mul(self.image.width).max(1) as f32
    }

    fn channels<'a, M>(self) -> Argument<'a, M> {
        Argument::U32(self.image.channels as u32)
    }

    fn check<M>(
        self,
        examples: usize,
        images: &[&Buffer<M, f32>],
        channels: &[&Buffer<M, f32>],
    ) -> Result<(), DeviceError> {
        let elements = examples.saturating_mul(self.image.features());
        images.iter().try_for_each(|tensor| tensor.check(elements))?;
        channels.iter().try_for_each(|tensor| tensor.check(self.image.channels))
    }

    fn sum<D: Device>(
        self,
        device: &mut D,
        kernel: &str,
        examples: usize,
        mut arguments: Vec<Argument<'_, D::Memory>>,
    ) -> Result<(), DeviceError> {
        let pixels = self.image.height.saturating_mul(self.image.width);
        let counts = [pixels, examples].map(|count| Argument::U64(count as u64));
        arguments.push(self.channels());
        arguments.extend(counts);
        let threads = NORM_CHANNELS * NORM_SUMS;
        let geometry = Geometry::new(self.image.channels, NORM_CHANNELS, threads, device.blocks());
        device.launch(&Source::batch_norm(), kernel, geometry, &mut arguments)
    }
}

/// A bias's gradient where each example has `pixels` pixels of as many channels as `out` is long: each channel's sum.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn sum_pixels<D: Device>(
    device: &mut D,
    (examples, pixels): (usize, usize),
    gradient: &Numbers<D>,
    out: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let image = ImageSize { channels: out.elements(), height: pixels, width: 1 };
    gradient.check(examples.saturating_mul(image.features()))?;
    DeviceBatchNorm { image }.sum(device, "channel_sums", examples, vec![gradient.input(), out.output()])
}

fn each<D: Device>(
    device: &mut D,
    kernel: &str,
    elements: usize,
    mut arguments: Vec<Argument<'_, D::Memory>>,
) -> Result<(), DeviceError> {
    let geometry = Geometry::each(elements, device.blocks());
    device.launch(&Source::batch_norm(), kernel, geometry, &mut arguments)
}

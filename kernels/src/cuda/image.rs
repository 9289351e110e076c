//! Convolution and pooling on a device, on images row by row of pixels, a pixel's channels side by side.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// Sizes of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageSize {
    /// Numbers of a pixel.
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
}

impl ImageSize {
    /// Numbers of one image.
    pub fn features(self) -> usize {
        self.channels.saturating_mul(self.height).saturating_mul(self.width)
    }
}

/// Windows over images of one size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Windows {
    input: ImageSize,
    output: ImageSize,
    kernel: [usize; 2],
    stride: usize,
    padding: usize,
}

impl Windows {
    fn new(
        input: ImageSize,
        channels: usize,
        kernel: [usize; 2],
        stride: usize,
        padding: usize,
    ) -> Option<Self> {
        let count = |side: usize, kernel: usize| {
            let room = side.checked_add(padding.checked_mul(2)?)?.checked_sub(kernel)?;
            Some(room.checked_div(stride)? + 1)
        };
        let output = ImageSize {
            channels,
            height: count(input.height, kernel[0])?,
            width: count(input.width, kernel[1])?,
        };
        let sizes = [input.features(), output.features(), kernel[0].saturating_mul(kernel[1])];
        // Kernels count pixels and channels by 32 bits.
        let fits = sizes.iter().all(|size| u32::try_from(*size).is_ok());
        let holds = kernel.iter().all(|side| *side > padding) && input.channels > 0 && channels > 0;
        (fits && holds).then_some(Self { input, output, kernel, stride, padding })
    }

    fn launch<D: Device>(
        self,
        device: &mut D,
        kernel: &str,
        (elements, examples): (usize, usize),
        mut arguments: Vec<Argument<'_, D::Memory>>,
    ) -> Result<(), DeviceError> {
        let Self { input, output, kernel: [kernel_height, kernel_width], stride, padding } = self;
        let sizes =
            [[input.channels, input.height, input.width], [output.channels, output.height, output.width]];
        let windows = [kernel_height, kernel_width, stride, padding];
        let numbers = sizes.as_flattened().iter().chain(&windows);
        arguments.extend(numbers.map(|number| Argument::U32(*number as u32)));
        arguments.push(Argument::U64(examples as u64));
        let geometry = Geometry::each(elements, device.blocks());
        device.launch(&Source::image(), kernel, geometry, &mut arguments)
    }

    fn check<M>(self, examples: usize, x: &Buffer<M, f32>, y: &Buffer<M, f32>) -> Result<(), DeviceError> {
        x.check(examples.saturating_mul(self.input.features()))?;
        y.check(examples.saturating_mul(self.output.features()))
    }
}

/// A convolution, as `layers/convolution.rs` defines it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceConvolution(Windows);

impl DeviceConvolution {
    /// The convolution of `input` by `outputs` square kernels; `None` unless the padding is below the kernel, the stride is at least 1, the
    /// padded image holds a kernel, and an image has fewer than 2^32 numbers.
    pub fn new(
        input: ImageSize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Option<Self> {
        Windows::new(input, outputs, [kernel; 2], stride, padding).map(Self)
    }

    /// The result's sizes.
    pub fn output(self) -> ImageSize {
        self.0.output
    }

    /// Numbers of the weights.
    pub fn weight_elements(self) -> usize {
        let Windows { input, output, kernel: [height, width], .. } = self.0;
        [output.channels, input.channels, height, width].into_iter().fold(1, usize::saturating_mul)
    }

    /// y of `x`, from the bias if there is one; with `rectify`, what is negative becomes zero.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn forward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        (weights, bias, rectify): (&Numbers<D>, Option<&Numbers<D>>, bool),
        x: &Numbers<D>,
        y: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, x, y)?;
        weights.check(self.weight_elements())?;
        if let Some(bias) = bias {
            bias.check(self.0.output.channels)?;
        }
        let elements = y.elements();
        let mut arguments = vec![x.input(), weights.input(), bias.unwrap_or(weights).input(), y.output()];
        arguments.extend([bias.is_some(), rectify].map(|flag| Argument::U32(u32::from(flag))));
        self.0.launch(device, "convolution_forward", (elements, examples), arguments)
    }

    /// dx of `dy`.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn backward<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        weights: &Numbers<D>,
        dy: &Numbers<D>,
        dx: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, dx, dy)?;
        weights.check(self.weight_elements())?;
        let elements = dx.elements();
        let arguments = vec![dy.input(), weights.input(), dx.output()];
        self.0.launch(device, "convolution_backward", (elements, examples), arguments)
    }

    /// The weights' gradient, a sum over examples.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn weights<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        dy: &Numbers<D>,
        x: &Numbers<D>,
        dw: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, x, dy)?;
        dw.check(self.weight_elements())?;
        let elements = dw.elements();
        let arguments = vec![dy.input(), x.input(), dw.output()];
        self.0.launch(device, "convolution_weights", (elements, examples), arguments)
    }
}

/// Pooling, as `layers/pool.rs` defines it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevicePool(Windows);

impl DevicePool {
    /// Square windows, `stride` apart; `None` if the image holds none, or one of the two is zero.
    pub fn new(input: ImageSize, size: usize, stride: usize) -> Option<Self> {
        Windows::new(input, input.channels, [size; 2], stride, 0).map(Self)
    }

    /// One window: the whole image. `None` of an empty one.
    pub fn global(input: ImageSize) -> Option<Self> {
        Windows::new(input, input.channels, [input.height, input.width], 1, 0).map(Self)
    }

    /// The result's sizes.
    pub fn output(self) -> ImageSize {
        self.0.output
    }

    /// The greatest of each window.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn greatest<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        x: &Numbers<D>,
        y: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, x, y)?;
        let elements = y.elements();
        self.0.launch(device, "pool_greatest", (elements, examples), vec![x.input(), y.output()])
    }

    /// The gradient through [`greatest`](Self::greatest). With `rectified`, `x` came from relu, and the gradient is that of what went into it.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn greatest_gradient<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        rectified: bool,
        (x, dy): (&Numbers<D>, &Numbers<D>),
        dx: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, x, dy)?;
        let elements = x.elements();
        dx.check(elements)?;
        let arguments = vec![x.input(), dy.input(), dx.output(), Argument::U32(u32::from(rectified))];
        self.0.launch(device, "pool_greatest_gradient", (elements, examples), arguments)
    }

    /// The mean of each window.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn mean<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        x: &Numbers<D>,
        y: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, x, y)?;
        let elements = y.elements();
        self.0.launch(device, "pool_mean", (elements, examples), vec![x.input(), y.output()])
    }

    /// The gradient through [`mean`](Self::mean).
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn mean_gradient<D: Device>(
        self,
        device: &mut D,
        examples: usize,
        dy: &Numbers<D>,
        dx: &mut Numbers<D>,
    ) -> Result<(), DeviceError> {
        self.0.check(examples, dx, dy)?;
        let elements = dx.elements();
        self.0.launch(device, "pool_mean_gradient", (elements, examples), vec![dy.input(), dx.output()])
    }
}

//! A convolution without bias and the batch norm of its result.

use super::super::working::Working;
use super::super::{Initial, ModelError, ParameterSpec, Update};
use crate::layers::{BatchNorm, Convolution, Ends, Image, Kept, Panels, Statistics};
use crate::precision::Precision;
use crate::shape::Shape;

/// The part of the running statistics that a step's replace, as PyTorch's `momentum` of `nn.BatchNorm2d`.
const MOMENTUM: f32 = 0.1;

/// One of a network's units.
pub(super) struct Unit {
    convolution: Convolution,
    norm: BatchNorm,
    input: Image,
    /// Its first parameter: the convolution's weight. The norm's weight, bias, running mean and running variance follow.
    first: usize,
    /// Where its statistics begin.
    place: usize,
}

/// What a network's units are counted by as they are made.
#[derive(Default)]
pub(super) struct Units {
    /// The parameters so far.
    pub(super) specs: Vec<ParameterSpec>,
    /// Numbers of the norms' statistics so far.
    pub(super) statistics: usize,
}

/// What all units of a network compute in.
pub(super) struct Room {
    /// Of each unit the mean of each channel, its variance and one over its standard deviation.
    pub(super) statistics: Vec<f32>,
    /// The weights at work in another order.
    pub(super) ordered: Vec<f32>,
    pub(super) packed: Vec<f32>,
}

impl Unit {
    /// Counts itself and its parameters among `units`.
    pub(super) fn new(
        [convolution_name, norm_name]: [impl AsRef<str>; 2],
        input: Image,
        channels: usize,
        kernel: usize,
        stride: usize,
        units: &mut Units,
    ) -> Result<Unit, ModelError> {
        let (convolution_name, norm_name) = (convolution_name.as_ref(), norm_name.as_ref());
        let convolution = Convolution::new(input, channels, kernel, stride, kernel / 2)
            .ok_or(ModelError::Image { image: [input.channels, input.height, input.width], least: 1 })?;
        let (first, place) = (units.specs.len(), units.statistics);
        units.statistics += 3 * channels;
        let mut push = |name: String, dims: &[usize], initial: Initial, update: Update| {
            let shape =
                Shape::new(dims).map_err(|source| ModelError::Shape { parameter: name.clone(), source })?;
            units.specs.push(ParameterSpec { name, shape, initial, update });
            Ok::<(), ModelError>(())
        };
        let fan_out = (channels * kernel * kernel) as f64;
        let normal = Initial::Normal { std: (2.0 / fan_out).sqrt() as f32 };
        let average = Update::Average { momentum: MOMENTUM };
        let dims = [channels, input.channels, kernel, kernel];
        push(format!("{convolution_name}.weight"), &dims, normal, Update::Learn)?;
        push(format!("{norm_name}.weight"), &[channels], Initial::Ones, Update::Learn)?;
        push(format!("{norm_name}.bias"), &[channels], Initial::Zeros, Update::Learn)?;
        push(format!("{norm_name}.running_mean"), &[channels], Initial::Zeros, average)?;
        push(format!("{norm_name}.running_var"), &[channels], Initial::Ones, average)?;
        Ok(Unit { norm: BatchNorm { image: convolution.output() }, convolution, input, first, place })
    }

    pub(super) fn input(&self) -> Image {
        self.input
    }

    pub(super) fn output(&self) -> Image {
        self.convolution.output()
    }

    pub(super) fn weight_elements(&self) -> usize {
        self.convolution.weight_elements()
    }

    pub(super) fn packed_elements(&self, examples: usize) -> usize {
        self.convolution.packed_elements(examples)
    }

    /// `raw` becomes the convolution of `x`, computed where it says if not where it is kept; `y` the norm of that.
    #[allow(clippy::too_many_arguments)] // what goes in, what comes out, and where it is computed
    pub(super) fn forward(
        &self,
        weights: &Working,
        parameters: &[&[f32]],
        panels: Panels,
        training: bool,
        x: &[f32],
        (raw, place): (&mut Kept, &mut [f32]),
        y: &mut [f32],
        room: &mut Room,
    ) {
        let Some(&[_, scale, shift, mean, variance]) = self.parameters(parameters) else { return };
        let (weight, size) = (weights.at(parameters, self.first), panels.elements(self.output().features()));
        raw.keep(size, place, |raw| {
            self.convolution.forward(weight, Ends::default(), panels, x, raw, &mut room.ordered);
        });
        let raw = raw.read(size, place);
        let Some(mut by) = self.statistics(&mut room.statistics) else { return };
        if training {
            self.norm.measure(panels, raw, &mut by);
        } else {
            by.adopt(mean, variance);
        }
        self.norm.forward([scale, shift], panels, &by, raw, y);
    }

    /// From the gradient `dy` of its result, which becomes that of what the convolution made, to that of its input, if
    /// wanted; hands its parameters' over. `x` and `raw` are what [`forward`](Unit::forward) kept, `read` where to read them.
    #[allow(clippy::too_many_arguments)] // as above
    pub(super) fn backward(
        &self,
        weights: &Working,
        precision: Precision,
        parameters: &[&[f32]],
        panels: Panels,
        (x, raw, read): (&Kept, &Kept, &mut [f32]),
        dy: &mut [f32],
        dx: Option<&mut [f32]>,
        gradient: &mut [f32],
        room: &mut Room,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) {
        let Some(&[_, scale, ..]) = self.parameters(parameters) else { return };
        let weight = weights.at(parameters, self.first);
        let raw = raw.read(panels.elements(self.output().features()), read);
        let Some(by) = self.statistics(&mut room.statistics) else { return };
        let Some((dscale, rest)) = gradient.split_at_mut_checked(scale.len()) else { return };
        let Some(dshift) = rest.get_mut(..scale.len()) else { return };
        self.norm.variance_part(panels, by.variance, dscale);
        ready(self.first + 4, dscale);
        self.norm.mean_part(panels, by.mean, dscale);
        ready(self.first + 3, dscale);
        self.norm.backward(scale, panels, &by, raw, dy, [&mut *dscale, &mut *dshift]);
        ready(self.first + 1, dscale);
        ready(self.first + 2, dshift);
        precision.round(dy);
        let x = x.read(panels.elements(self.input.features()), read);
        let dw = gradient.get_mut(..weight.len()).unwrap_or_default();
        self.convolution.weights(panels, dy, x, dw, &mut room.ordered, &mut room.packed);
        ready(self.first, dw);
        if let Some(dx) = dx {
            self.convolution.backward(weight, panels, dy, dx, &mut room.ordered);
        }
    }

    fn parameters<'a>(&self, parameters: &'a [&'a [f32]]) -> Option<&'a [&'a [f32]; 5]> {
        parameters.get(self.first..)?.first_chunk()
    }

    fn statistics<'a>(&self, all: &'a mut [f32]) -> Option<Statistics<'a>> {
        let channels = self.norm.image.channels;
        let own = all.get_mut(self.place..self.place + 3 * channels)?;
        let (mean, rest) = own.split_at_mut_checked(channels)?;
        let (variance, inverse) = rest.split_at_mut_checked(channels)?;
        Some(Statistics { mean, variance, inverse })
    }
}

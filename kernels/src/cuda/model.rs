//! Models on a device: the twins of [`ModelSpec`]'s, with the same bits, as [`Model`]s.
//!
//! 1. Parameters come from the host and gradients go there with each call, so a model holds nothing between calls but room.
//! 2. A gradient is copied to the host beside what is launched after it ([`Device::fetch`]), and handed over when it has come: last layer
//!    first, while layers before it are at work. In a codec that takes each number by itself it is encoded before it leaves
//!    ([`DeviceModel::with_codec`]), so that half as many bytes do.
//! 3. Memory that grows with parameters or activations is taken once, when the model is built: every tensor has a name of its own, by its
//!    parameter or layer, which says what did not fit. What a call takes beside is a few numbers for each token, and, in the first calls, the
//!    host's room for gradients on their way.

mod cnn;
mod gpt;
mod mlp;
mod out;
mod resnet;
mod rows;

use super::buffer::Buffer;
use super::device::{Device, DeviceError};
use super::layers::CrossEntropy;
use crate::codec::Codec;
use crate::layers::{Panels, probabilities, scratch_elements};
use crate::model::check::{check_batch, check_inputs, check_parameters, check_tokens};
use crate::model::{Batch, Gradient, Loss, Model, ModelError, ModelSpec, ParameterSpec, Place};
use out::{Encoding, Out};
use rows::Rows;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// A network on a device. Batches have as many examples as it has room for at most.
trait Network<D: Device>: Send {
    /// Leaves the logits, a row for each target. `place` is where a batch stands in training; without one, the network is as it is used.
    fn forward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        inputs: &[f32],
        place: Option<Place>,
    ) -> Result<(), DeviceError>;

    /// What [`forward`](Network::forward) left.
    fn logits(&mut self) -> &mut Numbers<D>;

    /// The gradients, of the logits' gradient that has taken their place. `place` is that of [`forward`](Network::forward).
    fn backward(
        &mut self,
        device: &mut D,
        parameters: &[Numbers<D>],
        place: Place,
        out: &mut Out<'_, D>,
    ) -> Result<(), DeviceError>;
}

/// A model of one of this crate's kinds, on a device.
pub struct DeviceModel<D: Device> {
    device: D,
    spec: ModelSpec,
    specs: Vec<ParameterSpec>,
    max_examples: usize,
    network: Box<dyn Network<D>>,
    parameters: Vec<Numbers<D>>,
    gradients: Vec<Numbers<D>>,
    /// The same as they travel, in a codec that takes each number by itself.
    encoding: Option<Encoding<D>>,
    softmax: CrossEntropy<D::Memory>,
    smoothing: f32,
}

impl<D: Device> std::fmt::Debug for DeviceModel<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceModel").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl<D: Device + 'static> DeviceModel<D> {
    /// The model of `spec` with room for shards of up to `max_examples` examples.
    ///
    /// # Errors
    /// Those of [`ModelSpec::build`], and [`ModelError::Device`] for what the device says: what there is no memory for is named.
    pub fn new(mut device: D, spec: &ModelSpec, max_examples: usize) -> Result<Self, ModelError> {
        let specs = spec.parameters()?;
        let too_large = || ModelError::TooLarge { max_examples };
        let targets = max_examples.checked_mul(spec.targets());
        let targets = targets.filter(|targets| u32::try_from(*targets).is_ok()).ok_or_else(too_large)?;
        let smoothing = match spec {
            ModelSpec::Cnn { label_smoothing, .. } | ModelSpec::ResNet18 { label_smoothing, .. } => {
                *label_smoothing
            }
            _ => 0.0,
        };
        let network: Box<dyn Network<D>> = match spec {
            ModelSpec::Mlp { inputs, hidden, classes } => {
                Box::new(mlp::Mlp::new(&mut device, *inputs, hidden, *classes, max_examples)?)
            }
            ModelSpec::Cnn { image, classes, .. } => {
                Box::new(cnn::Cnn::new(&mut device, *image, *classes, max_examples)?)
            }
            ModelSpec::ResNet18 { image, classes, .. } => {
                Box::new(resnet::ResNet::new(&mut device, *image, *classes, max_examples, &specs)?)
            }
            ModelSpec::Gpt(spec) => Box::new(gpt::Gpt::new(&mut device, spec, max_examples)?),
            ModelSpec::Custom { name, .. } => return Err(ModelError::NotBuiltIn { name: name.clone() }),
        };
        let mut tensors = |what: &str| -> Result<Vec<Numbers<D>>, DeviceError> {
            let tensor = |spec: &ParameterSpec| {
                Buffer::zeros(&mut device, &format!("{what}{}", spec.name), spec.shape.elements())
            };
            specs.iter().map(tensor).collect()
        };
        let (parameters, gradients) = (tensors("")?, tensors("gradient of ")?);
        let softmax = CrossEntropy::new(&mut device, spec.classes(), targets)?;
        Ok(Self {
            spec: spec.clone(),
            specs,
            max_examples,
            network,
            parameters,
            gradients,
            encoding: None,
            softmax,
            smoothing,
            device,
        })
    }

    /// With gradients that are encoded on the device when they are asked for in `codec` ([`Model::gradients_in`]), if that takes each number by
    /// itself. Under others, and where error feedback keeps a residual, the host encodes.
    ///
    /// # Errors
    /// [`ModelError::Device`]: what there is no memory for is named.
    pub fn with_codec(mut self, codec: Codec) -> Result<Self, ModelError> {
        if !codec.is_lossless() && !codec.feeds_back() {
            self.encoding = Some(Encoding::new(&mut self.device, codec, &self.specs)?);
        }
        Ok(self)
    }

    fn check(&self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<(), ModelError> {
        check_batch(self, self.max_examples, parameters, batch)?;
        self.check_tokens(batch.inputs)
    }

    fn check_tokens(&self, inputs: &[f32]) -> Result<(), ModelError> {
        if let ModelSpec::Gpt(spec) = &self.spec { check_tokens(spec.vocabulary, inputs) } else { Ok(()) }
    }

    /// Leaves the logits of `inputs`.
    fn forward(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        place: Option<Place>,
    ) -> Result<(), DeviceError> {
        for (buffer, values) in self.parameters.iter_mut().zip(parameters) {
            buffer.write(&mut self.device, values)?;
        }
        self.network.forward(&mut self.device, &self.parameters, inputs, place)
    }

    /// The loss by example.
    fn loss(&mut self) -> Result<Loss, DeviceError> {
        let loss = self.softmax.loss(&mut self.device)?;
        Ok(Loss { examples: loss.examples / self.spec.targets().max(1) as u32, ..loss })
    }

    /// Probabilities of the classes of target `target` of each example. Softmax is the CPU's: these are few numbers.
    fn of_target(&mut self, target: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let classes = self.spec.classes();
        let of_example = classes * self.spec.targets();
        let panels = Panels::new(out.len() / classes.max(1));
        for (example, row) in out.chunks_exact_mut(classes.max(1)).enumerate() {
            let first = example * of_example + target * classes;
            self.network.logits().read_at(&mut self.device, first, row)?;
        }
        let mut logits = vec![0.0; panels.elements(classes)];
        let mut scratch = vec![0.0; scratch_elements(panels)];
        panels.fill(out, classes, &mut logits);
        probabilities(panels, classes, &mut logits, &mut scratch);
        panels.empty(&logits, classes, out);
        Ok(())
    }
}

impl<D: Device + 'static> Model for DeviceModel<D> {
    fn parameters(&self) -> &[ParameterSpec] {
        &self.specs
    }

    fn input_elements(&self) -> usize {
        self.spec.input_elements()
    }

    fn classes(&self) -> usize {
        self.spec.classes()
    }

    fn targets(&self) -> usize {
        self.spec.targets()
    }

    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError> {
        self.gradients_in(Codec::F32, parameters, batch, &mut |index, gradient| {
            if let Gradient::Values(values) = gradient {
                ready(index, values);
            }
        })
    }

    fn gradients_in(
        &mut self,
        codec: Codec,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, Gradient<'_>),
    ) -> Result<Loss, ModelError> {
        self.check(parameters, batch)?;
        self.forward(parameters, batch.inputs, Some(batch.place))?;
        let Self { device, network, softmax, .. } = self;
        softmax.launch(device, self.smoothing, network.logits(), batch.labels)?;
        let encoding = self.encoding.as_mut().filter(|encoding| encoding.is_in(codec));
        let mut out = Out::new(&mut self.gradients, encoding, ready);
        network.backward(device, &self.parameters, batch.place, &mut out)?;
        out.finish(device)?;
        Ok(self.loss()?)
    }

    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError> {
        self.check(parameters, batch)?;
        self.forward(parameters, batch.inputs, None)?;
        self.softmax.launch(&mut self.device, 0.0, self.network.logits(), batch.labels)?;
        Ok(self.loss()?)
    }

    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        check_inputs(self, self.max_examples, parameters, inputs, out)?;
        self.check_tokens(inputs)?;
        self.forward(parameters, inputs, None)?;
        Ok(self.of_target(self.spec.targets().saturating_sub(1), out)?)
    }

    /// What comes after a position changes no bit of it, so a short sequence is filled up.
    fn follow(&mut self, parameters: &[&[f32]], tokens: &[f32], out: &mut [f32]) -> Result<(), ModelError> {
        let ModelSpec::Gpt(spec) = &self.spec else { return Err(ModelError::NoSequences) };
        let (context, classes) = (spec.context, spec.vocabulary);
        check_parameters(self, parameters)?;
        let room = self.max_examples.min(1).saturating_mul(context);
        if tokens.is_empty() || tokens.len() > room || out.len() != classes {
            let (tokens, outputs) = (tokens.len(), out.len());
            return Err(ModelError::FollowLength { tokens, context, outputs, classes });
        }
        self.check_tokens(tokens)?;
        let mut whole = tokens.to_vec();
        whole.resize(context, 0.0);
        self.forward(parameters, &whole, None)?;
        Ok(self.of_target(tokens.len() - 1, out)?)
    }
}

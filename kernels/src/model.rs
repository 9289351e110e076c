//! Models: what they hold, and how their gradients are computed one layer at a time.
//!
//! Invariants:
//! 1. A model's parameters are listed in forward order and described by [`ParameterSpec`]s; it owns no values of them.
//! 2. Gradients and losses are sums over a logical shard's examples, and their bits depend on the parameters and the
//!    batch alone: not on `max_examples`, on alignment, or on earlier calls.
//! 3. Each gradient is handed over once, as soon as it is final, last layer first.
//! 4. Wrong lengths, counts and labels are [`ModelError`]s, found before any arithmetic.
//!
//! The arithmetic of a layer y = x Wᵀ + b is a definition, not a matter of the machine. Every element is one chain of
//! fused multiply-adds in ascending order: `y` starts at its bias and runs over the inputs, the input's gradient starts
//! at +0 and runs over the outputs, the weights' gradient starts at +0 and runs over the examples. A bias's gradient is
//! sixteen interleaved sums over the examples, added pairwise.
//!
//! The arithmetic of other layers is stated where they stand, in `layers`.
//!
//! A new model is a file beside `mlp.rs` and a variant of [`ModelSpec`]; outside this crate, an implementation of
//! [`Model`].

pub(crate) mod check;
pub(crate) mod cnn;
mod error;
mod gpt;
mod gradient;
mod mlp;
mod output;
mod parameter;
pub(crate) mod resnet;
mod working;

pub use error::ModelError;
pub use gpt::GptSpec;
pub use gradient::Gradient;
pub use parameter::{Initial, ParameterSpec, Update, average};

use serde::{Deserialize, Serialize};

use crate::codec::Codec;
use crate::layers::Image;
use crate::precision::Precision;
use crate::shape::Shape;

/// Labelled examples.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Row-major [examples, input elements].
    pub inputs: &'a [f32],
    /// Row-major [examples, targets]: the class of each target.
    pub labels: &'a [u32],
    /// Where in training these examples stand.
    pub place: Place,
}

impl<'a> Batch<'a> {
    /// Examples at no place in particular: to evaluate, or for a model that draws nothing at random.
    #[must_use]
    pub fn new(inputs: &'a [f32], labels: &'a [u32]) -> Batch<'a> {
        Batch { inputs, labels, place: Place::default() }
    }
}

/// Where a batch stands in training: what a layer draws at random, such as a dropout mask, is a function of this and of
/// (example, element), so it is the same whoever computes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// The job's seed.
    pub seed: u64,
    /// The step, from 0.
    pub step: u64,
    /// Position of the batch's first example in the step's global batch; the others follow it.
    pub first: u64,
}

/// What a model made of a batch: sums, never means.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Loss {
    /// The sum of the losses of all targets of all examples (nats of cross-entropy, for classifiers).
    pub loss_sum: f64,
    /// How many targets the model put into their own class.
    pub correct: u32,
    /// How many examples there were.
    pub examples: u32,
}

/// A model that one compute thread drives. It owns its buffers, and reuses them from call to call.
pub trait Model: Send {
    /// The parameters in forward order: index 0 is the first layer's.
    fn parameters(&self) -> &[ParameterSpec];

    /// Numbers of one example.
    fn input_elements(&self) -> usize;

    /// Classes that labels may name, from 0.
    fn classes(&self) -> usize;

    /// Labels of one example: 1 for a classifier, one for each position of a sequence.
    fn targets(&self) -> usize {
        1
    }

    /// The gradient sums of one logical shard. Calls `ready(index, gradient)` once for each parameter as soon as its
    /// gradient is final, last layer first, while the rest of the backward pass is still to run. The slice is the
    /// model's: copy what must outlive the call.
    ///
    /// `parameters` are in the order of [`Model::parameters`], row-major.
    ///
    /// # Errors
    /// [`ModelError`] if a length or a label is wrong; then `ready` has not been called.
    fn gradients(
        &mut self,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<Loss, ModelError>;

    /// As [`Model::gradients`], for gradients that are to travel in `codec`: a model that can encode them before they come to the host
    /// may do so, to the same bytes.
    ///
    /// # Errors
    /// Those of [`Model::gradients`].
    fn gradients_in(
        &mut self,
        codec: Codec,
        parameters: &[&[f32]],
        batch: Batch<'_>,
        ready: &mut dyn FnMut(usize, Gradient<'_>),
    ) -> Result<Loss, ModelError> {
        let _ = codec;
        self.gradients(parameters, batch, &mut |index, values| ready(index, Gradient::Values(values)))
    }

    /// The loss alone, of the network as it is used: nothing is drawn at random.
    ///
    /// # Errors
    /// [`ModelError`] if a length or a label is wrong.
    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError>;

    /// What the model makes of examples without labels: into `out`, row-major [examples, classes], the probability of each
    /// class. An example's bits do not depend on the others. `inputs` is row-major [examples, input elements]. Training does
    /// without it.
    ///
    /// # Errors
    /// [`ModelError`] if a length is wrong, or if the model states no probabilities.
    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let _ = (parameters, inputs, out);
        Err(ModelError::Own("this model states no probabilities".into()))
    }

    /// For a model of sequences: into `out`, the probability of each class to follow `tokens`, of which there are 1 to
    /// [`Model::input_elements`].
    ///
    /// # Errors
    /// [`ModelError`] if a length or a token is wrong, or if this is no model of sequences.
    fn follow(&mut self, parameters: &[&[f32]], tokens: &[f32], out: &mut [f32]) -> Result<(), ModelError> {
        let _ = (parameters, tokens, out);
        Err(ModelError::NoSequences)
    }

    /// As [`Model::follow`], to the same bits, where the first `known` tokens are those of the last call of this, under the same
    /// parameters: a model may keep what it made of them, and compute what is new alone. 0 begins anew.
    ///
    /// # Errors
    /// Those of [`Model::follow`].
    fn follow_on(
        &mut self,
        parameters: &[&[f32]],
        known: usize,
        tokens: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let _ = known;
        self.follow(parameters, tokens, out)
    }
}

/// A model by its description, as a job states it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ModelSpec {
    /// Fully connected layers with ReLU between them, softmax and cross-entropy at the end. Parameters are
    /// `fc1.weight` (out x in), `fc1.bias` (out), `fc2.weight` and so on, so that y = x Wᵀ + b.
    Mlp {
        /// Numbers of one example.
        inputs: usize,
        /// Widths of the hidden layers, possibly none.
        hidden: Vec<usize>,
        /// Classes.
        classes: usize,
    },
    /// GPT-2 of any size: see [`GptSpec`]. Parameters are `wte.weight`, `wpe.weight`, `h0.ln1.weight` and so on.
    Gpt(GptSpec),
    /// A small convolutional network for images: convolution 3x3 to 32 channels, ReLU, convolution 3x3 to 64, ReLU, max
    /// pooling 2x2, a fully connected layer of 128, ReLU, a fully connected layer to the classes, softmax and
    /// cross-entropy. Parameters are `conv1.weight` (out x in x 3 x 3), `conv1.bias` (out), `conv2.weight`,
    /// `conv2.bias`, `fc1.weight` (128 x in) and so on, as PyTorch lays them out.
    Cnn {
        /// Channels, height and width of an image.
        image: [usize; 3],
        /// Classes.
        classes: usize,
        /// The part of what training asks for that is all classes alike (label smoothing), from 0 to below 1.
        #[serde(default)]
        label_smoothing: f32,
    },
    /// ResNet-18 for small images (He et al., 2016): a convolution 3x3, four stages of two residual blocks with batch norm,
    /// the mean over pixels, a fully connected layer to the classes, softmax and cross-entropy. Parameters have
    /// torchvision's names: `conv1.weight`, `bn1.weight`, `layer1.0.conv1.weight`, `fc.weight` and so on.
    ResNet18 {
        /// Channels, height and width of an image.
        image: [usize; 3],
        /// Classes.
        classes: usize,
        /// The part of what training asks for that is all classes alike (label smoothing), from 0 to below 1.
        #[serde(default)]
        label_smoothing: f32,
    },
    /// A model that the program which trains brings along, by implementing [`Model`]; servers need its parameters
    /// alone.
    Custom {
        /// What the program knows it by, `name@version`: see [`OwnName`](crate::OwnName).
        name: String,
        /// Numbers of one example.
        inputs: usize,
        /// Classes.
        classes: usize,
        /// Labels of one example.
        #[serde(default = "one")]
        targets: usize,
        /// Its parameters, in forward order.
        parameters: Vec<ParameterSpec>,
    },
}

/// Targets that are evaluated at a time; small enough to stay in cache, large enough for the matrix product.
const EVALUATED_TARGETS: usize = 256;
/// Images that are evaluated at a time, by networks that make far more of each than it has numbers.
const EVALUATED_IMAGES: usize = 64;
/// Examples of padding at most.
const PADDING: usize = 15;

/// Longest side of an image. A spec is untrusted input to a node; this is far beyond what trains.
pub const MAX_SIDE: usize = 1 << 14;

/// Most layers that a model may have. A spec is untrusted input to a node; this is far beyond what trains.
pub const MAX_LAYERS: usize = 1024;

impl ModelSpec {
    /// The parameters in forward order, without building the model.
    ///
    /// # Errors
    /// [`ModelError`] if a width is zero, if there are too many layers or if a shape overflows.
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>, ModelError> {
        match self {
            ModelSpec::Mlp { inputs, hidden, classes } => mlp::parameters(*inputs, hidden, *classes),
            ModelSpec::Gpt(spec) => spec.parameters(),
            ModelSpec::Cnn { image, classes, label_smoothing } => {
                smoothing(*label_smoothing)?;
                cnn::parameters(*image, *classes)
            }
            ModelSpec::ResNet18 { image, classes, label_smoothing } => {
                smoothing(*label_smoothing)?;
                resnet::parameters(*image, *classes)
            }
            ModelSpec::Custom { parameters, .. } => Ok(parameters.clone()),
        }
    }

    /// A model with buffers for shards of up to `max_examples` examples, which computes in `f32`.
    ///
    /// # Errors
    /// Those of [`ModelSpec::parameters`], and [`ModelError::TooLarge`] if the buffers would overflow.
    pub fn build(&self, max_examples: usize) -> Result<Box<dyn Model>, ModelError> {
        self.build_in(Precision::F32, max_examples)
    }

    /// The same, with products in `precision`.
    ///
    /// # Errors
    /// Those of [`ModelSpec::build`].
    pub fn build_in(&self, precision: Precision, max_examples: usize) -> Result<Box<dyn Model>, ModelError> {
        match self {
            ModelSpec::Mlp { inputs, hidden, classes } => {
                Ok(Box::new(mlp::Mlp::new(*inputs, hidden, *classes, precision, max_examples)?))
            }
            ModelSpec::Gpt(spec) => Ok(Box::new(gpt::Gpt::new(spec, precision, max_examples)?)),
            ModelSpec::Cnn { image, classes, label_smoothing } => {
                let smoothing = smoothing(*label_smoothing)?;
                Ok(Box::new(cnn::Cnn::new(*image, *classes, smoothing, precision, max_examples)?))
            }
            ModelSpec::ResNet18 { image, classes, label_smoothing } => {
                let smoothing = smoothing(*label_smoothing)?;
                Ok(Box::new(resnet::ResNet::new(*image, *classes, smoothing, precision, max_examples)?))
            }
            ModelSpec::Custom { name, .. } => Err(ModelError::NotBuiltIn { name: name.clone() }),
        }
    }

    /// Examples that are best evaluated at a time: what it makes of them fits caches, and bounded memory.
    pub fn evaluation_batch(&self) -> usize {
        match self {
            ModelSpec::Cnn { .. } | ModelSpec::ResNet18 { .. } => EVALUATED_IMAGES,
            _ => (EVALUATED_TARGETS / self.targets().max(1)).max(1),
        }
    }

    /// Numbers, of four bytes each, that a model built in `precision` for `max_examples` holds at most, a gradient of its
    /// parameters aside.
    ///
    /// # Errors
    /// Those of [`ModelSpec::parameters`].
    pub fn buffer_elements(&self, precision: Precision, max_examples: usize) -> Result<usize, ModelError> {
        let examples = max_examples.saturating_add(PADDING);
        let weights = working::working_elements(precision, &self.parameters()?);
        let buffers = match self {
            ModelSpec::Mlp { inputs, hidden, classes } => {
                mlp::buffer_elements(*inputs, hidden, *classes, precision, examples)?
            }
            ModelSpec::Cnn { image, classes, .. } => {
                cnn::buffer_elements(*image, *classes, precision, examples)?
            }
            ModelSpec::ResNet18 { image, classes, .. } => {
                resnet::buffer_elements(*image, *classes, precision, examples)?
            }
            ModelSpec::Gpt(spec) => {
                usize::try_from(spec.buffer_elements(precision, max_examples as u64)).unwrap_or(usize::MAX)
            }
            // A model of the program's own has no copies of its weights here, and buffers that only it knows.
            ModelSpec::Custom { .. } => return Ok(0),
        };
        Ok(buffers.saturating_add(weights))
    }

    /// Numbers of one example.
    pub fn input_elements(&self) -> usize {
        match self {
            ModelSpec::Mlp { inputs, .. } | ModelSpec::Custom { inputs, .. } => *inputs,
            ModelSpec::Gpt(spec) => spec.context,
            ModelSpec::Cnn { image, .. } | ModelSpec::ResNet18 { image, .. } => {
                image.iter().copied().fold(1, usize::saturating_mul)
            }
        }
    }

    /// Classes that labels may name, from 0.
    pub fn classes(&self) -> usize {
        match self {
            ModelSpec::Gpt(spec) => spec.vocabulary,
            ModelSpec::Mlp { classes, .. }
            | ModelSpec::Cnn { classes, .. }
            | ModelSpec::ResNet18 { classes, .. }
            | ModelSpec::Custom { classes, .. } => *classes,
        }
    }

    /// Labels of one example: 1 for a classifier, one for each position of a sequence. Means are over examples x targets.
    pub fn targets(&self) -> usize {
        match self {
            ModelSpec::Gpt(spec) => spec.context,
            ModelSpec::Custom { targets, .. } => *targets,
            _ => 1,
        }
    }
}

fn one() -> usize {
    1
}

/// A part that label smoothing may have.
fn smoothing(part: f32) -> Result<f32, ModelError> {
    if (0.0..1.0).contains(&part) { Ok(part) } else { Err(ModelError::Smoothing { part: part.to_string() }) }
}

/// An image whose sides are at least `least` and whose numbers can be counted.
fn image(sizes: [usize; 3], least: usize) -> Result<Image, ModelError> {
    let [channels, height, width] = sizes;
    Shape::new(&sizes).map_err(|source| ModelError::Shape { parameter: "image".into(), source })?;
    let sides = least..=MAX_SIDE;
    if channels == 0 || !sides.contains(&height) || !sides.contains(&width) {
        return Err(ModelError::Image { image: sizes, least });
    }
    Ok(Image { channels, height, width })
}

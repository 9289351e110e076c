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

mod check;
mod cnn;
mod gpt;
mod mlp;
mod parameter;
mod resnet;

pub use gpt::GptSpec;
pub use parameter::{Initial, ParameterSpec, Update, average};

use serde::{Deserialize, Serialize};

use crate::layers::Image;
use crate::shape::{Shape, ShapeError};

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

    /// The loss alone, of the network as it is used: nothing is drawn at random.
    ///
    /// # Errors
    /// [`ModelError`] if a length or a label is wrong.
    fn evaluate(&mut self, parameters: &[&[f32]], batch: Batch<'_>) -> Result<Loss, ModelError>;

    /// What the model makes of examples without labels: into `out`, row-major [examples, classes], the probability of each
    /// class. An example's bits do not depend on the others. `inputs` is row-major [examples, input elements].
    ///
    /// # Errors
    /// [`ModelError`] if a length is wrong.
    fn probabilities(
        &mut self,
        parameters: &[&[f32]],
        inputs: &[f32],
        out: &mut [f32],
    ) -> Result<(), ModelError>;

    /// For a model of sequences: into `out`, the probability of each class to follow `tokens`, of which there are 1 to
    /// [`Model::input_elements`].
    ///
    /// # Errors
    /// [`ModelError`] if a length or a token is wrong, or if this is no model of sequences.
    fn follow(&mut self, parameters: &[&[f32]], tokens: &[f32], out: &mut [f32]) -> Result<(), ModelError> {
        let _ = (parameters, tokens, out);
        Err(ModelError::NoSequences)
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
        /// What the program knows it by.
        name: String,
        /// Numbers of one example.
        inputs: usize,
        /// Classes.
        classes: usize,
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

    /// A model with buffers for shards of up to `max_examples` examples.
    ///
    /// # Errors
    /// Those of [`ModelSpec::parameters`], and [`ModelError::TooLarge`] if the buffers would overflow.
    pub fn build(&self, max_examples: usize) -> Result<Box<dyn Model>, ModelError> {
        match self {
            ModelSpec::Mlp { inputs, hidden, classes } => {
                Ok(Box::new(mlp::Mlp::new(*inputs, hidden, *classes, max_examples)?))
            }
            ModelSpec::Gpt(spec) => Ok(Box::new(gpt::Gpt::new(spec, max_examples)?)),
            ModelSpec::Cnn { image, classes, label_smoothing } => {
                let smoothing = smoothing(*label_smoothing)?;
                Ok(Box::new(cnn::Cnn::new(*image, *classes, smoothing, max_examples)?))
            }
            ModelSpec::ResNet18 { image, classes, label_smoothing } => {
                let smoothing = smoothing(*label_smoothing)?;
                Ok(Box::new(resnet::ResNet::new(*image, *classes, smoothing, max_examples)?))
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

    /// Numbers that a model built for `max_examples` holds at most, a gradient of its parameters aside.
    ///
    /// # Errors
    /// Those of [`ModelSpec::parameters`].
    pub fn buffer_elements(&self, max_examples: usize) -> Result<usize, ModelError> {
        let examples = max_examples.saturating_add(PADDING);
        match self {
            ModelSpec::Mlp { inputs, hidden, classes } => {
                mlp::buffer_elements(*inputs, hidden, *classes, examples)
            }
            ModelSpec::Cnn { image, classes, .. } => cnn::buffer_elements(*image, *classes, examples),
            ModelSpec::ResNet18 { image, classes, .. } => resnet::buffer_elements(*image, *classes, examples),
            ModelSpec::Gpt(spec) => {
                spec.parameters()?;
                Ok(usize::try_from(spec.buffer_elements(max_examples as u64)).unwrap_or(usize::MAX))
            }
            ModelSpec::Custom { .. } => Ok(0),
        }
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
            _ => 1,
        }
    }
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

/// Why a model cannot be built, or refuses a batch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModelError {
    /// A model that only the program which brings it along can build.
    #[error("the model {name} is not built in: only the program that the job was made for can train it")]
    NotBuiltIn {
        /// Its name in the job.
        name: String,
    },
    /// A layer without inputs or outputs.
    #[error("layer {layer} has {inputs} inputs and {outputs} outputs; both must be at least 1")]
    EmptyLayer {
        /// Counted from 1, as in the parameters' names.
        layer: usize,
        /// Its inputs.
        inputs: usize,
        /// Its outputs.
        outputs: usize,
    },
    /// More layers than [`MAX_LAYERS`].
    #[error("a model of {layers} layers: at most {MAX_LAYERS} are supported")]
    TooManyLayers {
        /// How many there were.
        layers: usize,
    },
    /// No size of a GPT.
    #[error("no GPT has this size: {what}")]
    Gpt {
        /// What is wrong with it.
        what: String,
    },
    /// A classifier was asked what follows a sequence.
    #[error("this model classifies examples and continues no sequence")]
    NoSequences,
    /// A number that is no token.
    #[error("input number {position} is no token: an integer from 0 to below {vocabulary} is needed")]
    Token {
        /// Its index among the inputs.
        position: usize,
        /// The model's tokens.
        vocabulary: usize,
    },
    /// A sequence, or the room for what follows it, has the wrong length.
    #[error(
        "{tokens} tokens and room for {outputs} probabilities: 1 to {context} tokens and room for {classes} are needed"
    )]
    FollowLength {
        /// Tokens given.
        tokens: usize,
        /// The most.
        context: usize,
        /// Room given.
        outputs: usize,
        /// Probabilities that there are.
        classes: usize,
    },
    /// Labels are not for a whole number of examples.
    #[error("{labels} labels are not for whole examples of {targets} labels each")]
    Targets {
        /// Labels given.
        labels: usize,
        /// Labels of an example.
        targets: usize,
    },
    /// Label smoothing by a part that is none.
    #[error("label smoothing of {part}: from 0 to below 1 is needed")]
    Smoothing {
        /// The part, in decimal.
        part: String,
    },
    /// An image without channels, too small for the network's windows, or larger than [`MAX_SIDE`].
    #[error(
        "images of {} x {} x {} (channels, height, width): at least one channel and sides from {least} to {MAX_SIDE} are \
         needed", image[0], image[1], image[2]
    )]
    Image {
        /// Channels, height and width.
        image: [usize; 3],
        /// The least side.
        least: usize,
    },
    /// A parameter's shape is no shape.
    #[error("parameter {parameter}: {source}")]
    Shape {
        /// Its name.
        parameter: String,
        /// What is wrong with it.
        source: ShapeError,
    },
    /// Buffers for this many examples would not fit an address space.
    #[error(
        "buffers for shards of {max_examples} examples do not fit memory; use more, smaller logical shards"
    )]
    TooLarge {
        /// The size asked for.
        max_examples: usize,
    },
    /// The number of parameter tensors is not the model's.
    #[error("the model has {expected} parameters, but {found} were given")]
    ParameterCount {
        /// The model's.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// A parameter tensor has the wrong length.
    #[error("parameter {parameter} has {expected} elements, but {found} were given")]
    ParameterLength {
        /// Its name.
        parameter: String,
        /// Its elements.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// Inputs and labels do not agree.
    #[error("{labels} labels call for {expected} input numbers, but {found} were given")]
    InputLength {
        /// Labels given.
        labels: usize,
        /// Numbers that as many examples have.
        expected: usize,
        /// Numbers given.
        found: usize,
    },
    /// Inputs and room for the answers do not agree.
    #[error(
        "{inputs} input numbers, {features} an example, and room for {outputs} probabilities, {classes} an example, are \
         not for one number of examples"
    )]
    OutputLength {
        /// Numbers given.
        inputs: usize,
        /// Numbers of one example.
        features: usize,
        /// Room given.
        outputs: usize,
        /// Probabilities of one example.
        classes: usize,
    },
    /// The batch is larger than the model was built for.
    #[error("a batch of {examples} examples, but the model was built for at most {max_examples}")]
    TooManyExamples {
        /// Examples given.
        examples: usize,
        /// Examples that there is room for.
        max_examples: usize,
    },
    /// A label names no class.
    #[error(
        "example {example} has label {label}, but there are {classes} classes, from 0; check the data set"
    )]
    Label {
        /// Index in the batch.
        example: usize,
        /// Its label.
        label: u32,
        /// The model's classes.
        classes: usize,
    },
}

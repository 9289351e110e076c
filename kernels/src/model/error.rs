//! Why a model cannot be built, or refuses a batch.

use super::{MAX_LAYERS, MAX_SIDE};
use crate::cuda::DeviceError;
use crate::shape::ShapeError;

/// Why a model cannot be built, or refuses a batch.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModelError {
    /// A model that only the program which brings it along can build.
    #[error("the model {name} is not built in: only the program that the job was made for can train it")]
    NotBuiltIn {
        /// Its name in the job.
        name: String,
    },
    /// What a program's own model says.
    #[error("{0}")]
    Own(String),
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
    /// The device that a model computes on failed, or has no kernels for it.
    #[error("{what}")]
    Device {
        /// What it said: of memory, which tensor there was none for.
        what: String,
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

impl From<DeviceError> for ModelError {
    fn from(error: DeviceError) -> ModelError {
        ModelError::Device { what: error.to_string() }
    }
}

//! The rows about the network that is trained.

use super::{Absent, Applies, Key, Rule};

const MLP: Option<Applies> = Some(Applies { selector: "model.kind", kinds: &["mlp"] });
const IMAGES: Option<Applies> = Some(Applies { selector: "model.kind", kinds: &["cnn", "resnet18"] });
const CLASSIFIERS: Option<Applies> =
    Some(Applies { selector: "model.kind", kinds: &["mlp", "cnn", "resnet18"] });
const GPT: Option<Applies> = Some(Applies { selector: "model.kind", kinds: &["gpt"] });

const WIDTH: Rule = Rule::Integer { min: 1, max: 1 << 24 };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "model.kind",
        rule: Rule::Choice(&["mlp", "cnn", "resnet18", "gpt"]),
        absent: Absent::Required,
        applies: None,
        doc: "The network: `mlp` is fully connected layers with ReLU between them, `cnn` two convolutions and two fully connected layers, `resnet18` ResNet-18 for small images, `gpt` is GPT-2 of any size on bytes, which learns to continue a text ([networks.md](networks.md)).",
    },
    Key {
        path: "model.inputs",
        rule: WIDTH,
        absent: Absent::Required,
        applies: MLP,
        doc: "Numbers in one example (784 for MNIST).",
    },
    Key {
        path: "model.hidden",
        rule: Rule::List { each: &WIDTH, most: 64 },
        absent: Absent::Is("[512, 512]"),
        applies: MLP,
        doc: "Widths of the hidden layers, first to last; `[]` makes a linear classifier.",
    },
    Key {
        path: "model.image",
        rule: Rule::List { each: &Rule::Integer { min: 1, max: 1 << 14 }, most: 3 },
        absent: Absent::Is("[1, 28, 28]"),
        applies: IMAGES,
        doc: "Channels, height and width of an image; the default is MNIST's.",
    },
    Key {
        path: "model.classes",
        rule: Rule::Integer { min: 2, max: 1 << 24 },
        absent: Absent::Required,
        applies: CLASSIFIERS,
        doc: "Classes to tell apart (10 for MNIST); labels are 0 up to one less.",
    },
    Key {
        path: "model.label_smoothing",
        rule: Rule::Number { min: 0.0, above: false, max: 1.0, below: true },
        absent: Absent::Is("0.0"),
        applies: IMAGES,
        doc: "Label smoothing: this part of the probability that training asks for is spread over all classes. The test loss is without.",
    },
    Key {
        path: "model.context",
        rule: Rule::Integer { min: 1, max: 1 << 20 },
        absent: Absent::Is("128"),
        applies: GPT,
        doc: "Bytes that the model sees at once, and predicts the next of each of.",
    },
    Key {
        path: "model.layers",
        rule: Rule::Integer { min: 1, max: 384 },
        absent: Absent::Is("4"),
        applies: GPT,
        doc: "Blocks of attention and two linear layers.",
    },
    Key {
        path: "model.heads",
        rule: Rule::Integer { min: 1, max: 1 << 16 },
        absent: Absent::Is("4"),
        applies: GPT,
        doc: "Heads of each block's attention; they divide `model.width`.",
    },
    Key {
        path: "model.width",
        rule: Rule::Integer { min: 1, max: 1 << 20 },
        absent: Absent::Is("128"),
        applies: GPT,
        doc: "Numbers that stand for a byte between blocks.",
    },
    Key {
        path: "model.dropout",
        rule: Rule::Number { min: 0.0, above: false, max: 1.0, below: true },
        absent: Absent::Is("0.0"),
        applies: GPT,
        doc: "Share of the embeddings, and of what each branch adds, that training drops at random: the same numbers whoever computes them.",
    },
    Key {
        path: "model.attention_dropout",
        rule: Rule::Number { min: 0.0, above: false, max: 1.0, below: true },
        absent: Absent::Is("0.0"),
        applies: GPT,
        doc: "Share of attention's probabilities that training drops at random, the same ones whoever computes them; GPT-2 has that of `model.dropout`. A step then takes longer: a random number is drawn for each, twice.",
    },
    Key {
        path: "model.norm",
        rule: Rule::Choice(&["layer", "rms"]),
        absent: Absent::Is("\"layer\""),
        applies: GPT,
        doc: "The norm before each branch: `layer` norm, as GPT-2 has it, or `rms`, which has no mean and no bias.",
    },
];

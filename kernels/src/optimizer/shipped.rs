//! The programs that ship, each a file in `kernels/optimizers/` that names its paper.

use super::language::{Program, ProgramError};

/// Names and texts.
const TEXTS: [(&str, &str); 13] = [
    ("sgd", include_str!("../../optimizers/sgd.opt")),
    ("momentum", include_str!("../../optimizers/momentum.opt")),
    ("nesterov", include_str!("../../optimizers/nesterov.opt")),
    ("adam", include_str!("../../optimizers/adam.opt")),
    ("adamw", include_str!("../../optimizers/adamw.opt")),
    ("nadam", include_str!("../../optimizers/nadam.opt")),
    ("rmsprop", include_str!("../../optimizers/rmsprop.opt")),
    ("adagrad", include_str!("../../optimizers/adagrad.opt")),
    ("adadelta", include_str!("../../optimizers/adadelta.opt")),
    ("ftrl", include_str!("../../optimizers/ftrl.opt")),
    ("lion", include_str!("../../optimizers/lion.opt")),
    ("lamb", include_str!("../../optimizers/lamb.opt")),
    ("lars", include_str!("../../optimizers/lars.opt")),
];

/// The names of the programs that ship.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().map(|(name, _)| *name)
}

/// The text of a program that ships, or `None` if none has that name.
pub fn text(name: &str) -> Option<&'static str> {
    TEXTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// A program that ships, or `None` if none has that name.
///
/// # Errors
/// None in practice: a test parses every text.
pub fn program(name: &str) -> Option<Result<Program, ProgramError>> {
    text(name).map(Program::parse)
}

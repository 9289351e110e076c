//! Optimizers: from a gradient sum to new weights, in place.
//!
//! Invariants:
//! 1. The bits of an element depend on its own gradient, weight and state, and on its tensor's norms and sums where the program
//!    has them; never on slicing or SIMD width.
//! 2. The gradient sum is divided once, by the number of examples, in `f32`. Scalars (bias corrections, products of the
//!    learning rate) are computed in `f64` once per call and then rounded to `f32`.
//! 3. The semantics and the order of operations are those of PyTorch's optimizers of the same name; where PyTorch adds
//!    a scaled tensor, one fused multiply-add does it.
//! 4. A refused call has changed nothing.
//!
//! An optimizer is a text ([`language`]). [`OptimizerSpec`] is what a job states, [`Optimizer`] is what runs.

pub mod language;
mod run;
pub mod shipped;
mod spec;

pub use language::{Program, ProgramError};
#[cfg(test)]
pub(crate) use run::tests::random::program as random_program;
pub use run::{Optimizer, Slice, StepInputs};
pub use spec::{MAX_NAME, MAX_PATTERN, MAX_PATTERNS, OptimizerSpec};

fn check(setting: &'static str, value: f64, holds: bool, range: &'static str) -> Result<(), OptimizerError> {
    if holds { Ok(()) } else { Err(OptimizerError::Setting { setting, value, range }) }
}

fn check_step(step: u64, learning_rate: f64, divisor: f32) -> Result<(), OptimizerError> {
    check("step", step as f64, step > 0, "at least 1")?;
    let rate = learning_rate >= 0.0 && learning_rate.is_finite();
    check("learning_rate", learning_rate, rate, "at least 0")?;
    check("divisor", f64::from(divisor), divisor > 0.0 && divisor.is_finite(), "positive")
}

fn check_lengths<'a>(
    names: impl ExactSizeIterator<Item = &'a str>,
    weights: &[f32],
    gradient: &[f32],
    state: &[Vec<f32>],
) -> Result<(), OptimizerError> {
    let expected = weights.len();
    if state.len() != names.len() {
        return Err(OptimizerError::StateCount { expected: names.len(), found: state.len() });
    }
    let lengths = state.iter().map(Vec::len);
    for (tensor, found) in std::iter::once(("gradient", gradient.len())).chain(names.zip(lengths)) {
        if found != expected {
            return Err(OptimizerError::Length { tensor: tensor.into(), expected, found });
        }
    }
    Ok(())
}

/// Why an optimizer refuses its settings or a step.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum OptimizerError {
    /// The text is no program.
    #[error("the optimizer's program, {0}")]
    Program(#[from] ProgramError),
    /// The name is none.
    #[error("an optimizer's name is 1 to {most} printable ASCII characters without spaces")]
    Name {
        /// The limit.
        most: usize,
    },
    /// Patterns that are none, or too many.
    #[error(
        "an optimizer has at most {most} patterns of parameters without weight decay, each of 1 to {bytes} bytes"
    )]
    Patterns {
        /// The limit.
        most: usize,
        /// The limit of each.
        bytes: usize,
    },
    /// A number is out of its range.
    #[error("the optimizer's {setting} is {value}, but must be {range}")]
    Setting {
        /// Which number.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// The number of state tensors is not the optimizer's.
    #[error("the optimizer has {expected} state tensors, but {found} were given")]
    StateCount {
        /// The optimizer's.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// A tensor is not as long as the weights.
    #[error("tensor {tensor} has {found} elements, but the weights have {expected}")]
    Length {
        /// Which tensor.
        tensor: String,
        /// Elements of the weights.
        expected: usize,
        /// Its elements.
        found: usize,
    },
    /// The number of scalar states is not the program's.
    #[error("the optimizer has {expected} scalar states, but {found} were given")]
    ScalarCount {
        /// The program's.
        expected: usize,
        /// Those given.
        found: usize,
    },
    /// A program with `norm`, `sum` or `mean` was to run on a slice.
    #[error("the optimizer needs whole tensors, not slices: it has norm, sum or mean")]
    WholeTensor,
    /// A new weight, state or scalar is NaN or infinite.
    #[error("line {line} of the optimizer's program gives {name} a value that is not finite")]
    NotFinite {
        /// The first such element of the slices; `None` if a scalar is.
        element: Option<usize>,
        /// The line of the first assignment on the way to it that is not finite.
        line: u32,
        /// What that line gives a value.
        name: String,
    },
    /// The program has no constant of this name.
    #[error("the optimizer has no constant {name:?}")]
    UnknownConstant {
        /// The name.
        name: String,
    },
    /// A constant is outside its interval.
    #[error("the optimizer's {name} is {value}, but must be in {interval}, also when rounded to f32")]
    Constant {
        /// The constant.
        name: String,
        /// The value given.
        value: f64,
        /// What it may be.
        interval: language::Interval,
    },
}

//! Optimizers: from a gradient sum to new weights, in place.
//!
//! Invariants:
//! 1. Elementwise: the bits of an element depend on its own gradient, weight and state, never on slicing or SIMD width.
//! 2. The gradient sum is divided once, by the number of examples, in `f32`. Scalars (bias corrections, products of the
//!    learning rate) are computed in `f64` once per call and then rounded to `f32`.
//! 3. The semantics and the order of operations are those of PyTorch's optimizers of the same name; where PyTorch adds
//!    a scaled tensor, one fused multiply-add does it.
//! 4. A refused call has changed nothing.
//!
//! [`OptimizerSpec`] is what a job states, and runs as hand-written loops. [`language`] and [`Optimizer`] read and run
//! programs, with the same bits for the same optimizers, and others beside; those that need a whole tensor's norm
//! among them, for which invariant 1 does not hold.

mod adam;
pub mod language;
mod run;
mod sgd;
pub mod shipped;

pub use language::{Program, ProgramError};
pub use run::{Optimizer, Slice, StepInputs};

use serde::{Deserialize, Serialize};

/// An optimizer and its settings, as a job states them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerSpec {
    /// Stochastic gradient descent: `w -= lr (g + weight_decay w)`.
    Sgd {
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Gradient descent with momentum: `v = momentum v + g; w -= lr v`. PyTorch's `SGD(momentum=..)`, no dampening.
    Momentum {
        /// The part of the velocity that is kept.
        #[serde(default = "default_momentum")]
        momentum: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Nesterov's momentum: `v = momentum v + g; w -= lr (g + momentum v)`. PyTorch's `SGD(nesterov=True)`.
    Nesterov {
        /// The part of the velocity that is kept.
        #[serde(default = "default_momentum")]
        momentum: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015).
    Adam {
        /// Decay of the mean of gradients.
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients.
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Added to the denominator.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
        /// L2 penalty, added to the gradient.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW {
        /// Decay of the mean of gradients.
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients.
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Added to the denominator.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
        /// Share of the weights, times the learning rate, that is taken off at each step.
        #[serde(default = "default_adamw_decay")]
        weight_decay: f64,
    },
}

fn default_momentum() -> f64 {
    0.9
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.999
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_adamw_decay() -> f64 {
    1e-2
}

impl OptimizerSpec {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// [`OptimizerError::Setting`] names the first that is not.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let unit = |setting, value: f64| {
            check(setting, value, (0.0..1.0).contains(&value), "at least 0 and below 1")
        };
        let decay =
            |value: f64| check("weight_decay", value, value >= 0.0 && value.is_finite(), "at least 0");
        match *self {
            Self::Sgd { weight_decay } => decay(weight_decay),
            Self::Momentum { momentum, weight_decay } | Self::Nesterov { momentum, weight_decay } => {
                unit("momentum", momentum)?;
                decay(weight_decay)
            }
            Self::Adam { beta1, beta2, epsilon, weight_decay }
            | Self::AdamW { beta1, beta2, epsilon, weight_decay } => {
                unit("beta1", beta1)?;
                unit("beta2", beta2)?;
                // In f32, which is what the denominator is: zero would let a zero gradient divide zero by zero.
                check(
                    "epsilon",
                    epsilon,
                    epsilon as f32 > 0.0 && (epsilon as f32).is_finite(),
                    "positive, as f32",
                )?;
                decay(weight_decay)
            }
        }
    }

    /// Names of the state tensors, each of one `f32` per element, all zero before the first step.
    pub fn state_tensors(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd { .. } => &[],
            Self::Momentum { .. } | Self::Nesterov { .. } => &["momentum"],
            Self::Adam { .. } | Self::AdamW { .. } => &["mean", "variance"],
        }
    }

    /// One step on a slice. On entry `gradient_to_weights` holds the gradient *sum*; on return, the new weights, so that
    /// a version of a slice needs no new memory. `step` counts from 1; `divisor` is the number of examples in the sum.
    ///
    /// # Errors
    /// [`OptimizerError`] if a setting, the step, the divisor, the learning rate or a length is wrong. Values are not
    /// looked at: what is not finite stays so.
    pub fn update(
        &self,
        step: u64,
        learning_rate: f64,
        divisor: f32,
        weights: &[f32],
        gradient_to_weights: &mut [f32],
        state: &mut [Vec<f32>],
    ) -> Result<(), OptimizerError> {
        self.validate()?;
        check_step(step, learning_rate, divisor)?;
        let names = self.state_tensors();
        check_lengths(names.iter().copied(), weights, gradient_to_weights, state)?;
        let out = gradient_to_weights;
        match (*self, state) {
            (Self::Sgd { weight_decay }, _) => {
                sgd::plain(-learning_rate as f32, weight_decay as f32, divisor, weights, out);
            }
            (Self::Momentum { momentum, weight_decay }, [velocity]) => {
                let scalars = [-learning_rate as f32, momentum as f32, weight_decay as f32, divisor];
                sgd::momentum(scalars, weights, out, velocity);
            }
            (Self::Nesterov { momentum, weight_decay }, [velocity]) => {
                let scalars = [-learning_rate as f32, momentum as f32, weight_decay as f32, divisor];
                sgd::nesterov(scalars, weights, out, velocity);
            }
            (Self::Adam { beta1, beta2, epsilon, weight_decay }, [mean, variance]) => {
                let scalars = adam::Scalars::new(step, learning_rate, [beta1, beta2, epsilon], divisor);
                adam::update(scalars, 1.0, weight_decay as f32, weights, out, mean, variance);
            }
            (Self::AdamW { beta1, beta2, epsilon, weight_decay }, [mean, variance]) => {
                let scalars = adam::Scalars::new(step, learning_rate, [beta1, beta2, epsilon], divisor);
                let keep = (1.0 - learning_rate * weight_decay) as f32;
                adam::update(scalars, keep, 0.0, weights, out, mean, variance);
            }
            // The count was checked above.
            (_, state) => {
                return Err(OptimizerError::StateCount { expected: names.len(), found: state.len() });
            }
        }
        Ok(())
    }
}

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

#[cfg(test)]
mod tests;

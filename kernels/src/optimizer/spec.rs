//! An optimizer as a job states it: text that the operator read, signed with the job.

mod glob;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::language::Program;
use super::{Optimizer, OptimizerError, shipped};
pub use glob::MAX_PATTERN;

/// The longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// The most patterns.
pub const MAX_PATTERNS: usize = 64;
/// The constant that is 0 for parameters of which [`OptimizerSpec::no_decay`] has a pattern.
const DECAY: &str = "weight_decay";

/// A program and the constants that a job sets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSpec {
    /// What it is called, for people. What runs is the text.
    pub name: String,
    /// The program's text (`docs/optimizers.md`).
    pub program: String,
    /// Values of the program's constants, by their names; those that are not here have the program's defaults.
    pub constants: BTreeMap<String, f64>,
    /// Patterns of parameters' names (`*` stands for any characters, `?` for one) whose `weight_decay` is 0.
    pub no_decay: Vec<String>,
}

impl OptimizerSpec {
    /// A program that ships, with its defaults; `None` if none has that name.
    pub fn shipped(name: &str) -> Option<Self> {
        let program = shipped::text(name)?.into();
        Some(Self { name: name.into(), program, constants: BTreeMap::new(), no_decay: Vec::new() })
    }

    /// A program of one's own, with its defaults.
    pub fn own(name: &str, program: &str) -> Self {
        Self { name: name.into(), program: program.into(), constants: BTreeMap::new(), no_decay: Vec::new() }
    }

    /// The same with that constant set.
    #[must_use]
    pub fn with(mut self, constant: &str, value: f64) -> Self {
        self.constants.insert(constant.into(), value);
        self
    }

    /// The same for parameters whose names are of these patterns, which have no weight decay.
    #[must_use]
    pub fn without_decay(mut self, patterns: &[&str]) -> Self {
        self.no_decay = patterns.iter().map(|pattern| (*pattern).into()).collect();
        self
    }

    /// Whether a parameter of that name has the program's weight decay.
    pub fn decays(&self, parameter: &str) -> bool {
        !self.no_decay.iter().any(|pattern| glob::matches(pattern, parameter))
    }

    /// The program, read and checked.
    ///
    /// # Errors
    /// [`OptimizerError::Program`] with the first thing that is wrong and its place.
    pub fn parse(&self) -> Result<Program, OptimizerError> {
        Ok(Program::parse(&self.program)?)
    }

    /// The program with its constants, ready to run.
    ///
    /// # Errors
    /// [`OptimizerError`] when the text is no program, has no constant of a name, or a value is outside its interval.
    pub fn compile(&self) -> Result<Optimizer, OptimizerError> {
        let constants: Vec<(&str, f64)> =
            self.constants.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        Optimizer::new(&self.parse()?, &constants)
    }

    /// As [`OptimizerSpec::compile`], for parameters without weight decay.
    ///
    /// # Errors
    /// As [`OptimizerSpec::compile`].
    pub fn compile_without_decay(&self) -> Result<Optimizer, OptimizerError> {
        self.clone().with(DECAY, 0.0).compile()
    }

    /// Whether it can run.
    ///
    /// # Errors
    /// As [`OptimizerSpec::compile`], and for a name that is empty, too long, or not of printable ASCII; and for patterns, which
    /// are too many, too long, or of a program without weight decay.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let printable = self.name.bytes().all(|byte| byte.is_ascii_graphic());
        if self.name.is_empty() || self.name.len() > MAX_NAME || !printable {
            return Err(OptimizerError::Name { most: MAX_NAME });
        }
        let long = self.no_decay.iter().any(|pattern| pattern.is_empty() || pattern.len() > MAX_PATTERN);
        if long || self.no_decay.len() > MAX_PATTERNS {
            return Err(OptimizerError::Patterns { most: MAX_PATTERNS, bytes: MAX_PATTERN });
        }
        if !self.no_decay.is_empty() {
            self.compile_without_decay()?;
        }
        self.compile().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::language::Problem;

    #[test]
    fn what_is_stated_is_checked() {
        let adam = || OptimizerSpec::shipped("adam").unwrap();
        assert_eq!(adam().validate(), Ok(()));
        assert_eq!(adam().with("beta1", 0.5).compile().unwrap().constant("beta1"), Some(0.5));
        assert_eq!(adam().compile().unwrap().constant("beta1"), Some(0.9));
        assert_eq!(OptimizerSpec::shipped("adams"), None);
        let refused = |spec: OptimizerSpec| spec.validate().unwrap_err();
        assert!(matches!(refused(adam().with("beta3", 0.5)), OptimizerError::UnknownConstant { .. }));
        assert!(matches!(refused(adam().with("beta1", 1.0)), OptimizerError::Constant { .. }));
        for name in ["", "a b", "\n", &"x".repeat(MAX_NAME + 1)] {
            let spec = OptimizerSpec { name: name.into(), ..adam() };
            assert_eq!(refused(spec), OptimizerError::Name { most: MAX_NAME });
        }
        let biases = adam().with("weight_decay", 0.1).without_decay(&["*.bias", "ln?"]);
        assert_eq!(biases.validate(), Ok(()));
        assert_eq!(["fc.bias", "fc.weight", "ln1"].map(|name| biases.decays(name)), [false, true, false]);
        assert_eq!(biases.compile_without_decay().unwrap().constant(DECAY), Some(0.0));
        assert_eq!(biases.compile().unwrap().constant(DECAY), Some(0.1));
        let ftrl = OptimizerSpec::shipped("ftrl").unwrap().without_decay(&["*.bias"]);
        assert_eq!(refused(ftrl), OptimizerError::UnknownConstant { name: DECAY.into() });
        for pattern in ["", &"x".repeat(MAX_PATTERN + 1)] {
            assert!(matches!(refused(adam().without_decay(&[pattern])), OptimizerError::Patterns { .. }));
        }
        assert!(matches!(refused(adam().without_decay(&["a"; 65])), OptimizerError::Patterns { .. }));
        let OptimizerError::Program(error) = refused(OptimizerSpec::own("mine", "w = w\nw = w")) else {
            panic!("another refusal")
        };
        assert_eq!((error.place.line, error.problem), (2, Problem::WeightsLast));
    }
}

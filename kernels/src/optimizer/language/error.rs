//! Where and why a text is not a program.

/// A place in a program's text. Both count from 1; a column is a character, and the one after a line's last is the
/// line's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

/// Why a text is not a program, and where.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("line {}, column {}: {problem}", place.line, place.column)]
pub struct ProgramError {
    /// Where the reader stopped.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a text.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum Problem {
    /// The text is too long.
    #[error("a program has at most {most} bytes")]
    TooLong {
        /// The limit.
        most: usize,
    },
    /// The text has too many operations, numbers and names in its expressions.
    #[error("a program's expressions have at most {most} numbers, names and operations together")]
    TooManyNodes {
        /// The limit.
        most: usize,
    },
    /// Parentheses, calls or signs are nested too deeply.
    #[error("expressions are nested at most {most} deep")]
    TooDeep {
        /// The limit.
        most: usize,
    },
    /// Too many names of one sort are declared.
    #[error("a program declares at most {most} {what}")]
    TooMany {
        /// The sort.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// A character that no word or sign has.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// A number that no f64 holds, or that runs into letters.
    #[error("{0:?} is not a number that a program can hold")]
    Number(String),
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What should stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A comparison of a comparison.
    #[error("comparisons do not chain: name the first with `let`, or put one in a `where`")]
    Chain,
    /// A name that nothing has.
    #[error("nothing is named {0:?}: constants, states and `let` names must stand above their use")]
    Unknown(String),
    /// A function that there is not.
    #[error(
        "there is no function {0:?}: there are where, sqrt, abs, sign, exp, ln, min, max, clamp, norm, sum, mean"
    )]
    NoFunction(String),
    /// A name that means something already.
    #[error("{0:?} is taken already")]
    Taken(String),
    /// A name that is not a state, a scalar or `w` is given a value.
    #[error("{0:?} cannot be assigned: only states, scalars and w can, and `let` names new values")]
    NotAssignable(String),
    /// A second value for a state.
    #[error("{0:?} has been assigned above: each state is assigned once at most")]
    Twice(String),
    /// A call with another number of arguments than the function takes.
    #[error("{function} takes {takes} arguments, not {found}")]
    Arguments {
        /// The function.
        function: &'static str,
        /// Its number of arguments.
        takes: usize,
        /// Those given.
        found: usize,
    },
    /// A value of another type than is needed.
    #[error("{what} must be {expected}, but this is {found}")]
    Type {
        /// What is asked for.
        what: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A constant's default is not in its interval.
    #[error("the default {value} is outside the interval (also as f32, which it becomes beside tensors)")]
    Default {
        /// The default.
        value: f64,
    },
    /// An interval that holds nothing.
    #[error("the interval is empty")]
    EmptyInterval,
    /// The last statement is not the one that gives `w`.
    #[error("a program ends with `w = ...`, and has one such line")]
    WeightsLast,
}

impl Place {
    pub(super) fn error(self, problem: Problem) -> ProgramError {
        ProgramError { place: self, problem }
    }
}

//! What a program says, as written: statements, and expressions in one flat list.

use super::error::Place;

/// A program as written. An expression's operands stand before it in `expressions`, so that whoever walks the list in
/// order needs no recursion.
#[derive(Debug, Default)]
pub(super) struct Syntax<'a> {
    pub(super) statements: Vec<Statement<'a>>,
    pub(super) expressions: Vec<Expression<'a>>,
    /// The end of the text.
    pub(super) end: Option<Place>,
}

#[derive(Debug)]
pub(super) struct Statement<'a> {
    pub(super) place: Place,
    pub(super) says: Says<'a>,
}

#[derive(Debug)]
pub(super) enum Says<'a> {
    Constant { name: &'a str, default: f64, interval: Interval, interval_at: Place },
    States(Vec<(Place, &'a str)>),
    Scalar { name: &'a str, initial: f64 },
    Let { name: &'a str, value: usize },
    Assign { name: &'a str, value: usize },
}

/// An interval of numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Interval {
    /// The lower end; minus infinity if there is none.
    pub low: f64,
    /// Whether the lower end belongs to it.
    pub low_included: bool,
    /// The upper end; infinity if there is none.
    pub high: f64,
    /// Whether the upper end belongs to it.
    pub high_included: bool,
}

impl Interval {
    /// Whether a value is in the interval, as it is and rounded to `f32`: beside tensors it is used so, where an
    /// epsilon of 1e-60 is zero.
    pub fn holds(&self, value: f64) -> bool {
        let within = |value: f64| {
            value.is_finite()
                && (self.low < value || self.low_included && self.low == value)
                && (value < self.high || self.high_included && self.high == value)
        };
        within(value) && within(f64::from(value as f32))
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (open, close) =
            (if self.low_included { '[' } else { '(' }, if self.high_included { ']' } else { ')' });
        write!(f, "{open}{}, {}{close}", self.low, self.high)
    }
}

#[derive(Debug)]
pub(super) struct Expression<'a> {
    /// Where a person would look: the name, the number, the sign between operands.
    pub(super) place: Place,
    pub(super) form: Form<'a>,
}

/// Operands are places in [`Syntax::expressions`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    Number(f64),
    Name(&'a str),
    Negate(usize),
    Binary(&'static str, usize, usize),
    Call(Function, [usize; 3]),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Function {
    Where,
    Sqrt,
    Abs,
    Sign,
    Exp,
    Ln,
    Min,
    Max,
    Clamp,
    Norm,
    Sum,
    Mean,
}

impl Function {
    const ALL: [(&'static str, Self, usize); 12] = [
        ("where", Self::Where, 3),
        ("sqrt", Self::Sqrt, 1),
        ("abs", Self::Abs, 1),
        ("sign", Self::Sign, 1),
        ("exp", Self::Exp, 1),
        ("ln", Self::Ln, 1),
        ("min", Self::Min, 2),
        ("max", Self::Max, 2),
        ("clamp", Self::Clamp, 3),
        ("norm", Self::Norm, 1),
        ("sum", Self::Sum, 1),
        ("mean", Self::Mean, 1),
    ];

    /// The function of a name, the name as a constant, and its number of arguments.
    pub(super) fn named(name: &str) -> Option<(&'static str, Self, usize)> {
        Self::ALL.into_iter().find(|(known, _, _)| *known == name)
    }
}

/// Whether a word means something in every program. Functions' names do where a parenthesis follows, and so are free.
pub(super) fn is_reserved(name: &str) -> bool {
    ["w", "g", "lr", "step", "constant", "state", "scalar", "let", "in", "inf"].contains(&name)
}

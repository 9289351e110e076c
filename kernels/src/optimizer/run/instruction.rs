//! What a plan consists of: passes of instructions, each of which changes what an accumulator holds.

use crate::optimizer::language::{MAX_NODES, MAX_STATES, NodeId, Reduction};

/// Where a chunk of a value stands, other than in the accumulator: its place in a table of what a pass reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seat(pub(super) u16);

impl Seat {
    /// The slice that holds the gradient sum at first and the new weights at last.
    pub(super) const OUT: Self = Self(0);
    /// A copy of the old weights, which are only read.
    pub(super) const WEIGHTS: Self = Self(1);
    /// How many stand before the states.
    pub(super) const BEFORE_STATES: usize = 2;

    /// A state tensor. Behind the last one begin the slots: temporaries, and scalars as often as a chunk has elements.
    pub(super) fn state(index: usize) -> Self {
        Self((Self::BEFORE_STATES + index) as u16)
    }
}

/// More than there can be seats: an expression is at most two tensors (a clamp), each with a temporary, or a scalar, which has a slot
/// where an operation takes it; and the divisor has one.
pub(super) const SEATS: usize = 1024;
const _: () = assert!(Seat::BEFORE_STATES + 2 * MAX_STATES + 3 * MAX_NODES < SEATS);

/// What becomes of the accumulator, `a`, with what stands at an instruction's seats, `x` and `y`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// `a`
    Keep,
    Negate,
    Sqrt,
    Abs,
    Sign,
    Exp,
    Ln,
    /// `a + x`
    Add,
    /// `a - x`
    Subtract,
    /// `x - a`
    SubtractFrom,
    /// `a * x`
    Multiply,
    /// `a / x`
    Divide,
    /// `x / a`
    DivideInto,
    /// `a` if it is less than `x` or NaN, else `x`
    Min,
    /// `x` if it is less than `a` or NaN, else `a`
    MinOf,
    /// `a` if it is greater than `x` or NaN, else `x`
    Max,
    /// `x` if it is greater than `a` or NaN, else `a`
    MaxOf,
    /// 1 if `a < x`, else 0
    Less,
    /// 1 if `a <= x`, else 0
    LessOrEqual,
    /// 1 if `a > x`, else 0
    Greater,
    /// 1 if `a >= x`, else 0
    GreaterOrEqual,
    /// 1 if `a == x`, else 0
    Equal,
    /// 1 if `a != x`, else 0
    NotEqual,
    /// `a * x + y`, rounded once, as all to `NegateAddProduct` are
    ScaleAdd,
    /// `a * x - y`
    ScaleSubtract,
    /// `y - a * x`
    ScaleSubtractFrom,
    /// `-(a * x) - y`
    ScaleNegate,
    /// `a * a + x`
    SquareAdd,
    /// `a * a - x`
    SquareSubtract,
    /// `x - a * a`
    SquareSubtractFrom,
    /// `-(a * a) - x`
    SquareNegate,
    /// `x * y + a`
    AddProduct,
    /// `x * y - a`
    SubtractFromProduct,
    /// `a - x * y`
    SubtractProduct,
    /// `-(x * y) - a`
    NegateAddProduct,
    /// `x` where `a` is true, else `y`
    Choose,
    /// `a` where `x` is true, else `y`
    KeepWhere,
    /// `y` where `x` is true, else `a`
    ReplaceWhere,
}

impl Operation {
    /// Whether it reads what stands at `x`, and at `y`.
    pub(super) fn reads(self) -> [bool; 2] {
        use Operation::{
            Abs, AddProduct, Choose, Exp, Keep, KeepWhere, Ln, Negate, NegateAddProduct, ReplaceWhere,
            ScaleAdd, ScaleNegate, ScaleSubtract, ScaleSubtractFrom, Sign, Sqrt, SubtractFromProduct,
            SubtractProduct,
        };
        match self {
            Keep | Negate | Sqrt | Abs | Sign | Exp | Ln => [false; 2],
            ScaleAdd | ScaleSubtract | ScaleSubtractFrom | ScaleNegate | AddProduct | SubtractFromProduct
            | SubtractProduct | NegateAddProduct | Choose | KeepWhere | ReplaceWhere => [true; 2],
            _ => [true, false],
        }
    }
}

/// Fills the accumulator if it is to, changes it, and writes it down if it is to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instruction {
    pub(super) load: Option<Seat>,
    pub(super) operation: Operation,
    pub(super) x: Seat,
    pub(super) y: Seat,
    /// Whether a scalar stands at `x`.
    pub(super) is_scalar: bool,
    pub(super) store: Option<Seat>,
    /// A tensor that memory is asked for, some chunks ahead.
    pub(super) ask: Option<Seat>,
}

/// What a slot holds in all its elements throughout a pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scalar {
    /// What the gradient sum is divided by; where the instructions multiply, one over it.
    Divisor,
    /// A scalar's value, rounded to f32.
    Node(NodeId),
    /// The same of one that is divided by; where the instructions multiply, one over it.
    By(NodeId),
}

/// A reduction that a pass feeds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Feed {
    pub(super) reduction: Reduction,
    pub(super) from: Seat,
    /// The node whose value comes of it.
    pub(super) node: NodeId,
}

/// One walk over the tensor.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pass {
    /// The scalars, each with its slot, counted from the first slot.
    pub(super) scalars: Vec<(u16, Scalar)>,
    pub(super) instructions: Vec<Instruction>,
    pub(super) feeds: Vec<Feed>,
    pub(super) reads_weights: bool,
    /// Instructions that divide by a scalar, each with its place in `scalars`.
    pub(super) quotients: Vec<(usize, usize)>,
}

impl Pass {
    /// Fills the scalars' slots. What is divided by a power of two is multiplied by one over it instead: both round the same number.
    pub(super) fn prepare(&mut self, rounded: &[f32], divisor: f32, fill: impl Fn(u16, f32)) {
        for (slot, scalar) in &self.scalars {
            match scalar {
                Scalar::Divisor => fill(*slot, inverse(divisor).unwrap_or(divisor)),
                Scalar::Node(node) => fill(*slot, rounded[node.index()]),
                Scalar::By(node) => {
                    let value = rounded[node.index()];
                    fill(*slot, inverse(value).unwrap_or(value));
                }
            }
        }
        for (instruction, scalar) in &self.quotients {
            let value = match self.scalars[*scalar].1 {
                Scalar::Divisor => divisor,
                Scalar::Node(node) | Scalar::By(node) => rounded[node.index()],
            };
            self.instructions[*instruction].operation =
                if inverse(value).is_some() { Operation::Multiply } else { Operation::Divide };
        }
    }
}

/// One over a power of two, where that can be written exactly: not of numbers below the least normal one.
fn inverse(value: f32) -> Option<f32> {
    let is_power = value.is_normal() && value.to_bits() << 9 == 0;
    is_power.then(|| 1.0 / value)
}

#[cfg(test)]
mod tests {
    use super::inverse;

    /// One over a power of two gives the quotient's bits, also of what is rounded because it is so small, and nothing else is taken for
    /// one.
    #[test]
    fn products_with_inverses_are_quotients() {
        let mut values = vec![
            0.0,
            -0.0,
            f32::INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            f32::from_bits(0x007f_ffff),
        ];
        values.extend(
            (0..4000u32)
                .map(|i| f32::from_bits(i.wrapping_mul(0x0012_d687) & 0x7fff_ffff))
                .filter(|x| !x.is_nan()),
        );
        for exponent in 1..=254u32 {
            for power in [f32::from_bits(exponent << 23), -f32::from_bits(exponent << 23)] {
                let inverse = inverse(power).unwrap();
                for value in &values {
                    assert_eq!((value * inverse).to_bits(), (value / power).to_bits(), "{value} by {power}");
                }
            }
        }
        for value in [0.0, -0.0, 3.0, 30.0, f32::from_bits(0x0040_0000), f32::INFINITY, f32::NAN, 1.000_000_1]
        {
            assert_eq!(inverse(value), None, "{value}");
        }
    }
}

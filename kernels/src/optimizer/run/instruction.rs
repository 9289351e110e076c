//! What a plan consists of: passes of instructions, each of which writes one block of a tensor.

use crate::optimizer::language::{Binary, NodeId, Reduction, Unary};

/// Where the elements of a tensor's value are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seat {
    /// The old weights, which are only read.
    Weights,
    /// The slice that holds the gradient sum at first and the new weights at last.
    Out,
    State(usize),
    Temporary(usize),
}

/// What an instruction reads.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Operand {
    Tensor(Seat),
    /// A scalar's value rounded to f32, or its opposite.
    Scalar(NodeId, bool),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Operation {
    /// The gradient sum by the divisor.
    Gradient,
    Copy(Operand),
    Unary(Unary, Operand),
    Binary(Binary, [Operand; 2]),
    /// A factor that is a scalar stands first, and signs are scalars' where there is one.
    MulAdd {
        operands: [Operand; 3],
        minus_product: bool,
        minus_addend: bool,
    },
    /// Condition, then, otherwise.
    Where([Operand; 3]),
    /// `s`, `x` of `Form::Decayed`.
    Decayed(Operand, Operand),
    /// `s`, `t`, then `x`, `y`, `z` of `Form::Nested`, where a `y` that is none is the gradient sum by the divisor.
    Nested([Operand; 2], [Option<Operand>; 3]),
    /// `s`, `t`, `u`, then `x`, `z` of `Form::Ahead`.
    Ahead([Operand; 3], [Operand; 2]),
    /// `s`, `t`, then `x`, `y`, `z` of `Form::Chained`, where a `z` that is none is the gradient sum by the divisor.
    Chained([Operand; 2], [Option<Operand>; 3]),
    /// `s`, `t`, then `x`, `z` of `Form::Average`, where an `x` that is none is the gradient sum by the divisor.
    Average([Operand; 2], Option<Operand>, Operand),
    /// `s`, `x`, `z` of `Form::Follow`.
    Follow(Operand, [Operand; 2]),
    /// `s`, `t`, then `x`, `z` of `Form::Squares`.
    Squares([Operand; 2], [Operand; 2]),
    /// `x`, `by`, `plus` of `Form::Root`.
    Root(Operand, [Option<Operand>; 2]),
    /// `s`, `t`, then `x`, `y`, `z` of `Form::Quotient`.
    Quotient(Operand, Option<Operand>, [Operand; 3]),
    /// `s`, `plus`, then `by`, `t`, then `x`, `y`, `z` of `Form::RootQuotient`.
    RootQuotient([Operand; 2], [Option<Operand>; 2], [Operand; 3]),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Instruction {
    pub(super) to: Seat,
    pub(super) operation: Operation,
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
    pub(super) instructions: Vec<Instruction>,
    pub(super) feeds: Vec<Feed>,
}

/// Elements of a block: 512 bytes of each tensor. So few that the processor's window spans a block, and the next one's
/// elements come from memory while this one's quotients are still being computed; `docs/performance.md` has others.
const BLOCK: usize = 128;
/// The same of a pass of many loops, whose beginnings and ends are then what costs.
const LONG_BLOCK: usize = 1024;
/// The fewest loops that are many.
const MANY: usize = 10;

impl Pass {
    /// How many elements each loop goes over before the next one does.
    pub(super) fn block(&self) -> usize {
        if self.instructions.len() < MANY { BLOCK } else { LONG_BLOCK }
    }
}

//! The chain of instructions that computes one root: values that one operation reads stay in the accumulator, or wait in a
//! slot if the operation takes two of them.

use super::Builder;
use crate::optimizer::language::{Binary, Node, NodeId, Unary};
use crate::optimizer::run::instruction::{Operation, Scalar, Seat};

impl Builder<'_> {
    /// Leaves a node's value in the accumulator. The last instruction is the one that put it there.
    pub(super) fn chain(&mut self, node: NodeId) {
        let node = self.graph.nodes()[node.index()].0;
        // Seats that an operation does not read.
        let none = Seat::OUT;
        let (operation, seats) = match node {
            Node::Unary(op, a) => {
                self.bring(&[a]);
                (unary(op), [none; 2])
            }
            Node::Binary(op, a, b) => {
                let first = self.bring(&[a, b]) == a;
                if op == Binary::Divide && first && !self.graph.kind(b).is_tensor() {
                    (Operation::Divide, [self.scalar(Scalar::By(b)), none])
                } else {
                    (binary(op, first), [self.operand(if first { b } else { a }), none])
                }
            }
            Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                let minus = (minus_product, minus_addend);
                let held = self.bring(&[a, b, addend]);
                if held == a && a == b {
                    (square(minus), [self.operand(addend), none])
                } else if held == a || held == b {
                    let by = self.operand(if held == a { b } else { a });
                    (scale(minus), [by, self.operand(addend)])
                } else {
                    // A scalar stands first, where it is read once.
                    let (a, b) = if self.graph.kind(b).is_tensor() { (a, b) } else { (b, a) };
                    (accumulate(minus), [self.operand(a), self.operand(b)])
                }
            }
            Node::Where { condition, then, otherwise } => {
                let held = self.bring(&[condition, then, otherwise]);
                if held == condition {
                    (Operation::Choose, [self.operand(then), self.operand(otherwise)])
                } else if held == then {
                    (Operation::KeepWhere, [self.operand(condition), self.operand(otherwise)])
                } else {
                    (Operation::ReplaceWhere, [self.operand(condition), self.operand(then)])
                }
            }
            // The gradient: other leaves and scalars are not computed in a pass.
            _ => {
                self.load = Some(Seat::OUT);
                (Operation::Divide, [self.scalar(Scalar::Divisor), none])
            }
        };
        self.push(operation, seats);
        // What waited for this operation alone.
        for operand in node.operands() {
            if self.inner[operand.index()] {
                let seat = self.seats[operand.index()].take();
                self.release(seat);
            }
        }
    }

    /// Computes the operands that are computed for one operation alone, and leaves one of all in the accumulator; which.
    fn bring(&mut self, operands: &[NodeId]) -> NodeId {
        let is_tensor = |operand: &NodeId| self.graph.kind(*operand).is_tensor();
        let mut inner: Vec<NodeId> = operands.iter().copied().filter(|id| self.inner[id.index()]).collect();
        inner.sort();
        inner.dedup();
        if let Some(last) = inner.pop() {
            for operand in inner {
                self.chain(operand);
                self.keep(operand);
            }
            self.chain(last);
            return last;
        }
        if let Some(held) = self.held.filter(|held| operands.contains(held)) {
            return held;
        }
        let first = operands.iter().copied().find(is_tensor).unwrap_or(operands[0]);
        self.load = Some(self.seat(first));
        first
    }

    /// Where an operand stands, if need be from now on: then it is the one in the accumulator.
    fn operand(&mut self, node: NodeId) -> Seat {
        if self.inner[node.index()] && self.seats[node.index()].is_none() {
            self.keep(node);
        }
        self.seat(node)
    }

    /// Writes down what the accumulator holds, an inner node's value.
    fn keep(&mut self, node: NodeId) {
        let slot = self.fresh();
        self.store(slot);
        self.seats[node.index()] = Some(slot);
    }
}

fn unary(op: Unary) -> Operation {
    match op {
        Unary::Negate => Operation::Negate,
        Unary::Sqrt => Operation::Sqrt,
        Unary::Abs => Operation::Abs,
        Unary::Sign => Operation::Sign,
        Unary::Exp => Operation::Exp,
        Unary::Ln => Operation::Ln,
    }
}

/// `a op x`, or `x op a` where the accumulator is not the first operand.
fn binary(op: Binary, first: bool) -> Operation {
    match (op, first) {
        (Binary::Add, _) => Operation::Add,
        (Binary::Subtract, true) => Operation::Subtract,
        (Binary::Subtract, false) => Operation::SubtractFrom,
        (Binary::Multiply, _) => Operation::Multiply,
        (Binary::Divide, true) => Operation::Divide,
        (Binary::Divide, false) => Operation::DivideInto,
        (Binary::Min, true) => Operation::Min,
        (Binary::Min, false) => Operation::MinOf,
        (Binary::Max, true) => Operation::Max,
        (Binary::Max, false) => Operation::MaxOf,
        (Binary::Less, true) => Operation::Less,
        (Binary::Less, false) => Operation::Greater,
        (Binary::LessOrEqual, true) => Operation::LessOrEqual,
        (Binary::LessOrEqual, false) => Operation::GreaterOrEqual,
        (Binary::Equal, _) => Operation::Equal,
        (Binary::NotEqual, _) => Operation::NotEqual,
        // Of scalars alone.
        (Binary::Power, _) => Operation::Keep,
    }
}

/// The accumulator times `x`, plus `y`, where the product or the addend may be subtracted.
fn scale((minus_product, minus_addend): (bool, bool)) -> Operation {
    match (minus_product, minus_addend) {
        (false, false) => Operation::ScaleAdd,
        (false, true) => Operation::ScaleSubtract,
        (true, false) => Operation::ScaleSubtractFrom,
        (true, true) => Operation::ScaleNegate,
    }
}

/// The same of its square, plus `x`.
fn square((minus_product, minus_addend): (bool, bool)) -> Operation {
    match (minus_product, minus_addend) {
        (false, false) => Operation::SquareAdd,
        (false, true) => Operation::SquareSubtract,
        (true, false) => Operation::SquareSubtractFrom,
        (true, true) => Operation::SquareNegate,
    }
}

/// `x` times `y`, plus the accumulator.
fn accumulate((minus_product, minus_addend): (bool, bool)) -> Operation {
    match (minus_product, minus_addend) {
        (false, false) => Operation::AddProduct,
        (false, true) => Operation::SubtractFromProduct,
        (true, false) => Operation::SubtractProduct,
        (true, true) => Operation::NegateAddProduct,
    }
}

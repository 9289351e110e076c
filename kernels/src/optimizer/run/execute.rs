//! What instructions do to one chunk.
//!
//! Invariant: the operations are those of the graph in f32, each rounded once: `mul_add` where the graph says so, `exp` and `ln` of
//! [`crate::math`]. Truths are 1 and 0.

use super::ahead::Ahead;
use super::instruction::{Instruction, Operation, SEATS, Seat};
use super::vectors::{
    Chunk, Function, Splat, V, Vectors, Whole, choose, each, elementwise, greatest, least, magnitude, map,
    minus, sign, truth,
};
use pulp::Simd;
use std::cell::Cell;

/// One chunk of everything, by seat. Cells, since an instruction may write where it reads.
pub(super) type Table<'a, S> = [&'a Cell<Chunk<S>>; SEATS];

/// Runs the instructions over one chunk, and asks memory for what a later one needs.
#[inline(always)]
pub(super) fn execute<S: Simd>(simd: S, instructions: &[Instruction], table: &Table<'_, S>, ahead: Ahead) {
    let mut a = Vectors::load(&Cell::new([simd.splat_f32s(0.0); V]));
    for instruction in instructions {
        if let Some(seat) = instruction.load {
            a = Vectors::load(at::<S>(table, seat));
        }
        if let Some(seat) = instruction.ask {
            ahead.ask::<S>(at::<S>(table, seat).as_ptr());
        }
        a = change(simd, instruction, a, table);
        if let Some(seat) = instruction.store {
            a.store(at::<S>(table, seat));
        }
    }
}

/// A seat is less than the table is long; the remainder says so to the compiler.
#[inline(always)]
fn at<'a, S: Simd>(table: &Table<'a, S>, seat: Seat) -> &'a Cell<Chunk<S>> {
    table[usize::from(seat.0) % SEATS]
}

/// What an instruction reads beside the accumulator.
struct Operand<'t, 'a, S: Simd> {
    seat: Seat,
    is_scalar: bool,
    table: &'t Table<'a, S>,
}

impl<'a, S: Simd> Operand<'_, 'a, S> {
    #[inline(always)]
    fn vectors(&self) -> &'a [Cell<S::f32s>] {
        each(at::<S>(self.table, self.seat))
    }
}

#[inline(always)]
fn change<S: Simd>(
    s: S,
    instruction: &Instruction,
    a: Vectors<S::f32s>,
    table: &Table<'_, S>,
) -> Vectors<S::f32s> {
    let x = Operand::<S> { seat: instruction.x, is_scalar: instruction.is_scalar, table };
    let y = Operand::<S> { seat: instruction.y, is_scalar: false, table };
    match instruction.operation {
        Operation::Keep => a,
        Operation::Negate => map!(a => minus(s, a)),
        Operation::Sqrt => map!(a => s.sqrt_f32s(a)),
        Operation::Abs => map!(a => magnitude(s, a)),
        Operation::Sign => map!(a => sign(s, a)),
        Operation::Exp => elementwise(s, a, Function::Exp),
        Operation::Ln => elementwise(s, a, Function::Ln),
        Operation::Add => map!(a, scalar x => s.add_f32s(a, x)),
        Operation::Subtract => map!(a, scalar x => s.sub_f32s(a, x)),
        Operation::SubtractFrom => map!(a, x => s.sub_f32s(x, a)),
        Operation::Multiply => map!(a, scalar x => s.mul_f32s(a, x)),
        Operation::Divide => map!(a, scalar x => s.div_f32s(a, x)),
        Operation::DivideInto => map!(a, x => s.div_f32s(x, a)),
        Operation::Min => map!(a, x => least(s, a, x)),
        Operation::MinOf => map!(a, x => least(s, x, a)),
        Operation::Max => map!(a, x => greatest(s, a, x)),
        Operation::MaxOf => map!(a, x => greatest(s, x, a)),
        Operation::Less => map!(a, x => truth(s, s.less_than_f32s(a, x))),
        Operation::LessOrEqual => map!(a, scalar x => truth(s, s.less_than_or_equal_f32s(a, x))),
        Operation::Greater => map!(a, x => truth(s, s.less_than_f32s(x, a))),
        Operation::GreaterOrEqual => map!(a, x => truth(s, s.less_than_or_equal_f32s(x, a))),
        Operation::Equal => map!(a, x => truth(s, s.equal_f32s(a, x))),
        Operation::NotEqual => {
            map!(a, x => s.sub_f32s(s.splat_f32s(1.0), truth(s, s.equal_f32s(a, x))))
        }
        Operation::ScaleAdd => map!(a, scalar x, y => s.mul_add_f32s(a, x, y)),
        Operation::ScaleSubtract => map!(a, x, y => s.mul_add_f32s(a, x, minus(s, y))),
        Operation::ScaleSubtractFrom => map!(a, scalar x, y => s.mul_add_f32s(minus(s, a), x, y)),
        Operation::ScaleNegate => map!(a, x, y => s.mul_add_f32s(minus(s, a), x, minus(s, y))),
        Operation::SquareAdd => map!(a, x => s.mul_add_f32s(a, a, x)),
        Operation::SquareSubtract => map!(a, x => s.mul_add_f32s(a, a, minus(s, x))),
        Operation::SquareSubtractFrom => map!(a, x => s.mul_add_f32s(minus(s, a), a, x)),
        Operation::SquareNegate => map!(a, x => s.mul_add_f32s(minus(s, a), a, minus(s, x))),
        Operation::AddProduct => map!(a, scalar x, y => s.mul_add_f32s(x, y, a)),
        Operation::SubtractFromProduct => map!(a, x, y => s.mul_add_f32s(x, y, minus(s, a))),
        Operation::SubtractProduct => map!(a, scalar x, y => s.mul_add_f32s(minus(s, x), y, a)),
        Operation::NegateAddProduct => map!(a, x, y => s.mul_add_f32s(minus(s, x), y, minus(s, a))),
        Operation::Choose => map!(a, x, y => choose(s, a, x, y)),
        Operation::KeepWhere => map!(a, x, y => choose(s, x, a, y)),
        Operation::ReplaceWhere => map!(a, x, y => choose(s, x, y, a)),
    }
}

//! Runs a pass over a slice: block by block, instruction by instruction.
//!
//! Invariants:
//! 1. A block of every tensor that an instruction touches stays in the nearest cache while the block's instructions
//!    run.
//! 2. Elementwise: what an element becomes depends on its own values and on scalars, never on its place in a block. The
//!    operations are those of the graph in f32, `mul_add` where it says so, `exp` and `ln` of [`crate::math`].

use super::Slice;
use super::instruction::{Feed, Instruction, Operand, Operation, Pass, Seat};
use super::loops::{Source, binary, choose, compare, copy, over_three, pair, ternary, triple, unary};
use super::reduce::Accumulator;
use crate::aggregate::has_non_finite;
use crate::math;
use crate::optimizer::language::{Binary, Unary};
use crate::simd::vectorized;

/// Elements that are looked at together, some blocks: few enough to be in the nearest cache still.
pub(super) const LOOKED_AT: usize = 1024;

vectorized! {
    /// Runs `pass` over a slice of a tensor. `temporaries` hold [`Pass::block`] elements each; `sums` are those of the
    /// pass's feeds. If it `looks` at new values, the answer is where the [`LOOKED_AT`] elements begin in which one is not finite,
    /// at the end of which it has stopped.
    pub(super) fn run<'a>(
        pass: &'a Pass,
        rounded: &'a [f32],
        divisor: f32,
        slice: Slice<'a>,
        temporaries: &'a mut [Vec<f32>],
        sums: &'a mut [Accumulator],
        looks: bool,
    ) -> Option<usize> {
        let Slice { weights, gradient_to_weights: mut out, state } = slice;
        // One loop that writes weights has no temporaries, and nothing to come back for.
        let block = match (pass.instructions.len() == 1 && pass.feeds.is_empty(), looks) {
            (true, true) => LOOKED_AT,
            (true, false) => weights.len(),
            (false, _) => pass.block(),
        };
        let (mut start, mut looked_at) = (0, 0);
        while start < weights.len() {
            let end = weights.len().min(start + block);
            for instruction in &pass.instructions {
                // The target is taken out of its place, so that the others can be read beside it.
                let to = instruction.to;
                let (mut vector, mut whole) = (Vec::new(), &mut [][..]);
                let target: &mut [f32] = match to {
                    Seat::Temporary(index) => {
                        vector = std::mem::take(&mut temporaries[index]);
                        &mut vector[..end - start]
                    }
                    Seat::State(index) => {
                        vector = std::mem::take(&mut state[index]);
                        &mut vector[start..end]
                    }
                    Seat::Out => {
                        whole = std::mem::take(&mut out);
                        &mut whole[start..end]
                    }
                    Seat::Weights => &mut [],
                };
                let view = View { weights, out, state, temporaries, rounded, start, end };
                execute(instruction, target, view, divisor);
                match to {
                    Seat::Temporary(index) => temporaries[index] = vector,
                    Seat::State(index) => state[index] = vector,
                    Seat::Out => out = whole,
                    Seat::Weights => {}
                }
            }
            for (Feed { reduction, from, .. }, sum) in pass.feeds.iter().zip(sums.iter_mut()) {
                let view = View { weights, out, state, temporaries, rounded, start, end };
                sum.add(*reduction, view.seat(*from));
            }
            if looks && (end - looked_at == LOOKED_AT || end == weights.len()) {
                if has_non_finite(&out[looked_at..end])
                    || state.iter().any(|tensor| has_non_finite(&tensor[looked_at..end]))
                {
                    return Some(looked_at);
                }
                looked_at = end;
            }
            start = end;
        }
        None
    }
}

/// What an instruction may read: one block of everything.
#[derive(Clone, Copy)]
struct View<'b> {
    weights: &'b [f32],
    out: &'b [f32],
    state: &'b [Vec<f32>],
    temporaries: &'b [Vec<f32>],
    rounded: &'b [f32],
    start: usize,
    end: usize,
}

impl<'b> View<'b> {
    #[inline(always)]
    fn seat(&self, seat: Seat) -> &'b [f32] {
        match seat {
            Seat::Weights => &self.weights[self.start..self.end],
            Seat::Out => &self.out[self.start..self.end],
            Seat::State(index) => &self.state[index][self.start..self.end],
            Seat::Temporary(index) => &self.temporaries[index][..self.end - self.start],
        }
    }

    /// Zero for a tensor, which no instruction has here.
    #[inline(always)]
    fn scalar(&self, operand: Operand) -> f32 {
        match operand {
            Operand::Scalar(node, true) => -self.rounded[node.index()],
            Operand::Scalar(node, false) => self.rounded[node.index()],
            Operand::Tensor(_) => 0.0,
        }
    }

    /// Nothing for a scalar, which no instruction has here.
    #[inline(always)]
    fn tensor(&self, operand: Operand) -> &'b [f32] {
        match operand {
            Operand::Scalar(..) => &[],
            Operand::Tensor(seat) => self.seat(seat),
        }
    }

    #[inline(always)]
    fn source(&self, operand: Operand, to: Seat) -> Source<'b> {
        match operand {
            Operand::Scalar(..) => Source::Scalar(self.scalar(operand)),
            Operand::Tensor(seat) if seat == to => Source::Own,
            Operand::Tensor(seat) => Source::Slice(self.seat(seat)),
        }
    }
}

/// The gradient sum, before the new weights are written in its place.
const SUM: Operand = Operand::Tensor(Seat::Out);

#[inline(always)]
fn execute(instruction: &Instruction, target: &mut [f32], view: View<'_>, divisor: f32) {
    let source = |operand| view.source(operand, instruction.to);
    match instruction.operation {
        Operation::Gradient => {
            binary(target, [Source::Slice(view.seat(Seat::Out)), Source::Scalar(divisor)], |sum, by| {
                sum / by
            });
        }
        Operation::Copy(from) => copy(target, source(from)),
        Operation::Unary(op, a) => {
            let a = source(a);
            match op {
                Unary::Negate => unary(target, a, |x| -x),
                Unary::Sqrt => unary(target, a, f32::sqrt),
                Unary::Abs => unary(target, a, f32::abs),
                Unary::Sign => unary(target, a, sign),
                Unary::Exp => unary(target, a, math::exp),
                Unary::Ln => unary(target, a, math::ln),
            }
        }
        Operation::Binary(op, operands) => {
            let operands = operands.map(source);
            match op {
                Binary::Add => binary(target, operands, |a, b| a + b),
                Binary::Subtract => binary(target, operands, |a, b| a - b),
                Binary::Multiply => binary(target, operands, |a, b| a * b),
                Binary::Divide => binary(target, operands, |a, b| a / b),
                Binary::Min => binary(target, operands, |a, b| if (a < b) | a.is_nan() { a } else { b }),
                Binary::Max => binary(target, operands, |a, b| if (a > b) | a.is_nan() { a } else { b }),
                Binary::Less => compare(target, operands, |a, b| a < b),
                Binary::LessOrEqual => compare(target, operands, |a, b| a <= b),
                Binary::Equal => compare(target, operands, |a, b| a == b),
                Binary::NotEqual => compare(target, operands, |a, b| a != b),
                // Of scalars alone.
                Binary::Power => {}
            }
        }
        Operation::MulAdd { operands, minus_product, minus_addend } => {
            let operands = operands.map(source);
            match (minus_product, minus_addend) {
                (false, false) => ternary(target, operands, |a, b, c| a.mul_add(b, c)),
                (true, false) => ternary(target, operands, |a, b, c| (-a).mul_add(b, c)),
                (false, true) => ternary(target, operands, |a, b, c| a.mul_add(b, -c)),
                (true, true) => ternary(target, operands, |a, b, c| (-a).mul_add(b, -c)),
            }
        }
        Operation::Where(operands) => choose(target, operands.map(source)),
        Operation::Decayed(s, x) => {
            let s = view.scalar(s);
            let operands = [source(x), source(SUM)];
            pair(target, operands, |x, sum| s.mul_add(x, sum / divisor));
        }
        Operation::Nested(scalars, operands) => {
            let [s, t] = scalars.map(|scalar| view.scalar(scalar));
            let sources = operands.map(|operand| source(operand.unwrap_or(SUM)));
            if operands[1].is_none() {
                triple(target, sources, |x, sum, z| s.mul_add(t.mul_add(x, sum / divisor), z));
            } else {
                triple(target, sources, |x, y, z| s.mul_add(t.mul_add(x, y), z));
            }
        }
        Operation::Ahead(scalars, [x, z]) => {
            let [s, t, u] = scalars.map(|scalar| view.scalar(scalar));
            let sources = [x, SUM, z].map(source);
            triple(target, sources, |x, sum, z| s.mul_add(t.mul_add(x, u.mul_add(z, sum / divisor)), z));
        }
        Operation::Chained(scalars, operands) => {
            let [s, t] = scalars.map(|scalar| view.scalar(scalar));
            let [x, y, z] = operands.map(|operand| source(operand.unwrap_or(SUM)));
            if operands[2].is_none() {
                triple(target, [y, x, z], |y, x, sum| s.mul_add(x, t.mul_add(y, sum / divisor)));
            } else {
                triple(target, [y, x, z], |y, x, z| s.mul_add(x, t.mul_add(y, z)));
            }
        }
        Operation::Average(scalars, x, z) => {
            let [s, t] = scalars.map(|scalar| view.scalar(scalar));
            let operands = [x.unwrap_or(SUM), z].map(source);
            if x.is_none() {
                pair(target, operands, |sum, z| s.mul_add(sum / divisor, t * z));
            } else {
                pair(target, operands, |x, z| s.mul_add(x, t * z));
            }
        }
        Operation::Follow(s, operands) => {
            let s = view.scalar(s);
            pair(target, operands.map(source), |x, z| s.mul_add(x - z, z));
        }
        Operation::Squares(scalars, operands) => {
            let [s, t] = scalars.map(|scalar| view.scalar(scalar));
            pair(target, operands.map(source), |x, z| (s * x).mul_add(x, t * z));
        }
        Operation::Root(x, scalars) => {
            let x = source(x);
            match scalars.map(|scalar| scalar.map(|scalar| view.scalar(scalar))) {
                [Some(by), Some(plus)] => unary(target, x, |x| x.sqrt() / by + plus),
                [Some(by), None] => unary(target, x, |x| x.sqrt() / by),
                [None, Some(plus)] => unary(target, x, |x| x.sqrt() + plus),
                [None, None] => unary(target, x, f32::sqrt),
            }
        }
        Operation::Quotient(s, t, operands) => {
            let (s, slices) = (view.scalar(s), operands.map(|operand| view.tensor(operand)));
            match t.map(|scalar| view.scalar(scalar)) {
                None => over_three(target, slices, |x, y, z| s.mul_add(x / y, z)),
                Some(t) => over_three(target, slices, |x, y, z| s.mul_add(x / y, t * z)),
            }
        }
        Operation::RootQuotient(scalars, maybe, operands) => {
            let [s, plus] = scalars.map(|scalar| view.scalar(scalar));
            let slices = operands.map(|operand| view.tensor(operand));
            match maybe.map(|scalar| scalar.map(|scalar| view.scalar(scalar))) {
                [None, None] => over_three(target, slices, |x, y, z| s.mul_add(x / (y.sqrt() + plus), z)),
                [None, Some(t)] => {
                    over_three(target, slices, |x, y, z| s.mul_add(x / (y.sqrt() + plus), t * z));
                }
                [Some(by), None] => {
                    over_three(target, slices, |x, y, z| s.mul_add(x / (y.sqrt() / by + plus), z));
                }
                [Some(by), Some(t)] => {
                    over_three(target, slices, |x, y, z| s.mul_add(x / (y.sqrt() / by + plus), t * z));
                }
            }
        }
    }
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    let sign = if x < 0.0 { -1.0 } else { x };
    if x > 0.0 { 1.0 } else { sign }
}

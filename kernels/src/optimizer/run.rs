//! Runs programs of the optimizer language: from a gradient sum to new weights and states, in place.
//!
//! Invariants:
//! 1. What comes out is what the program's [`Graph`](super::language::Graph) says, bit for bit, the sign and payload
//!    of NaN aside: for any cut into slices, alignment, SIMD width and chunk size.
//! 2. A refused call has changed nothing; a call that is not refused cannot fail, but for values that are not finite where these are
//!    asked about.
//! 3. Once built, an [`Optimizer`] allocates nothing.

mod ahead;
mod blocks;
mod execute;
mod explain;
mod instruction;
mod plan;
mod reduce;
mod scalars;
mod staged;
mod vectors;

use super::OptimizerError;
use super::language::{Node, NodeId, Program};
use crate::aggregate::first_non_finite;
use blocks::Room;
use explain::Element;
use plan::Plan;
use reduce::Accumulator;

/// A program with its constants, and room to run it.
#[derive(Clone, Debug)]
pub struct Optimizer {
    program: Program,
    constants: Vec<f64>,
    plan: Plan,
    /// By node: the value of each scalar, a truth being 1 or 0, and the same rounded.
    values: Vec<f64>,
    rounded: Vec<f32>,
    room: Room,
    sums: Vec<Accumulator>,
}

/// What all slices of a tensor share in one step.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StepInputs {
    /// The step, from 1. Exact to 2^53.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The number of examples in the gradient sum.
    pub divisor: f32,
}

/// One slice of a tensor.
#[derive(Debug)]
pub struct Slice<'a> {
    /// The weights.
    pub weights: &'a [f32],
    /// On entry the gradient sum, on return the new weights.
    pub gradient_to_weights: &'a mut [f32],
    /// The state tensors, each as long as the weights.
    pub state: &'a mut [Vec<f32>],
}

impl Optimizer {
    /// A program with the given constants, each by its name; the others have their defaults.
    ///
    /// # Errors
    /// [`OptimizerError::UnknownConstant`] if the program has no constant of a name, and
    /// [`OptimizerError::Constant`] if a value is not in its interval, as it is or rounded to f32. Of two values of one name the
    /// last counts.
    pub fn new(program: &Program, given: &[(&str, f64)]) -> Result<Self, OptimizerError> {
        let mut constants: Vec<f64> = program.constants().iter().map(|constant| constant.default).collect();
        for (name, value) in given {
            let Some(index) = program.constants().iter().position(|constant| constant.name == *name) else {
                return Err(OptimizerError::UnknownConstant { name: (*name).into() });
            };
            let interval = program.constants()[index].interval;
            if !interval.holds(*value) {
                return Err(OptimizerError::Constant { name: (*name).into(), value: *value, interval });
            }
            constants[index] = *value;
        }
        let plan = Plan::new(program.graph());
        let nodes = program.graph().nodes().len();
        let feeds = plan.passes.iter().map(|pass| pass.feeds.len()).max().unwrap_or(0);
        Ok(Self {
            constants,
            values: vec![0.0; nodes],
            rounded: vec![0.0; nodes],
            room: Room::new(plan.slots, program.state_tensors().len()),
            sums: vec![Accumulator::new(); feeds],
            plan,
            program: program.clone(),
        })
    }

    /// The program that it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The value of a constant; `None` if the program has none of that name.
    pub fn constant(&self, name: &str) -> Option<f64> {
        let index = self.program.constants().iter().position(|constant| constant.name == name)?;
        self.constants.get(index).copied()
    }

    /// One step on a slice of a tensor, or on a whole one.
    ///
    /// `scalars` are the scalar states. They follow from the steps alone, so that each slice may keep its own.
    ///
    /// # Errors
    /// [`OptimizerError`] if the step, the learning rate, the divisor, a length or a number of states is wrong, or if the
    /// program needs whole tensors. Values are not looked at: what is not finite stays so.
    pub fn update(
        &mut self,
        inputs: StepInputs,
        slice: Slice<'_>,
        scalars: &mut [f64],
    ) -> Result<(), OptimizerError> {
        if self.program.needs_whole_tensor() {
            return Err(OptimizerError::WholeTensor);
        }
        self.update_tensor(inputs, &mut [slice], scalars)
    }

    /// One step on a whole tensor, given as its slices in order.
    ///
    /// # Errors
    /// As [`Optimizer::update`], but for programs that need whole tensors.
    pub fn update_tensor(
        &mut self,
        inputs: StepInputs,
        slices: &mut [Slice<'_>],
        scalars: &mut [f64],
    ) -> Result<(), OptimizerError> {
        let last = self.prepare(inputs, slices, scalars)?;
        for slice in slices.iter_mut() {
            self.pass(last, inputs.divisor, slice, false);
        }
        self.finish(scalars);
        Ok(())
    }

    /// As [`Optimizer::update_tensor`], or on a slice alone if the program lets it be, and looks at every new value.
    ///
    /// # Errors
    /// As [`Optimizer::update_tensor`], and [`OptimizerError::NotFinite`] for the first new weight, state or scalar that is NaN or
    /// infinite. Some values are new then, others old: nothing is to be done with them any more.
    pub fn update_checked(
        &mut self,
        inputs: StepInputs,
        slices: &mut [Slice<'_>],
        scalars: &mut [f64],
    ) -> Result<(), OptimizerError> {
        let last = self.prepare(inputs, slices, scalars)?;
        let is_finite = |id: &NodeId| self.values[id.index()].is_finite();
        if !self.program.graph().scalars().iter().all(is_finite) {
            return Err(self.not_finite(None, None));
        }
        let mut first = 0;
        for slice in slices.iter_mut() {
            if let Some(block) = self.pass(last, inputs.divisor, slice, true) {
                // Those of the block stand before all others that may not be finite.
                let out = &slice.gradient_to_weights[..];
                let new = std::iter::once(out).chain(slice.state.iter().map(Vec::as_slice));
                let at =
                    block + new.filter_map(|tensor| first_non_finite(&tensor[block..])).min().unwrap_or(0);
                let new_state: Vec<f32> = slice.state.iter().map(|tensor| tensor[at]).collect();
                let (weight, new_weight) = (slice.weights[at], out[at]);
                let element = Element { weight, new_weight, new_state: &new_state };
                return Err(self.not_finite(Some(first + at), Some(&element)));
            }
            first += slice.weights.len();
        }
        self.finish(scalars);
        Ok(())
    }

    fn not_finite(&self, at: Option<usize>, element: Option<&Element<'_>>) -> OptimizerError {
        let culprit = explain::culprit(&self.program, &self.rounded, element);
        let (line, name) = culprit.map_or((0, "w"), |assignment| (assignment.line, assignment.name.as_str()));
        OptimizerError::NotFinite { element: at, line, name: name.into() }
    }

    /// Checks what is given, and runs the passes that change nothing; which pass is the last.
    fn prepare(
        &mut self,
        inputs: StepInputs,
        slices: &mut [Slice<'_>],
        scalars: &[f64],
    ) -> Result<usize, OptimizerError> {
        let StepInputs { step, learning_rate, divisor } = inputs;
        super::check_step(step, learning_rate, divisor)?;
        let (states, known) = (self.program.state_tensors(), self.program.scalar_states().len());
        if scalars.len() != known {
            return Err(OptimizerError::ScalarCount { expected: known, found: scalars.len() });
        }
        for slice in slices.iter() {
            let names = states.iter().map(String::as_str);
            super::check_lengths(names, slice.weights, slice.gradient_to_weights, slice.state)?;
        }
        let elements: usize = slices.iter().map(|slice| slice.weights.len()).sum();
        let last = self.plan.passes.len() - 1;
        for level in 0..last {
            self.evaluate(level, inputs, elements, scalars);
            self.sums.fill(Accumulator::new());
            for slice in slices.iter_mut() {
                self.pass(level, divisor, slice, false);
            }
            for (feed, sum) in self.plan.passes[level].feeds.iter().zip(&self.sums) {
                self.values[feed.node.index()] = sum.finish();
            }
        }
        self.evaluate(last, inputs, elements, scalars);
        Ok(last)
    }

    /// Runs one pass over a slice, and looks at what it writes if it is to.
    fn pass(&mut self, pass: usize, divisor: f32, slice: &mut Slice<'_>, looks: bool) -> Option<usize> {
        let slice = Slice {
            weights: slice.weights,
            gradient_to_weights: slice.gradient_to_weights,
            state: slice.state,
        };
        let pass = &mut self.plan.passes[pass];
        blocks::run(pass, &self.rounded, divisor, slice, &mut self.room, &mut self.sums, looks)
    }

    fn finish(&self, scalars: &mut [f64]) {
        for (scalar, node) in scalars.iter_mut().zip(self.program.graph().scalars()) {
            *scalar = self.values[node.index()];
        }
    }

    /// The scalars that can be known once `level` passes are over.
    fn evaluate(&mut self, level: usize, inputs: StepInputs, elements: usize, scalars: &[f64]) {
        let nodes = self.program.graph().nodes().iter().zip(&self.plan.levels).enumerate();
        for (index, ((node, kind), known_at)) in nodes {
            if kind.is_tensor() || *known_at > level {
                continue;
            }
            let value = |id: NodeId| self.values[id.index()];
            self.values[index] = match *node {
                Node::Literal(value) => value,
                Node::Constant(constant) => self.constants[constant],
                Node::LearningRate => inputs.learning_rate,
                Node::Step => inputs.step as f64,
                Node::Elements => elements as f64,
                Node::ScalarState(scalar) => scalars[scalar],
                Node::Unary(op, a) => scalars::unary(op, value(a)),
                Node::Binary(op, a, b) => scalars::binary(op, value(a), value(b)),
                Node::Where { condition, then, otherwise } => {
                    if value(condition) != 0.0 {
                        value(then)
                    } else {
                        value(otherwise)
                    }
                }
                // A reduction's value is there already; the others are never scalars.
                _ => self.values[index],
            };
            self.rounded[index] = self.values[index] as f32;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

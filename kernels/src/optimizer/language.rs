//! The optimizer language: text that says how weights follow from gradients. `docs/optimizers.md` describes it.
//!
//! Invariants:
//! 1. **Total.** Reading a text takes time and space in proportion to its length, of which no more than [`MAX_BYTES`]
//!    are looked at, and a bounded stack; no text makes it panic.
//! 2. **Checked before it runs.** A [`Program`] has no type error, no unknown name, no state that is read before it is
//!    declared: running one can fail for lengths and numbers given to it, never for what it says.
//! 3. **Errors have a place.** Every [`ProgramError`] names a line and a column of the text.
//! 4. **The graph is the meaning.** What a program computes is its [`Graph`], operation by operation, each of a stated
//!    IEEE 754 rounding; nothing is reassociated, and no other operations are contracted than those that it says.

mod check;
mod error;
mod graph;
mod lexer;
mod parser;
mod syntax;

pub use error::{Place, Problem, ProgramError};
pub use graph::{Binary, Graph, Kind, Node, NodeId, Reduction, Unary};
pub use syntax::Interval;

/// The longest text, in bytes.
pub const MAX_BYTES: usize = 4096;
/// The most numbers, names and operations in a program's expressions.
pub const MAX_NODES: usize = 256;
/// How deep parentheses, calls and signs may be nested: a stack's worth that no formula needs.
pub const MAX_DEPTH: usize = 32;
/// The most state tensors: each takes as much memory as the weights.
pub const MAX_STATES: usize = 8;
/// The most scalar states.
pub const MAX_SCALARS: usize = 16;
/// The most constants.
pub const MAX_CONSTANTS: usize = 64;

/// A program that has been read and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Program {
    constants: Vec<Constant>,
    states: Vec<String>,
    scalars: Vec<ScalarState>,
    assignments: Vec<Assignment>,
    graph: Graph,
}

/// A line that gives something a value: a state, a scalar, the weights, or a `let` that one of these needs.
#[derive(Clone, PartialEq, Debug)]
pub struct Assignment {
    /// The line, from 1.
    pub line: u32,
    /// What is given a value.
    pub name: String,
    /// The value.
    pub node: NodeId,
}

/// A named number that a job may set.
#[derive(Clone, PartialEq, Debug)]
pub struct Constant {
    /// Its name.
    pub name: String,
    /// Its value where the job says nothing.
    pub default: f64,
    /// The values that it may have.
    pub interval: Interval,
}

/// A number that a program keeps for a tensor, from step to step.
#[derive(Clone, PartialEq, Debug)]
pub struct ScalarState {
    /// Its name.
    pub name: String,
    /// Its value before the first step.
    pub initial: f64,
}

impl Program {
    /// Reads and checks a program.
    ///
    /// # Errors
    /// [`ProgramError`] names the first thing that is wrong, and its place.
    pub fn parse(text: &str) -> Result<Self, ProgramError> {
        check::check(&parser::parse(text)?)
    }

    /// The constants, in the text's order.
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// Names of the state tensors, each of one `f32` per element, all zero before the first step.
    pub fn state_tensors(&self) -> &[String] {
        &self.states
    }

    /// The scalar states, each one `f64` per tensor.
    pub fn scalar_states(&self) -> &[ScalarState] {
        &self.scalars
    }

    /// Whether elements depend on one another through `norm`, `sum` or `mean`, so that it runs on whole tensors only.
    pub fn needs_whole_tensor(&self) -> bool {
        self.graph.nodes().iter().any(|(node, _)| matches!(node, Node::Reduce(..) | Node::Elements))
    }

    /// Its assignments, in the text's order.
    pub fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}

#[cfg(test)]
mod tests;

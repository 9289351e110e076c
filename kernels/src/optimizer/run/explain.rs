//! Which line of a program gave a value that is not finite. Nobody asks unless one did.
//!
//! An update writes over the gradient and the old states, and to keep them for this would take a third of an update's time. So
//! the graph is read off again from what is there: old weights, scalars, and new states and weights.
//!
//! Invariants:
//! 1. What a `where` did not choose is not blamed.
//! 2. A `let` whose value followed from what is gone is not blamed, but the line that stored something made of it.

use super::scalars;
use crate::math;
use crate::optimizer::language::{Assignment, Binary, Node, NodeId, Program, Unary};

/// What is known of one element.
pub(super) struct Element<'a> {
    pub(super) weight: f32,
    pub(super) new_weight: f32,
    /// By state tensor.
    pub(super) new_state: &'a [f32],
}

/// The first assignment on the way to a new weight, state or scalar that is not finite; `None` if all are. `rounded` has the
/// scalars by node. Without an element, scalars alone are looked at.
pub(super) fn culprit<'a>(
    program: &'a Program,
    rounded: &[f32],
    element: Option<&Element<'_>>,
) -> Option<&'a Assignment> {
    let graph = program.graph();
    let values = values(program, rounded, element);
    let wrong = |id: &NodeId| values[id.index()].is_some_and(|value| !value.is_finite());
    let results = graph.scalars().iter().chain(graph.states()).copied().chain([graph.weights()]);
    let mut open: Vec<NodeId> = results.filter(wrong).collect();
    let mut blamed = vec![false; values.len()];
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut blamed[id.index()], true) {
            continue;
        }
        match graph.nodes()[id.index()].0 {
            Node::Where { condition, then, otherwise } => {
                let chosen =
                    values[condition.index()].map(|holds| if holds == 1.0 { then } else { otherwise });
                open.extend(chosen.into_iter().filter(wrong));
            }
            node => open.extend(node.operands().filter(wrong)),
        }
    }
    program.assignments().iter().find(|assignment| blamed[assignment.node.index()])
}

/// The value of each node for the element, as f32, where it is known.
fn values(program: &Program, rounded: &[f32], element: Option<&Element<'_>>) -> Vec<Option<f32>> {
    let graph = program.graph();
    let mut values: Vec<Option<f32>> = Vec::with_capacity(rounded.len());
    for (index, ((node, kind), scalar)) in graph.nodes().iter().zip(rounded).enumerate() {
        let found = match (kind.is_tensor(), element) {
            (false, _) => Some(*scalar),
            (true, None) => None,
            (true, Some(element)) => {
                let stored = graph.states().iter().position(|id| id.index() == index);
                match stored.and_then(|state| element.new_state.get(state)) {
                    Some(value) => Some(*value),
                    None if graph.weights().index() == index => Some(element.new_weight),
                    None => tensor(*node, element.weight, &values),
                }
            }
        };
        values.push(found);
    }
    values
}

fn tensor(node: Node, weight: f32, values: &[Option<f32>]) -> Option<f32> {
    let value = |id: NodeId| values[id.index()];
    match node {
        Node::Weights => Some(weight),
        Node::Unary(op, a) => Some(unary(op, value(a)?)),
        Node::Binary(op, a, b) => Some(binary(op, value(a)?, value(b)?)),
        Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
            let (a, c) = (value(a)?, value(addend)?);
            let (a, c) = (if minus_product { -a } else { a }, if minus_addend { -c } else { c });
            Some(a.mul_add(value(b)?, c))
        }
        Node::Where { condition, then, otherwise } => {
            value(if value(condition)? == 1.0 { then } else { otherwise })
        }
        // The gradient and old states are gone; the others are scalars.
        _ => None,
    }
}

fn unary(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Negate => -x,
        Unary::Sqrt => x.sqrt(),
        Unary::Abs => x.abs(),
        Unary::Sign if x > 0.0 => 1.0,
        Unary::Sign if x < 0.0 => -1.0,
        Unary::Sign => x,
        Unary::Exp => math::exp(x),
        Unary::Ln => math::ln(x),
    }
}

/// A quotient of f32 through f64 rounds as the one of f32 does, and so do sums, differences and products.
fn binary(op: Binary, x: f32, y: f32) -> f32 {
    scalars::binary(op, f64::from(x), f64::from(y)) as f32
}

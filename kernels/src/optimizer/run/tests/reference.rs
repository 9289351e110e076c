//! A graph read plainly: each node over the whole tensor, no blocks, no passes, nothing reused.

use super::super::scalars;
use super::bits;
use crate::math;
use crate::optimizer::language::{Binary, Node, NodeId, Program, Reduction, Unary};

pub(super) struct Reference {
    program: Program,
    weights: Vec<f32>,
    states: Vec<Vec<f32>>,
    scalars: Vec<f64>,
    step: u64,
}

enum Value {
    Scalar(f64),
    Tensor(Vec<f32>),
}

impl Reference {
    /// Constants have their defaults.
    pub(super) fn new(program: &Program, weights: &[f32]) -> Self {
        Self {
            program: program.clone(),
            weights: weights.to_vec(),
            states: vec![vec![0.0; weights.len()]; program.state_tensors().len()],
            scalars: program.scalar_states().iter().map(|scalar| scalar.initial).collect(),
            step: 0,
        }
    }

    pub(super) fn step(&mut self, sum: &[f32], rate: f64, divisor: f32) {
        self.step += 1;
        let graph = self.program.graph();
        let mut values: Vec<Value> = Vec::new();
        for (node, kind) in graph.nodes() {
            let scalar = |id: NodeId| match &values[id.index()] {
                Value::Scalar(value) => *value,
                Value::Tensor(_) => panic!("{node:?}"),
            };
            let element = |id: NodeId, index: usize| match &values[id.index()] {
                Value::Scalar(value) => *value as f32,
                Value::Tensor(values) => values[index],
            };
            let value = if kind.is_tensor() {
                let elements = 0..self.weights.len();
                Value::Tensor(
                    elements
                        .map(|i| match *node {
                            Node::Weights => self.weights[i],
                            Node::Gradient => sum[i] / divisor,
                            Node::State(state) => self.states[state][i],
                            Node::Unary(op, a) => unary(op, element(a, i)),
                            Node::Binary(op, a, b) => binary(op, element(a, i), element(b, i)),
                            Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                                let (a, b, c) = (element(a, i), element(b, i), element(addend, i));
                                let (a, c) =
                                    (if minus_product { -a } else { a }, if minus_addend { -c } else { c });
                                a.mul_add(b, c)
                            }
                            Node::Where { condition, then, otherwise } => {
                                element(if element(condition, i) == 1.0 { then } else { otherwise }, i)
                            }
                            _ => panic!("{node:?}"),
                        })
                        .collect(),
                )
            } else {
                Value::Scalar(match *node {
                    Node::Literal(value) => value,
                    Node::Constant(index) => self.program.constants()[index].default,
                    Node::LearningRate => rate,
                    Node::Step => self.step as f64,
                    Node::Elements => self.weights.len() as f64,
                    Node::ScalarState(index) => self.scalars[index],
                    Node::Unary(op, a) => scalars::unary(op, scalar(a)),
                    Node::Binary(op, a, b) => scalars::binary(op, scalar(a), scalar(b)),
                    Node::Where { condition, then, otherwise } => {
                        scalar(if scalar(condition) == 1.0 { then } else { otherwise })
                    }
                    Node::Reduce(reduction, a) => {
                        let terms = (0..self.weights.len()).map(|i| f64::from(element(a, i)));
                        match reduction {
                            Reduction::Sum => total(&terms.collect::<Vec<_>>()),
                            Reduction::SumOfSquares => total(&terms.map(|x| x * x).collect::<Vec<_>>()),
                        }
                    }
                    _ => panic!("{node:?}"),
                })
            };
            values.push(value);
        }
        let tensor = |id: NodeId| match &values[id.index()] {
            Value::Scalar(value) => vec![*value as f32; sum.len()],
            Value::Tensor(values) => values.clone(),
        };
        let scalar = |id: &NodeId| match &values[id.index()] {
            Value::Scalar(value) => *value,
            Value::Tensor(_) => panic!("a scalar state is a tensor"),
        };
        let states = graph.states().iter().map(|id| tensor(*id)).collect();
        let scalars = graph.scalars().iter().map(scalar).collect();
        (self.weights, self.states, self.scalars) = (tensor(graph.weights()), states, scalars);
    }

    /// As `run` in the tests gives them.
    pub(super) fn bits(&self) -> (Vec<u32>, Vec<u64>) {
        let values = self.weights.iter().chain(self.states.iter().flatten()).map(|value| bits(*value));
        let scalars = self.scalars.iter().map(|value| if value.is_nan() { 0 } else { value.to_bits() });
        (values.collect(), scalars.collect())
    }
}

/// As `reduce.rs` says it.
fn total(terms: &[f64]) -> f64 {
    let mut total = 0.0;
    for block in terms.chunks(4096) {
        let mut lanes = [0.0; 16];
        block.iter().enumerate().for_each(|(i, term)| lanes[i % 16] += term);
        for distance in [8, 4, 2, 1] {
            (0..distance).for_each(|lane| lanes[lane] += lanes[lane + distance]);
        }
        total += lanes[0];
    }
    total
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

fn binary(op: Binary, x: f32, y: f32) -> f32 {
    let truth = |holds: bool| f32::from(u8::from(holds));
    match op {
        Binary::Add => x + y,
        Binary::Subtract => x - y,
        Binary::Multiply => x * y,
        Binary::Divide => x / y,
        Binary::Power => panic!("no power of tensors"),
        Binary::Min if x < y || x.is_nan() => x,
        Binary::Max if x > y || x.is_nan() => x,
        Binary::Min | Binary::Max => y,
        Binary::Less => truth(x < y),
        Binary::LessOrEqual => truth(x <= y),
        Binary::Equal => truth(x == y),
        Binary::NotEqual => truth(x != y),
    }
}

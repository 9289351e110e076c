//! A checked program: a typed graph of operations, in an order in which they can be computed.
//!
//! Invariants:
//! 1. A node's operands stand before it.
//! 2. Types hold: what a node's variant says of its operands is so.
//! 3. Every node is needed for a new weight or a new state, and no two are equal.

/// A node, by its place in [`Graph::nodes`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(pub(crate) u16);

impl NodeId {
    /// The node's place in the graph.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a node's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One f64 for the tensor.
    Scalar,
    /// One f32 for each element.
    Tensor,
    /// One truth for the tensor.
    ScalarCondition,
    /// One truth for each element.
    TensorCondition,
}

impl Kind {
    /// Whether there is a value for each element.
    pub fn is_tensor(self) -> bool {
        matches!(self, Self::Tensor | Self::TensorCondition)
    }

    /// Whether it is a truth.
    pub fn is_condition(self) -> bool {
        matches!(self, Self::ScalarCondition | Self::TensorCondition)
    }
}

/// An operation. It gives a scalar if all its operands are scalars, and is then done once, in f64; else it gives a
/// tensor, is done for each element in f32, and its scalar operands are rounded to f32 first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Node {
    /// A number of the text.
    Literal(f64),
    /// A constant, by its place in the program's list.
    Constant(usize),
    /// The learning rate.
    LearningRate,
    /// The step, from 1.
    Step,
    /// How many elements the tensor has.
    Elements,
    /// The old value of a scalar state.
    ScalarState(usize),
    /// The old weights.
    Weights,
    /// The gradient: the sum over the examples, divided by their number.
    Gradient,
    /// The old value of a state tensor.
    State(usize),
    /// An operation on one value.
    Unary(Unary, NodeId),
    /// An operation on two values.
    Binary(Binary, NodeId, NodeId),
    /// The product of the factors, plus the addend, rounded once; either may be subtracted. Always a tensor.
    MulAdd {
        /// At least one is a tensor.
        factors: [NodeId; 2],
        /// What is added.
        addend: NodeId,
        /// The product is subtracted.
        minus_product: bool,
        /// The addend is subtracted.
        minus_addend: bool,
    },
    /// One value where a condition holds, another where not.
    Where {
        /// Of either kind of condition.
        condition: NodeId,
        /// The value where it holds.
        then: NodeId,
        /// The value where it does not.
        otherwise: NodeId,
    },
    /// One scalar out of a tensor.
    Reduce(Reduction, NodeId),
}

/// An operation on one value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // their names say it
pub enum Unary {
    Negate,
    Sqrt,
    Abs,
    /// 1, -1, or the value itself if it is a zero or NaN.
    Sign,
    Exp,
    Ln,
}

/// An operation on two values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // their names say it
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// Of scalars alone.
    Power,
    /// The first if it is less or NaN, else the second.
    Min,
    /// The first if it is greater or NaN, else the second.
    Max,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
}

impl Binary {
    /// Whether it gives a truth.
    pub fn is_comparison(self) -> bool {
        matches!(self, Self::Less | Self::LessOrEqual | Self::Equal | Self::NotEqual)
    }
}

/// How a tensor becomes a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduction {
    /// The sum of the elements.
    Sum,
    /// The sum of their squares.
    SumOfSquares,
}

impl Node {
    /// The node's operands.
    pub fn operands(&self) -> impl Iterator<Item = NodeId> + use<> {
        let operands = match *self {
            Self::Unary(_, a) | Self::Reduce(_, a) => [Some(a), None, None],
            Self::Binary(_, a, b) => [Some(a), Some(b), None],
            Self::MulAdd { factors: [a, b], addend, .. } => [Some(a), Some(b), Some(addend)],
            Self::Where { condition, then, otherwise } => [Some(condition), Some(then), Some(otherwise)],
            _ => [None; 3],
        };
        operands.into_iter().flatten()
    }

    fn map(self, to: impl Fn(NodeId) -> NodeId) -> Self {
        match self {
            Self::Unary(op, a) => Self::Unary(op, to(a)),
            Self::Reduce(op, a) => Self::Reduce(op, to(a)),
            Self::Binary(op, a, b) => Self::Binary(op, to(a), to(b)),
            Self::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                Self::MulAdd { factors: [to(a), to(b)], addend: to(addend), minus_product, minus_addend }
            }
            Self::Where { condition, then, otherwise } => {
                Self::Where { condition: to(condition), then: to(then), otherwise: to(otherwise) }
            }
            leaf => leaf,
        }
    }
}

/// A checked program's operations, and which of them are results.
#[derive(Clone, PartialEq, Debug)]
pub struct Graph {
    pub(crate) nodes: Vec<(Node, Kind)>,
    pub(crate) states: Vec<NodeId>,
    pub(crate) scalars: Vec<NodeId>,
    pub(crate) weights: NodeId,
}

impl Graph {
    /// The operations, operands before those who use them.
    pub fn nodes(&self) -> &[(Node, Kind)] {
        &self.nodes
    }

    /// The operations' names, in the same order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(|index| NodeId(index as u16))
    }

    /// The new value of each state tensor, a tensor.
    pub fn states(&self) -> &[NodeId] {
        &self.states
    }

    /// The new value of each scalar state, a scalar.
    pub fn scalars(&self) -> &[NodeId] {
        &self.scalars
    }

    /// The new weights, a tensor.
    pub fn weights(&self) -> NodeId {
        self.weights
    }

    /// The kind of a node.
    pub fn kind(&self, node: NodeId) -> Kind {
        self.nodes[node.index()].1
    }

    /// Leaves out the nodes that no result needs; where each is then.
    pub(super) fn pruned(self) -> (Self, Vec<Option<NodeId>>) {
        let mut needed = vec![false; self.nodes.len()];
        for root in self.states.iter().chain(&self.scalars).chain([&self.weights]) {
            needed[root.index()] = true;
        }
        for index in (0..self.nodes.len()).rev() {
            if needed[index] {
                self.nodes[index].0.operands().for_each(|operand| needed[operand.index()] = true);
            }
        }
        let (mut moved, mut nodes) = (vec![NodeId(0); needed.len()], Vec::new());
        for (index, (node, kind)) in self.nodes.into_iter().enumerate().filter(|(index, _)| needed[*index]) {
            moved[index] = NodeId(nodes.len() as u16);
            nodes.push((node.map(|operand| moved[operand.index()]), kind));
        }
        let map = |ids: Vec<NodeId>| ids.into_iter().map(|id| moved[id.index()]).collect();
        let graph = Self {
            nodes,
            states: map(self.states),
            scalars: map(self.scalars),
            weights: moved[self.weights.index()],
        };
        let places = needed.into_iter().zip(moved).map(|(needed, place)| needed.then_some(place));
        (graph, places.collect())
    }
}

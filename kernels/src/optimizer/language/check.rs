//! From what a text says to a typed graph, or to the first thing that is wrong with it.
//!
//! Here the one rule of contraction is applied: where a tensor is added to or subtracted from another value, and an
//! operand *is written* as a product that is a tensor, product and sum round once; of two such products the right one
//! is taken. Parentheses around a product change nothing; a name does: what a name stands for has been rounded.

use super::error::{Place, Problem, ProgramError};
use super::graph::{Binary, Graph, Kind, Node, NodeId, Reduction, Unary};
use super::syntax::{Form, Function, Says, Statement, Syntax, is_reserved};
use super::{Assignment, Constant, MAX_CONSTANTS, MAX_SCALARS, MAX_STATES, Program, ScalarState};

/// Checks a program as written.
pub(super) fn check(syntax: &Syntax<'_>) -> Result<Program, ProgramError> {
    let mut checker = Checker::new(syntax);
    let mut weights = None;
    for statement in &syntax.statements {
        if weights.is_some() {
            return Err(statement.place.error(Problem::WeightsLast));
        }
        weights = checker.statement(statement)?;
    }
    let end = syntax.end.unwrap_or(Place { line: 1, column: 1 });
    let weights = weights.ok_or_else(|| end.error(Problem::WeightsLast))?;
    let graph = Graph {
        nodes: checker.nodes,
        states: checker.states.iter().map(|state| state.value).collect(),
        scalars: checker.scalars.iter().map(|scalar| scalar.value).collect(),
        weights,
    };
    let (graph, moved) = graph.pruned();
    let kept = |(place, name, node): (Place, &str, NodeId)| {
        Some(Assignment { line: place.line, name: name.into(), node: moved[node.index()]? })
    };
    Ok(Program {
        constants: checker.constants,
        states: checker.states.into_iter().map(|state| state.name.into()).collect(),
        scalars: (checker.scalars.into_iter().zip(checker.initial))
            .map(|(scalar, initial)| ScalarState { name: scalar.name.into(), initial })
            .collect(),
        assignments: checker.assigned.into_iter().filter_map(kept).collect(),
        graph,
    })
}

/// A state, tensor or scalar, and the value that its name stands for by now.
struct Named<'a> {
    name: &'a str,
    value: NodeId,
    assigned: bool,
}

struct Checker<'a> {
    syntax: &'a Syntax<'a>,
    constants: Vec<Constant>,
    states: Vec<Named<'a>>,
    scalars: Vec<Named<'a>>,
    initial: Vec<f64>,
    lets: Vec<(&'a str, NodeId)>,
    assigned: Vec<(Place, &'a str, NodeId)>,
    nodes: Vec<(Node, Kind)>,
    /// The node of each expression so far.
    lowered: Vec<NodeId>,
}

impl<'a> Checker<'a> {
    fn new(syntax: &'a Syntax<'a>) -> Self {
        Self {
            syntax,
            constants: Vec::new(),
            states: Vec::new(),
            scalars: Vec::new(),
            initial: Vec::new(),
            lets: Vec::new(),
            assigned: Vec::new(),
            nodes: Vec::new(),
            lowered: Vec::new(),
        }
    }

    /// The new weights, if the statement gives them.
    fn statement(&mut self, statement: &Statement<'a>) -> Result<Option<NodeId>, ProgramError> {
        let place = statement.place;
        match &statement.says {
            Says::Constant { name, default, interval, interval_at } => {
                self.declare(place, name)?;
                if !(interval.low < interval.high
                    || interval.low == interval.high && interval.low_included && interval.high_included)
                {
                    return Err(interval_at.error(Problem::EmptyInterval));
                }
                if !interval.holds(*default) {
                    return Err(place.error(Problem::Default { value: *default }));
                }
                few(place, self.constants.len(), MAX_CONSTANTS, "constants")?;
                let (name, default, interval) = (String::from(*name), *default, *interval);
                self.constants.push(Constant { name, default, interval });
            }
            Says::States(names) => {
                for (place, name) in names {
                    self.declare(*place, name)?;
                    few(*place, self.states.len(), MAX_STATES, "state tensors")?;
                    let value = self.node(Node::State(self.states.len()), Kind::Tensor);
                    self.states.push(Named { name, value, assigned: false });
                }
            }
            Says::Scalar { name, initial } => {
                self.declare(place, name)?;
                few(place, self.scalars.len(), MAX_SCALARS, "scalar states")?;
                let value = self.node(Node::ScalarState(self.scalars.len()), Kind::Scalar);
                self.scalars.push(Named { name, value, assigned: false });
                self.initial.push(*initial);
            }
            Says::Let { name, value } => {
                let value = self.lower_to(*value)?;
                self.declare(place, name)?;
                self.lets.push((name, value));
                self.assigned.push((place, name, value));
            }
            Says::Assign { name, value: root } => {
                let value = self.lower_to(*root)?;
                self.assigned.push((place, name, value));
                if *name == "w" {
                    self.kind_is(*root, Kind::Tensor, "the new w")?;
                    return Ok(Some(value));
                }
                let is = |named: &&mut Named<'a>| named.name == *name;
                let (state, scalar) = (self.states.iter_mut().find(is), self.scalars.iter_mut().find(is));
                let (named, tensor) = match (state, scalar) {
                    (Some(state), _) => (state, true),
                    (None, Some(scalar)) => (scalar, false),
                    (None, None) => return Err(place.error(Problem::NotAssignable((*name).into()))),
                };
                if named.assigned {
                    return Err(place.error(Problem::Twice((*name).into())));
                }
                (named.value, named.assigned) = (value, true);
                if tensor {
                    self.kind_is(*root, Kind::Tensor, "a state's new value")?;
                } else {
                    self.kind_is(*root, Kind::Scalar, "a scalar's new value")?;
                }
            }
        }
        Ok(None)
    }

    fn declare(&self, place: Place, name: &str) -> Result<(), ProgramError> {
        let taken = is_reserved(name) || self.lookup(name).is_some();
        if taken { Err(place.error(Problem::Taken(name.into()))) } else { Ok(()) }
    }

    /// What a declared name stands for: a leaf that may not be a node yet, or a node.
    fn lookup(&self, name: &str) -> Option<Result<NodeId, Node>> {
        let named =
            |list: &[Named<'a>]| list.iter().find(|known| known.name == name).map(|known| known.value);
        let known = self.lets.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        if let Some(value) = known.or_else(|| named(&self.states)).or_else(|| named(&self.scalars)) {
            return Some(Ok(value));
        }
        let constant = self.constants.iter().position(|constant| constant.name == name)?;
        Some(Err(Node::Constant(constant)))
    }

    /// The node of an operation: an equal one, if there is one.
    fn node(&mut self, node: Node, kind: Kind) -> NodeId {
        let index = self.nodes.iter().position(|(known, _)| *known == node).unwrap_or_else(|| {
            self.nodes.push((node, kind));
            self.nodes.len() - 1
        });
        NodeId(index as u16)
    }

    fn kind(&self, expression: usize) -> Kind {
        self.nodes[self.lowered[expression].index()].1
    }

    /// Lowers the expressions up to `root`: those of the statement at hand, each after its operands.
    fn lower_to(&mut self, root: usize) -> Result<NodeId, ProgramError> {
        while self.lowered.len() <= root {
            let index = self.lowered.len();
            let node = self.lower(index)?;
            self.lowered.push(node);
        }
        Ok(self.lowered[root])
    }

    fn lower(&mut self, index: usize) -> Result<NodeId, ProgramError> {
        let (place, form) = (self.syntax.expressions[index].place, self.syntax.expressions[index].form);
        match form {
            Form::Number(value) => Ok(self.node(Node::Literal(value), Kind::Scalar)),
            Form::Name("w") => Ok(self.node(Node::Weights, Kind::Tensor)),
            Form::Name("g") => Ok(self.node(Node::Gradient, Kind::Tensor)),
            Form::Name("lr") => Ok(self.node(Node::LearningRate, Kind::Scalar)),
            Form::Name("step") => Ok(self.node(Node::Step, Kind::Scalar)),
            Form::Name(name) => match self.lookup(name) {
                Some(Ok(value)) => Ok(value),
                Some(Err(leaf)) => Ok(self.node(leaf, Kind::Scalar)),
                None => Err(place.error(Problem::Unknown(name.into()))),
            },
            Form::Negate(operand) => self.unary(Unary::Negate, operand),
            Form::Binary(sign, left, right) => self.binary(sign, left, right),
            Form::Call(function, [a, b, c]) => match function {
                Function::Sqrt => self.unary(Unary::Sqrt, a),
                Function::Abs => self.unary(Unary::Abs, a),
                Function::Sign => self.unary(Unary::Sign, a),
                Function::Exp => self.unary(Unary::Exp, a),
                Function::Ln => self.unary(Unary::Ln, a),
                Function::Min => self.arithmetic(Binary::Min, a, b),
                Function::Max => self.arithmetic(Binary::Max, a, b),
                Function::Clamp => {
                    self.number(c, "an operand")?;
                    let above = self.arithmetic(Binary::Max, a, b)?;
                    let kind = joined(self.nodes[above.index()].1, self.kind(c));
                    Ok(self.node(Node::Binary(Binary::Min, above, self.lowered[c]), kind))
                }
                Function::Where => self.choice(a, b, c),
                Function::Sum => self.reduce(Reduction::Sum, a),
                Function::Norm => {
                    let squares = self.reduce(Reduction::SumOfSquares, a)?;
                    Ok(self.node(Node::Unary(Unary::Sqrt, squares), Kind::Scalar))
                }
                Function::Mean => {
                    let sum = self.reduce(Reduction::Sum, a)?;
                    let elements = self.node(Node::Elements, Kind::Scalar);
                    Ok(self.node(Node::Binary(Binary::Divide, sum, elements), Kind::Scalar))
                }
            },
        }
    }

    fn unary(&mut self, op: Unary, operand: usize) -> Result<NodeId, ProgramError> {
        self.number(operand, "an operand")?;
        let kind = self.kind(operand);
        Ok(self.node(Node::Unary(op, self.lowered[operand]), kind))
    }

    fn binary(&mut self, sign: &str, left: usize, right: usize) -> Result<NodeId, ProgramError> {
        match sign {
            "+" | "-" => self.sum(sign == "-", left, right),
            "*" => self.arithmetic(Binary::Multiply, left, right),
            "/" => self.arithmetic(Binary::Divide, left, right),
            "**" => {
                self.kind_is(left, Kind::Scalar, "the base of `**`")?;
                self.kind_is(right, Kind::Scalar, "the exponent of `**`")?;
                self.arithmetic(Binary::Power, left, right)
            }
            "<" => self.arithmetic(Binary::Less, left, right),
            "<=" => self.arithmetic(Binary::LessOrEqual, left, right),
            ">" => self.arithmetic(Binary::Less, right, left),
            ">=" => self.arithmetic(Binary::LessOrEqual, right, left),
            "==" => self.arithmetic(Binary::Equal, left, right),
            _ => self.arithmetic(Binary::NotEqual, left, right),
        }
    }

    fn arithmetic(&mut self, op: Binary, left: usize, right: usize) -> Result<NodeId, ProgramError> {
        self.number(left, "an operand")?;
        self.number(right, "an operand")?;
        let kind = match (op.is_comparison(), joined(self.kind(left), self.kind(right))) {
            (false, kind) => kind,
            (true, Kind::Scalar) => Kind::ScalarCondition,
            (true, _) => Kind::TensorCondition,
        };
        Ok(self.node(Node::Binary(op, self.lowered[left], self.lowered[right]), kind))
    }

    /// `left + right` or `left - right`, with the one contraction.
    fn sum(&mut self, minus: bool, left: usize, right: usize) -> Result<NodeId, ProgramError> {
        let product = |expression: usize| match self.syntax.expressions[expression].form {
            Form::Binary("*", a, b) if self.kind(expression) == Kind::Tensor => {
                Some([self.lowered[a], self.lowered[b]])
            }
            _ => None,
        };
        let (factors, other, minus_product) = match (product(left), product(right)) {
            (_, Some(factors)) => (factors, left, minus),
            (Some(factors), None) => (factors, right, false),
            (None, None) => {
                return self.arithmetic(if minus { Binary::Subtract } else { Binary::Add }, left, right);
            }
        };
        self.number(other, "an operand")?;
        let (addend, minus_addend) = (self.lowered[other], minus && !minus_product);
        Ok(self.node(Node::MulAdd { factors, addend, minus_product, minus_addend }, Kind::Tensor))
    }

    fn choice(&mut self, condition: usize, then: usize, otherwise: usize) -> Result<NodeId, ProgramError> {
        if !self.kind(condition).is_condition() {
            return Err(self.wrong(condition, "the first argument of where", "a comparison"));
        }
        self.number(then, "a value of where")?;
        self.number(otherwise, "a value of where")?;
        let kind = match self.kind(condition) {
            Kind::TensorCondition => Kind::Tensor,
            _ => joined(self.kind(then), self.kind(otherwise)),
        };
        let [condition, then, otherwise] = [condition, then, otherwise].map(|index| self.lowered[index]);
        Ok(self.node(Node::Where { condition, then, otherwise }, kind))
    }

    fn reduce(&mut self, op: Reduction, operand: usize) -> Result<NodeId, ProgramError> {
        self.kind_is(operand, Kind::Tensor, "the argument of norm, sum and mean")?;
        Ok(self.node(Node::Reduce(op, self.lowered[operand]), Kind::Scalar))
    }

    fn number(&self, expression: usize, what: &'static str) -> Result<(), ProgramError> {
        if self.kind(expression).is_condition() {
            return Err(self.wrong(expression, what, "a number"));
        }
        Ok(())
    }

    fn kind_is(&self, expression: usize, kind: Kind, what: &'static str) -> Result<(), ProgramError> {
        let expected = if kind == Kind::Tensor { "a tensor" } else { "a scalar" };
        if self.kind(expression) == kind { Ok(()) } else { Err(self.wrong(expression, what, expected)) }
    }

    fn wrong(&self, expression: usize, what: &'static str, expected: &'static str) -> ProgramError {
        let found = match self.kind(expression) {
            Kind::Scalar => "a scalar",
            Kind::Tensor => "a tensor",
            Kind::ScalarCondition | Kind::TensorCondition => "a comparison, which only where takes",
        };
        self.syntax.expressions[expression].place.error(Problem::Type { what, expected, found })
    }
}

fn joined(a: Kind, b: Kind) -> Kind {
    if a.is_tensor() || b.is_tensor() { Kind::Tensor } else { Kind::Scalar }
}

fn few(place: Place, found: usize, most: usize, what: &'static str) -> Result<(), ProgramError> {
    if found < most { Ok(()) } else { Err(place.error(Problem::TooMany { what, most })) }
}

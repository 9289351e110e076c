//! Operations that are computed together, in one loop, since nobody else reads what is between them.
//!
//! The values are those of the operations one by one, bit for bit; only the way through memory is saved. What is
//! fused is what optimizers are made of: a decayed gradient, an average that follows, an average of squares, a
//! denominator, and a quotient that is taken off.

use crate::optimizer::language::{Binary, Graph, Node, NodeId, Unary};

/// A scalar, and whether its opposite is meant.
pub(super) type Signed = (NodeId, bool);

/// What a node is computed as. Names of fields: `s`, `t` are scalars, the others are tensors.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Form {
    /// By itself.
    Plain,
    /// Within another.
    Absorbed,
    /// `s * x + g`, from the gradient sum.
    Decayed { s: Signed, x: NodeId },
    /// `s * (t * x + y) + z`, where `y` may be the gradient, from its sum.
    Nested { s: Signed, t: Signed, x: NodeId, y: Option<NodeId>, z: NodeId },
    /// `s * (t * x + (u * z + g)) + z`, from the gradient sum: [`Form::Nested`] with a decayed gradient that one other loop
    /// computes for itself, too.
    Ahead { s: Signed, t: Signed, x: NodeId, u: Signed, z: NodeId },
    /// `s * x + (t * y + z)`, where `z` may be the gradient, from its sum.
    Chained { s: Signed, x: NodeId, t: Signed, y: NodeId, z: Option<NodeId> },
    /// `s * x + t * z`, where `x` may be the gradient, from its sum.
    Average { s: Signed, x: Option<NodeId>, t: Signed, z: NodeId },
    /// `z + s * (x - z)`.
    Follow { s: Signed, x: NodeId, z: NodeId },
    /// `(s * x) * x + t * z`.
    Squares { s: Signed, x: NodeId, t: Signed, z: NodeId },
    /// `sqrt(x)`, by `by` and plus `plus` if there are any.
    Root { x: NodeId, by: Option<NodeId>, plus: Option<NodeId> },
    /// `s * (x / y) + z`, or `+ t * z`.
    Quotient { s: Signed, x: NodeId, y: NodeId, t: Option<Signed>, z: NodeId },
    /// The same, by the root of `y`, by `by` if there is one, plus `plus`.
    RootQuotient {
        s: Signed,
        x: NodeId,
        y: NodeId,
        by: Option<NodeId>,
        plus: NodeId,
        t: Option<Signed>,
        z: NodeId,
    },
}

impl Form {
    /// Whether the loop reads the gradient sum.
    pub(super) fn reads_sum(&self) -> bool {
        matches!(
            self,
            Self::Decayed { .. }
                | Self::Nested { y: None, .. }
                | Self::Ahead { .. }
                | Self::Chained { z: None, .. }
                | Self::Average { x: None, .. }
        )
    }

    /// The tensors that the loop reads, each once; `None` for [`Form::Plain`], which reads the node's own operands.
    pub(super) fn tensors(&self) -> Option<[Option<NodeId>; 3]> {
        Some(match *self {
            Self::Plain => return None,
            Self::Absorbed => [None; 3],
            Self::Decayed { x, .. } | Self::Root { x, .. } => [Some(x), None, None],
            Self::Follow { x, z, .. } | Self::Squares { x, z, .. } | Self::Ahead { x, z, .. } => {
                [Some(x), (z != x).then_some(z), None]
            }
            Self::Average { x, z, .. } => [Some(z), x.filter(|x| *x != z), None],
            Self::Quotient { x, y, z, .. } | Self::RootQuotient { x, y, z, .. } => once(x, Some(y), Some(z)),
            Self::Nested { x, y, z, .. } => once(x, y, Some(z)),
            Self::Chained { x, y, z, .. } => once(x, Some(y), z),
        })
    }
}

fn once(a: NodeId, b: Option<NodeId>, c: Option<NodeId>) -> [Option<NodeId>; 3] {
    [Some(a), b.filter(|b| *b != a), c.filter(|c| *c != a && Some(*c) != b)]
}

/// The form of every node, where `inner` says of which nodes exactly one other node makes use, once, and nothing else, and
/// `shared` of which exactly two do.
pub(super) fn forms(graph: &Graph, needed: &[bool], inner: &[bool], shared: &[bool]) -> Vec<Form> {
    let mut fuser = Fuser { graph, inner, forms: vec![Form::Plain; needed.len()] };
    for index in (0..needed.len()).filter(|index| needed[*index]) {
        if let Some((form, absorbed)) = fuser.form(graph.nodes()[index].0) {
            fuser.forms[index] = form;
            for node in absorbed.into_iter().flatten() {
                fuser.forms[node.index()] = Form::Absorbed;
            }
        }
    }
    for index in (0..needed.len()).filter(|index| needed[*index] && shared[*index]) {
        fuser.decay_twice(index, needed);
        fuser.divide_twice(index, needed);
    }
    fuser.forms
}

/// The nodes that are computed within another.
type Absorbed = [Option<NodeId>; 3];

struct Fuser<'a> {
    graph: &'a Graph,
    inner: &'a [bool],
    forms: Vec<Form>,
}

impl Fuser<'_> {
    fn form(&self, node: Node) -> Option<(Form, Absorbed)> {
        match node {
            Node::Binary(op @ (Binary::Divide | Binary::Add), a, b) => {
                let (a, b) = if op == Binary::Add && self.is_scalar(a) { (b, a) } else { (a, b) };
                self.root(op, a, b)
            }
            Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                let (a, b) = if self.is_scalar(b) { (b, a) } else { (a, b) };
                if self.is_scalar(a) {
                    self.with_scalar((a, minus_product), b, addend, minus_addend)
                } else {
                    let product = |m, y| self.squares(m, y, addend, minus_product, minus_addend);
                    product(a, b).or_else(|| product(b, a))
                }
            }
            _ => None,
        }
    }

    /// `a / b` or `a + b`.
    fn root(&self, op: Binary, a: NodeId, b: NodeId) -> Option<(Form, Absorbed)> {
        if !self.is_scalar(b) || !self.inner[a.index()] {
            return None;
        }
        let (x, by) = match (self.graph.nodes()[a.index()].0, self.forms[a.index()]) {
            (Node::Unary(Unary::Sqrt, x), Form::Plain) => (x, None),
            (_, Form::Root { x, by, plus: None }) => (x, by),
            _ => return None,
        };
        match (op, by) {
            (Binary::Add, by) => Some((Form::Root { x, by, plus: Some(b) }, [Some(a), None, None])),
            (_, None) => Some((Form::Root { x, by: Some(b), plus: None }, [Some(a), None, None])),
            _ => None,
        }
    }

    /// `s * b + addend`.
    fn with_scalar(
        &self,
        s: Signed,
        b: NodeId,
        addend: NodeId,
        minus_addend: bool,
    ) -> Option<(Form, Absorbed)> {
        if self.is_scalar(addend) {
            return None;
        }
        let is_gradient = self.graph.nodes()[addend.index()].0 == Node::Gradient;
        if is_gradient && self.inner[addend.index()] && !minus_addend {
            return Some((Form::Decayed { s, x: b }, [Some(addend), None, None]));
        }
        if let (Some((t, x, y)), false) = (self.scaled_sum(b), minus_addend) {
            return Some((Form::Nested { s, t, x, y, z: addend }, [Some(b), None, None]));
        }
        if let (Some((t, y, z)), false) = (self.scaled_sum(addend), minus_addend) {
            return Some((Form::Chained { s, x: b, t, y, z }, [Some(addend), None, None]));
        }
        match self.absorbable(b) {
            Some(Node::Binary(Binary::Subtract, x, y))
                if y == addend && !minus_addend && !self.is_scalar(x) =>
            {
                Some((Form::Follow { s, x, z: addend }, [Some(b), None, None]))
            }
            Some(Node::Binary(Binary::Divide, x, y)) if !self.is_scalar(x) && !self.is_scalar(y) => {
                let (t, z, product) = match self.scaled(addend) {
                    Some((t, z)) => (Some((t, minus_addend)), z, Some(addend)),
                    None if minus_addend => return None,
                    None => (None, addend, None),
                };
                Some(match self.forms[y.index()] {
                    Form::Root { x: v, by, plus: Some(plus) } if self.inner[y.index()] => {
                        (Form::RootQuotient { s, x, y: v, by, plus, t, z }, [Some(b), product, Some(y)])
                    }
                    _ => (Form::Quotient { s, x, y, t, z }, [Some(b), product, None]),
                })
            }
            _ => {
                let (t, z) = self.scaled(addend)?;
                let t = (t, minus_addend);
                (z != b).then_some((Form::Average { s, x: Some(b), t, z }, [Some(addend), None, None]))
            }
        }
    }

    /// `m * y + addend`.
    fn squares(
        &self,
        m: NodeId,
        y: NodeId,
        addend: NodeId,
        minus_product: bool,
        minus_addend: bool,
    ) -> Option<(Form, Absorbed)> {
        let ((s, x), (t, z)) = (self.scaled(m)?, self.scaled(addend)?);
        let form = Form::Squares { s: (s, minus_product), x, t: (t, minus_addend), z };
        (x == y && m != addend).then_some((form, [Some(m), Some(addend), None]))
    }

    /// A decayed gradient that two nodes read is computed within both, if their loops have room for it: a quotient more for each
    /// element costs less than a loop, which the way through memory bounds.
    fn decay_twice(&mut self, decayed: usize, needed: &[bool]) {
        let Form::Decayed { s: u, x: y } = self.forms[decayed] else { return };
        let mut within = Vec::new();
        for index in (decayed + 1..needed.len()).filter(|index| needed[*index]) {
            let form = match (self.forms[index], self.graph.nodes()[index].0) {
                (Form::Nested { s, t, x, y: Some(inner), z }, _)
                    if inner.index() == decayed && z == y && x.index() != decayed =>
                {
                    Form::Ahead { s, t, x, u, z }
                }
                (
                    Form::Plain,
                    Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend: false },
                ) if addend.index() == decayed => {
                    let (a, b) = if self.is_scalar(b) { (b, a) } else { (a, b) };
                    if !self.is_scalar(a) || b.index() == decayed {
                        return;
                    }
                    Form::Chained { s: (a, minus_product), x: b, t: u, y, z: None }
                }
                _ => continue,
            };
            within.push((index, form));
        }
        // Otherwise somebody else reads it, too.
        if let [_, _] = within[..] {
            within.into_iter().for_each(|(index, form)| self.forms[index] = form);
            self.forms[decayed] = Form::Absorbed;
        }
    }

    /// The same for the gradient itself, where two averages read it.
    fn divide_twice(&mut self, gradient: usize, needed: &[bool]) {
        if self.graph.nodes()[gradient].0 != Node::Gradient {
            return;
        }
        let averages: Vec<usize> = (gradient + 1..needed.len())
            .filter(|index| needed[*index])
            .filter(|index| matches!(self.forms[*index], Form::Average { x: Some(x), .. } if x.index() == gradient))
            .collect();
        if let [_, _] = averages[..] {
            for index in averages {
                if let Form::Average { x, .. } = &mut self.forms[index] {
                    *x = None;
                }
            }
        }
    }

    /// `t`, `x` and `y` of a sum `t * x + y` that can be absorbed, without `y` where it is the gradient.
    fn scaled_sum(&self, node: NodeId) -> Option<(Signed, NodeId, Option<NodeId>)> {
        match (self.forms[node.index()], self.graph.nodes()[node.index()].0) {
            _ if !self.inner[node.index()] => None,
            (Form::Decayed { s, x }, _) => Some((s, x, None)),
            (Form::Plain, Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend: false }) => {
                let (a, b) = if self.is_scalar(b) { (b, a) } else { (a, b) };
                let fits = self.is_scalar(a) && !self.is_scalar(addend);
                fits.then_some(((a, minus_product), b, Some(addend)))
            }
            _ => None,
        }
    }

    /// The scalar and the tensor of a product that can be absorbed.
    fn scaled(&self, node: NodeId) -> Option<(NodeId, NodeId)> {
        match self.absorbable(node)? {
            Node::Binary(Binary::Multiply, a, b) if self.is_scalar(a) => Some((a, b)),
            Node::Binary(Binary::Multiply, a, b) if self.is_scalar(b) => Some((b, a)),
            _ => None,
        }
    }

    fn absorbable(&self, node: NodeId) -> Option<Node> {
        let free = self.inner[node.index()] && self.forms[node.index()] == Form::Plain;
        free.then(|| self.graph.nodes()[node.index()].0)
    }

    fn is_scalar(&self, node: NodeId) -> bool {
        !self.graph.kind(node).is_tensor()
    }
}

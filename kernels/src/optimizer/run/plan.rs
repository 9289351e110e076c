//! From a graph to passes of instructions over blocks.
//!
//! Invariants:
//! 1. A program with reductions takes one pass for each level at which one reduction needs another's value, and a last
//!    one that stores; without, the last one alone. A pass computes again what it needs of tensors.
//! 2. An instruction writes over a value only if nobody reads that value later in the pass; if it is one of its own
//!    operands, then of an operation whose loop can work in place, and only once.
//! 3. The new weights are written where the gradient sum stands only after the sum has been read last.
//! 4. Temporaries are reused as soon as their value has been read last.

use super::fuse::{Form, Signed, forms};
use super::instruction::{Feed, Instruction, Operand, Operation, Pass, Seat};
use crate::optimizer::language::{Graph, Node, NodeId, Reduction};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Plan {
    pub(super) passes: Vec<Pass>,
    /// How many passes must be over before a node's value can be known, by node.
    pub(super) levels: Vec<usize>,
    /// How many temporaries the passes take.
    pub(super) temporaries: usize,
}

impl Plan {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut levels: Vec<usize> = Vec::with_capacity(graph.nodes().len());
        for (node, _) in graph.nodes() {
            let operands = node.operands().map(|operand| levels[operand.index()]).max().unwrap_or(0);
            levels.push(operands + usize::from(matches!(node, Node::Reduce(..))));
        }
        let last = levels.iter().copied().max().unwrap_or(0);
        let built: Vec<(Pass, usize)> =
            (0..=last).map(|level| Builder::new(graph, &levels, level).build(level == last)).collect();
        let temporaries = built.iter().map(|(_, temporaries)| *temporaries).max().unwrap_or(0);
        Self { passes: built.into_iter().map(|(pass, _)| pass).collect(), levels, temporaries }
    }

    /// How many elements a temporary holds.
    pub(super) fn block(&self) -> usize {
        self.passes.iter().map(Pass::block).max().unwrap_or(0)
    }
}

/// Read after every instruction.
const END: usize = usize::MAX;

struct Builder<'a> {
    graph: &'a Graph,
    feeds: Vec<(NodeId, Reduction, NodeId)>,
    /// By node: the last node of this pass that reads it, or [`END`]; `None` for those that the pass does not need.
    last_use: Vec<Option<usize>>,
    forms: Vec<Form>,
    /// The last node that reads the gradient sum itself, where the new weights will stand.
    sum_read: usize,
    seats: Vec<Seat>,
    free: Vec<usize>,
    temporaries: usize,
    instructions: Vec<Instruction>,
    /// Copies to make when everything is computed.
    copies: Vec<(Operand, Seat)>,
}

impl<'a> Builder<'a> {
    fn new(graph: &'a Graph, levels: &[usize], level: usize) -> Self {
        let feeds = (graph.nodes().iter().enumerate())
            .filter(|(index, _)| levels[*index] == level + 1)
            .filter_map(|(index, (node, _))| match *node {
                Node::Reduce(reduction, operand) => Some((NodeId(index as u16), reduction, operand)),
                _ => None,
            })
            .collect();
        let nodes = graph.nodes().len();
        Self {
            graph,
            feeds,
            last_use: vec![None; nodes],
            forms: vec![Form::Plain; nodes],
            sum_read: 0,
            seats: vec![Seat::Weights; nodes],
            free: Vec::new(),
            temporaries: 0,
            instructions: Vec::new(),
            copies: Vec::new(),
        }
    }

    fn build(mut self, stores: bool) -> (Pass, usize) {
        for (_, _, operand) in &self.feeds {
            self.last_use[operand.index()] = Some(END);
        }
        let mut targets = Vec::new();
        if stores {
            let states = self.graph.states().iter().enumerate();
            targets.extend(states.map(|(index, node)| (*node, Seat::State(index))));
            targets.push((self.graph.weights(), Seat::Out));
            for (node, _) in &targets {
                // A value that is stored counts as read by itself at least.
                self.last_use[node.index()].get_or_insert(node.index());
            }
        }
        let roots = self.last_use.clone();
        self.mark_uses();
        self.fuse(&roots);
        self.last_use = roots;
        self.mark_uses();
        self.leaves(&mut targets);
        for index in 0..self.graph.nodes().len() {
            if self.last_use[index].is_some() {
                self.operation(index, &mut targets);
            }
        }
        for (from, to) in std::mem::take(&mut self.copies) {
            self.emit(to, Operation::Copy(from));
        }
        let feeds = (self.feeds.iter())
            .map(|(node, reduction, operand)| Feed {
                reduction: *reduction,
                from: self.seats[operand.index()],
                node: *node,
            })
            .collect();
        (Pass { instructions: self.instructions, feeds }, self.temporaries)
    }

    /// Finds what can be computed together.
    fn fuse(&mut self, roots: &[Option<usize>]) {
        let needed: Vec<bool> = self.last_use.iter().map(Option::is_some).collect();
        let mut readers = vec![0; needed.len()];
        for index in (0..needed.len()).filter(|index| needed[*index]) {
            self.tensors(index).for_each(|operand| readers[operand.index()] += 1);
        }
        let read_by = |times| -> Vec<bool> {
            readers.iter().zip(roots).map(|(readers, root)| *readers == times && root.is_none()).collect()
        };
        self.forms = forms(self.graph, &needed, &read_by(1), &read_by(2));
        self.sum_read = self.forms.iter().rposition(Form::reads_sum).unwrap_or(0);
    }

    fn mark_uses(&mut self) {
        for index in (0..self.graph.nodes().len()).rev() {
            if self.last_use[index].is_none() || !self.graph.nodes()[index].1.is_tensor() {
                continue;
            }
            for operand in self.tensors(index) {
                let last = self.last_use[operand.index()].get_or_insert(index);
                *last = (*last).max(index);
            }
        }
    }

    /// Seats for what is there before the pass, and copies for what is stored without being computed here.
    fn leaves(&mut self, targets: &mut Vec<(NodeId, Seat)>) {
        for index in 0..self.graph.nodes().len() {
            match self.graph.nodes()[index].0 {
                Node::State(state) => self.seats[index] = Seat::State(state),
                Node::Gradient if self.last_use[index].is_some() => {
                    self.seats[index] = self.fresh();
                    self.emit(self.seats[index], Operation::Gradient);
                }
                _ => {}
            }
        }
        let graph = self.graph;
        let (mut old, mut copies) = (Vec::new(), Vec::new());
        targets.retain(|(node, to)| {
            match graph.nodes()[node.index()].0 {
                Node::State(state) if *to == Seat::State(state) => {}
                // Its seat may be written over before the end.
                Node::State(_) => old.push((*node, *to)),
                Node::Weights | Node::Gradient => copies.push((*node, *to)),
                _ => return true,
            }
            false
        });
        for (node, to) in old {
            let temporary = self.fresh();
            self.emit(temporary, Operation::Copy(Operand::Tensor(self.seats[node.index()])));
            self.copies.push((Operand::Tensor(temporary), to));
        }
        for (node, to) in copies {
            self.last_use[node.index()] = Some(END);
            self.copies.push((self.operand(node, false), to));
        }
    }

    fn operation(&mut self, index: usize, targets: &mut Vec<(NodeId, Seat)>) {
        let (node, kind) = self.graph.nodes()[index];
        let (false, true) =
            (matches!(node, Node::State(_) | Node::Gradient | Node::Weights), kind.is_tensor())
        else {
            return;
        };
        let of_this = |(target, _): &(NodeId, Seat)| target.index() == index;
        let direct = targets.iter().position(|target| of_this(target) && self.may_write(index, target.1));
        let direct = direct.map(|position| targets.swap_remove(position).1);
        let others: Vec<Seat> = targets.iter().filter(|target| of_this(target)).map(|(_, to)| *to).collect();
        targets.retain(|target| !of_this(target));
        if !others.is_empty() {
            self.last_use[index] = Some(END);
        }
        let dying: Vec<Seat> = self.dying(index);
        let in_place = dying.iter().copied().find(|seat| self.may_write(index, *seat));
        let operation = self.fused(self.forms[index]).unwrap_or_else(|| self.lowered(node));
        let to = direct.or(in_place).unwrap_or_else(|| self.fresh());
        self.emit(to, operation);
        self.seats[index] = to;
        self.free.extend(dying.iter().filter(|seat| **seat != to).filter_map(|seat| match seat {
            Seat::Temporary(temporary) => Some(*temporary),
            _ => None,
        }));
        self.copies.extend(others.into_iter().map(|other| (Operand::Tensor(to), other)));
    }

    /// Temporaries that are read here for the last time, each once.
    fn dying(&self, index: usize) -> Vec<Seat> {
        let mut dying = Vec::new();
        for operand in self.tensors(index) {
            let seat = self.seats[operand.index()];
            let last = self.last_use[operand.index()] == Some(index);
            if last && matches!(seat, Seat::Temporary(_)) && !dying.contains(&seat) {
                dying.push(seat);
            }
        }
        dying
    }

    /// The tensors that a node's loop reads, as often as it has them for operands.
    fn tensors(&self, index: usize) -> impl Iterator<Item = NodeId> + use<'a> {
        let (graph, fused) = (self.graph, self.forms[index].tensors());
        let plain = fused.is_none().then(|| graph.nodes()[index].0.operands()).into_iter().flatten();
        let all = plain.chain(fused.into_iter().flatten().flatten());
        all.filter(|operand| graph.kind(*operand).is_tensor())
    }

    /// Whether a node's value may be written to a seat while the node is computed (invariant 2).
    fn may_write(&self, index: usize, seat: Seat) -> bool {
        let is_own = |node: NodeId| self.seats[node.index()] == seat;
        let in_place = match (self.forms[index], self.graph.nodes()[index].0) {
            (Form::Plain, Node::Unary(..) | Node::MulAdd { .. }) | (Form::Root { .. }, _) => true,
            (Form::Plain, Node::Binary(op, ..)) => !op.is_comparison(),
            (Form::Chained { x, y, z, .. }, _) => is_own(x) && !is_own(y) && !z.is_some_and(is_own),
            (Form::Follow { x, z, .. } | Form::Squares { x, z, .. }, _) => is_own(z) && !is_own(x),
            (Form::Average { x, z, .. }, _) => is_own(z) && !x.is_some_and(is_own),
            _ => false,
        };
        let own = self.tensors(index).filter(|operand| self.seats[operand.index()] == seat).count();
        let read_later = match seat {
            Seat::State(state) => (self.graph.nodes().iter().zip(&self.last_use)).any(|((node, _), last)| {
                *node == Node::State(state) && last.is_some_and(|last| last > index)
            }),
            // One loop reads the sum and may write in its place.
            Seat::Out if matches!(self.forms[index], Form::Nested { y: None, .. } | Form::Ahead { .. }) => {
                self.sum_read > index
            }
            Seat::Out => self.sum_read >= index,
            _ => false,
        };
        !read_later && (own == 0 || own == 1 && in_place)
    }

    fn operand(&self, node: NodeId, minus: bool) -> Operand {
        if self.graph.kind(node).is_tensor() {
            Operand::Tensor(self.seats[node.index()])
        } else {
            Operand::Scalar(node, minus)
        }
    }

    fn fused(&self, form: Form) -> Option<Operation> {
        let signed = |(node, minus): Signed| self.operand(node, minus);
        let operand = |node| self.operand(node, false);
        Some(match form {
            Form::Plain | Form::Absorbed => return None,
            Form::Decayed { s, x } => Operation::Decayed(signed(s), operand(x)),
            Form::Nested { s, t, x, y, z } => {
                Operation::Nested([s, t].map(signed), [Some(x), y, Some(z)].map(|node| node.map(operand)))
            }
            Form::Ahead { s, t, x, u, z } => Operation::Ahead([s, t, u].map(signed), [x, z].map(operand)),
            Form::Chained { s, x, t, y, z } => {
                Operation::Chained([s, t].map(signed), [Some(x), Some(y), z].map(|node| node.map(operand)))
            }
            Form::Average { s, x, t, z } => {
                Operation::Average([s, t].map(signed), x.map(operand), operand(z))
            }
            Form::Follow { s, x, z } => Operation::Follow(signed(s), [x, z].map(operand)),
            Form::Squares { s, x, t, z } => Operation::Squares([s, t].map(signed), [x, z].map(operand)),
            Form::Root { x, by, plus } => {
                Operation::Root(operand(x), [by, plus].map(|node| node.map(operand)))
            }
            Form::Quotient { s, x, y, t, z } => {
                Operation::Quotient(signed(s), t.map(signed), [x, y, z].map(operand))
            }
            Form::RootQuotient { s, x, y, by, plus, t, z } => Operation::RootQuotient(
                [signed(s), operand(plus)],
                [by.map(operand), t.map(signed)],
                [x, y, z].map(operand),
            ),
        })
    }

    fn lowered(&self, node: Node) -> Operation {
        let operand = |node| self.operand(node, false);
        match node {
            Node::Unary(op, a) => Operation::Unary(op, operand(a)),
            Node::Binary(op, a, b) => Operation::Binary(op, [operand(a), operand(b)]),
            Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                let scalar = |node| !self.graph.kind(node).is_tensor();
                let (a, b) = if scalar(b) { (b, a) } else { (a, b) };
                Operation::MulAdd {
                    operands: [
                        self.operand(a, scalar(a) && minus_product),
                        operand(b),
                        self.operand(addend, scalar(addend) && minus_addend),
                    ],
                    minus_product: minus_product && !scalar(a),
                    minus_addend: minus_addend && !scalar(addend),
                }
            }
            Node::Where { condition, then, otherwise } => {
                Operation::Where([condition, then, otherwise].map(operand))
            }
            // Leaves and scalars are not computed here.
            _ => Operation::Gradient,
        }
    }

    fn fresh(&mut self) -> Seat {
        Seat::Temporary(self.free.pop().unwrap_or_else(|| {
            self.temporaries += 1;
            self.temporaries - 1
        }))
    }

    fn emit(&mut self, to: Seat, operation: Operation) {
        self.instructions.push(Instruction { to, operation });
    }
}

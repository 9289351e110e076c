//! From a graph to passes of instructions.
//!
//! Invariants:
//! 1. A program with reductions takes one pass for each level at which one reduction needs another's value, and a last
//!    one that stores; without, the last one alone. A pass computes again what it needs of tensors, but for what the
//!    last but one keeps for the last (`keep.rs`).
//! 2. A value that several operations read, or that outlives its pass, is a root: computed once, by a chain of instructions
//!    that ends with writing it down. All other values live in the accumulator (`chain.rs`).
//! 3. A root is written over a state, or over the gradient sum, only if no later chain reads what stood there.
//! 4. Slots of temporaries are reused as soon as their value has been read last.

mod chain;
mod keep;

use super::instruction::{Feed, Instruction, Operation, Pass, Scalar, Seat};
use crate::optimizer::language::{Graph, Node, NodeId, Reduction};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Plan {
    pub(super) passes: Vec<Pass>,
    /// How many passes must be over before a node's value can be known, by node.
    pub(super) levels: Vec<usize>,
    /// How many slots the passes take.
    pub(super) slots: usize,
}

impl Plan {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut levels: Vec<usize> = Vec::with_capacity(graph.nodes().len());
        for (node, _) in graph.nodes() {
            let operands = node.operands().map(|operand| levels[operand.index()]).max().unwrap_or(0);
            levels.push(operands + usize::from(matches!(node, Node::Reduce(..))));
        }
        let last = levels.iter().copied().max().unwrap_or(0);
        let kept = keep::kept(graph, &levels, last);
        let built: Vec<(Pass, u16)> =
            (0..=last).map(|level| Builder::new(graph, &levels, level).build(level, last, &kept)).collect();
        let slots = built.iter().map(|(_, slots)| usize::from(*slots)).max().unwrap_or(0);
        Self { passes: built.into_iter().map(|(pass, _)| pass).collect(), levels, slots }
    }
}

/// The reductions that the pass of that level feeds: each with its kind and what it is of.
fn feeds(graph: &Graph, levels: &[usize], level: usize) -> impl Iterator<Item = (NodeId, Reduction, NodeId)> {
    graph.ids().zip(graph.nodes()).filter_map(move |(id, (node, _))| match *node {
        Node::Reduce(reduction, operand) if levels[id.index()] == level + 1 => Some((id, reduction, operand)),
        _ => None,
    })
}

/// Read after every chain.
const END: usize = usize::MAX;

struct Builder<'a> {
    graph: &'a Graph,
    feeds: Vec<(NodeId, Reduction, NodeId)>,
    /// By node: whether its value is computed into the accumulator for one other node, which takes it from there.
    inner: Vec<bool>,
    /// By node: where the pass before has left its value.
    kept: Vec<Option<Seat>>,
    /// By node: the last root whose chain reads it, or [`END`]; `None` for those that the pass does not need.
    last_use: Vec<Option<usize>>,
    /// By node: where its value stands, once that is written down.
    seats: Vec<Option<Seat>>,
    /// The node whose value the accumulator holds, beside the one that is being computed.
    held: Option<NodeId>,
    /// What the next instruction fills the accumulator with.
    load: Option<Seat>,
    free: Vec<u16>,
    slots: u16,
    pass: Pass,
    /// Copies to make when everything is computed.
    copies: Vec<(NodeId, Seat)>,
}

impl<'a> Builder<'a> {
    fn new(graph: &'a Graph, levels: &[usize], level: usize) -> Self {
        let nodes = graph.nodes().len();
        Self {
            graph,
            feeds: feeds(graph, levels, level).collect(),
            inner: vec![false; nodes],
            kept: vec![None; nodes],
            last_use: vec![None; nodes],
            seats: vec![None; nodes],
            held: None,
            load: None,
            free: Vec::new(),
            slots: 0,
            pass: Pass {
                scalars: Vec::new(),
                instructions: Vec::new(),
                feeds: Vec::new(),
                reads_weights: false,
                quotients: Vec::new(),
            },
            copies: Vec::new(),
        }
    }

    fn build(mut self, level: usize, last: usize, kept: &[(NodeId, Seat)]) -> (Pass, u16) {
        let mut targets = Vec::new();
        if level + 1 == last {
            targets.extend(kept);
        }
        if level == last {
            kept.iter().for_each(|(node, seat)| self.kept[node.index()] = Some(*seat));
            let states = self.graph.states().iter().enumerate();
            targets.extend(states.map(|(index, node)| (*node, Seat::state(index))));
            targets.push((self.graph.weights(), Seat::OUT));
        }
        self.uses(&targets);
        self.leaves(&mut targets);
        for id in self.graph.ids() {
            if self.is_computed(id.index()) && !self.inner[id.index()] {
                self.root(id, &mut targets);
            }
        }
        for (node, to) in std::mem::take(&mut self.copies) {
            self.load = self.seats[node.index()];
            self.push(Operation::Keep, [Seat::OUT; 2]);
            self.store(to);
        }
        for (node, reduction, operand) in std::mem::take(&mut self.feeds) {
            let from = self.seat(operand);
            self.pass.feeds.push(Feed { reduction, from, node });
        }
        self.pass.reads_weights = self.reads(Seat::WEIGHTS);
        self.quotients();
        self.ask();
        (self.pass, self.slots)
    }

    /// Finds the instructions that divide by a scalar.
    fn quotients(&mut self) {
        for (index, instruction) in self.pass.instructions.iter().enumerate() {
            let slot = self.slot(instruction.x);
            let divides = instruction.operation == Operation::Divide;
            let scalar = self.pass.scalars.iter().position(|(known, scalar)| {
                divides && Some(*known) == slot && !matches!(scalar, Scalar::Node(_))
            });
            self.pass.quotients.extend(scalar.map(|scalar| (index, scalar)));
        }
    }

    /// Has memory asked for what the pass reads, spread over its instructions: at once would be more than can wait for an answer.
    fn ask(&mut self) {
        let states = Seat::state(0).0..Seat::state(self.graph.states().len()).0;
        let asked: Vec<Seat> =
            std::iter::once(Seat::OUT).chain(states.map(Seat)).filter(|seat| self.reads(*seat)).collect();
        let instructions = self.pass.instructions.len();
        for (index, seat) in asked.iter().enumerate() {
            if let Some(instruction) = self.pass.instructions.get_mut(index * instructions / asked.len()) {
                instruction.ask = Some(*seat);
            }
        }
    }

    fn reads(&self, seat: Seat) -> bool {
        let reads = |instruction: &Instruction| {
            let [x, y] = instruction.operation.reads();
            instruction.load == Some(seat) || (x && instruction.x == seat) || (y && instruction.y == seat)
        };
        self.pass.instructions.iter().any(reads) || self.pass.feeds.iter().any(|feed| feed.from == seat)
    }

    /// Whether this pass computes a tensor for the node.
    fn is_computed(&self, index: usize) -> bool {
        let (node, kind) = self.graph.nodes()[index];
        let is_there = matches!(node, Node::State(_) | Node::Weights) || self.kept[index].is_some();
        kind.is_tensor() && self.last_use[index].is_some() && !is_there
    }

    /// Which nodes are inner ones, and who reads whom last.
    fn uses(&mut self, targets: &[(NodeId, Seat)]) {
        let nodes = self.graph.nodes();
        let mut readers = vec![0; nodes.len()];
        for (_, _, operand) in &self.feeds {
            (self.last_use[operand.index()], readers[operand.index()]) = (Some(END), 2);
        }
        for (node, _) in targets {
            // A value that is stored counts as read by itself at least.
            self.last_use[node.index()].get_or_insert(node.index());
            readers[node.index()] = 2;
        }
        // The root to whose chain a node belongs. Operands stand before those who read them.
        let mut chain: Vec<usize> = (0..nodes.len()).collect();
        for index in (0..nodes.len()).rev().filter(|index| nodes[*index].1.is_tensor()) {
            let Some(last) = self.last_use[index].filter(|_| self.kept[index].is_none()) else { continue };
            self.inner[index] = self.is_computed(index) && readers[index] == 1;
            if self.inner[index] {
                chain[index] = last;
            }
            let mut seen = None;
            for operand in nodes[index].0.operands().filter(|operand| self.graph.kind(*operand).is_tensor()) {
                if seen != Some(operand) {
                    readers[operand.index()] += 1;
                }
                seen = Some(operand);
                let last = self.last_use[operand.index()].get_or_insert(chain[index]);
                *last = (*last).max(chain[index]);
            }
        }
    }

    /// Seats for what is there before the pass, and copies of it.
    fn leaves(&mut self, targets: &mut Vec<(NodeId, Seat)>) {
        let graph = self.graph;
        for ((seat, kept), (node, _)) in self.seats.iter_mut().zip(&self.kept).zip(graph.nodes()) {
            *seat = match node {
                Node::State(state) => Some(Seat::state(*state)),
                Node::Weights => Some(Seat::WEIGHTS),
                _ => *kept,
            };
        }
        let mut old = Vec::new();
        targets.retain(|(node, to)| {
            match graph.nodes()[node.index()].0 {
                Node::Weights => self.copies.push((*node, *to)),
                _ if self.seats[node.index()].is_none() => return true,
                _ if self.seats[node.index()] == Some(*to) => {}
                _ => old.push((*node, *to)),
            }
            false
        });
        // The seat of an old state, or of what was kept, may be written over before the end, so that it is read from a slot from now on.
        for (node, to) in old {
            if self.seats[node.index()].and_then(|seat| self.slot(seat)).is_none() {
                self.load = self.seats[node.index()];
                self.push(Operation::Keep, [Seat::OUT; 2]);
                let slot = self.fresh();
                self.store(slot);
                (self.seats[node.index()], self.last_use[node.index()]) = (Some(slot), Some(END));
            }
            self.copies.push((node, to));
        }
    }

    /// Computes a node, and writes it down.
    fn root(&mut self, node: NodeId, targets: &mut Vec<(NodeId, Seat)>) {
        let index = node.index();
        self.chain(node);
        let direct = targets.iter().position(|(target, to)| *target == node && self.may_write(index, *to));
        let direct = direct.map(|position| targets.swap_remove(position).1);
        let others = targets.iter().filter(|(target, _)| *target == node).map(|(_, to)| (node, *to));
        let copies = self.copies.len();
        self.copies.extend(others);
        if self.copies.len() > copies {
            self.last_use[index] = Some(END);
        }
        for operand in 0..index {
            if self.last_use[operand] == Some(index) {
                self.release(self.seats[operand]);
            }
        }
        let to = direct.unwrap_or_else(|| self.fresh());
        self.store(to);
        self.seats[index] = Some(to);
        self.held = Some(node);
        if self.last_use[index] == Some(index) {
            self.release(Some(to));
        }
    }

    /// Whether the chain of a root may end with writing there (invariant 3).
    fn may_write(&self, root: usize, seat: Seat) -> bool {
        // The one chain that reads the sum is the gradient's, or holds it.
        let reads_sum = seat == Seat::OUT && self.sum_read() > root;
        // The chains that read what stands there itself: not those that read a copy of it.
        let nodes = self.last_use.iter().zip(&self.seats).zip(self.graph.nodes().iter().zip(&self.kept));
        let read_later = nodes
            .filter(|((_, at), ((node, _), kept))| {
                (matches!(node, Node::State(_)) || kept.is_some()) && **at == Some(seat)
            })
            .any(|((last, _), _)| *last > Some(root));
        !reads_sum && !read_later
    }

    /// The root whose chain reads the gradient sum.
    fn sum_read(&self) -> usize {
        let nodes = self.graph.nodes().iter().zip(&self.last_use).enumerate();
        let mut gradient = nodes.filter(|(_, ((node, _), last))| *node == Node::Gradient && last.is_some());
        gradient
            .next()
            .map_or(0, |(index, (_, last))| if self.inner[index] { last.unwrap_or(0) } else { index })
    }

    /// Where a value stands: a slot for a scalar.
    fn seat(&mut self, node: NodeId) -> Seat {
        if let Some(seat) = self.seats[node.index()] {
            return seat;
        }
        let slot = self.scalar(Scalar::Node(node));
        self.seats[node.index()] = Some(slot);
        slot
    }

    /// A slot that holds a scalar throughout the pass.
    fn scalar(&mut self, scalar: Scalar) -> Seat {
        if let Some((slot, _)) = self.pass.scalars.iter().find(|(_, known)| *known == scalar) {
            return self.seat_of(*slot);
        }
        self.pass.scalars.push((self.slots, scalar));
        self.slots += 1;
        self.seat_of(self.slots - 1)
    }

    /// A slot for a temporary.
    fn fresh(&mut self) -> Seat {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.seat_of(slot)
    }

    /// The seat of a slot.
    fn seat_of(&self, slot: u16) -> Seat {
        Seat(Seat::state(self.graph.states().len()).0 + slot)
    }

    /// Which slot a seat is.
    fn slot(&self, seat: Seat) -> Option<u16> {
        seat.0.checked_sub(self.seat_of(0).0)
    }

    fn release(&mut self, seat: Option<Seat>) {
        self.free.extend(seat.and_then(|seat| self.slot(seat)));
    }

    fn push(&mut self, operation: Operation, [x, y]: [Seat; 2]) {
        let slot = self.slot(x);
        let is_scalar = self.pass.scalars.iter().any(|(known, _)| Some(*known) == slot);
        let (load, store, ask) = (self.load.take(), None, None);
        self.pass.instructions.push(Instruction { load, operation, x, y, is_scalar, store, ask });
        self.held = None;
    }

    /// Has the last instruction write the accumulator down.
    fn store(&mut self, to: Seat) {
        if let Some(last) = self.pass.instructions.last_mut() {
            last.store = Some(to);
        }
    }
}

//! A program of the optimizer language as a kernel: one fused pass over the elements, after a pass for each level of
//! reductions if it has any.
//!
//! Invariants:
//! 1. An element's value is the graph's, operation by operation: each node of the graph is one statement of the kernel, and `fmaf`
//!    stands where the graph has a fused operation, nowhere else.
//! 2. Scalars come from the host, rounded to f32 as on the CPU: powers, `exp` and `ln` of f64 have their bits there.
//! 3. What is not finite is found by the pass that makes it: the values are not read again.
//! 4. Reductions feed the lanes of optimizer.cu, element by element in the order of the CPU's.

use std::fmt::Write;

use super::device::{DeviceError, SCALARS};
use super::source::Source;
use crate::optimizer::language::{Binary, Graph, Node, NodeId, Reduction, Unary};
use crate::optimizer::{Optimizer, OptimizerError};

/// The kernels of a program.
#[derive(Clone, Debug)]
pub struct Generated {
    pub(super) source: Source,
    pub(super) name: String,
    /// The scalar nodes that stand in `Scalars`, in order.
    pub(super) scalars: Vec<NodeId>,
    /// By pass but the last: the reductions that it computes, in the order of its sums.
    pub(super) reductions: Vec<Vec<NodeId>>,
}

impl Generated {
    /// The kernels of `optimizer`'s program; their names begin with `name`, letters, digits and underscores.
    ///
    /// # Errors
    /// [`DeviceError::Optimizer`] if more scalars meet tensors than a kernel takes, which no program of the language has.
    pub fn new(name: &str, optimizer: &Optimizer) -> Result<Self, DeviceError> {
        let graph = optimizer.program().graph();
        let mut writer = Writer { graph, scalars: Vec::new(), text: String::new() };
        let mut reductions = Vec::new();
        for level in 0..optimizer.passes().saturating_sub(1) {
            let of_level: Vec<NodeId> = graph
                .ids()
                .filter(|id| optimizer.levels().get(id.index()) == Some(&(level + 1)))
                .filter(|id| matches!(graph.nodes().get(id.index()), Some((Node::Reduce(..), _))))
                .collect();
            writer.reduce(name, level, &of_level);
            reductions.push(of_level);
        }
        writer.update(name);
        let Writer { scalars, text, .. } = writer;
        if scalars.len() > SCALARS {
            let (expected, found) = (SCALARS, scalars.len());
            return Err(OptimizerError::ScalarCount { expected, found }.into());
        }
        let source = Source::generated(&format!("{name}.cu"), &text);
        Ok(Self { source, name: name.into(), scalars, reductions })
    }

    /// The text.
    pub fn source(&self) -> &Source {
        &self.source
    }
}

struct Writer<'a> {
    graph: &'a Graph,
    scalars: Vec<NodeId>,
    text: String,
}

impl Writer<'_> {
    /// A pass that sums: `sums` has a row of blocks for each reduction.
    fn reduce(&mut self, name: &str, level: usize, reductions: &[NodeId]) {
        let operands: Vec<(Reduction, NodeId)> = reductions
            .iter()
            .filter_map(|id| match self.graph.nodes().get(id.index()) {
                Some((Node::Reduce(reduction, operand), _)) => Some((*reduction, *operand)),
                _ => None,
            })
            .collect();
        let roots: Vec<NodeId> = operands.iter().map(|(_, operand)| *operand).collect();
        let states: String =
            self.states().map(|state| format!("const float *__restrict__ state_{state}, ")).collect();
        let zeros: String = (0..operands.len()).fold(String::new(), |mut text, sum| {
            let _ = writeln!(text, "        double sum_{sum} = 0.0;");
            text
        });
        let statements = self.statements(&roots, "            ");
        let (mut adds, mut stores) = (String::new(), String::new());
        for (sum, (reduction, operand)) in operands.iter().enumerate() {
            let value = format!("(double)v{}", operand.index());
            let term = match reduction {
                Reduction::Sum => value,
                Reduction::SumOfSquares => format!("{value} * {value}"),
            };
            let _ = writeln!(adds, "            sum_{sum} = sum_{sum} + {term};");
            let _ = writeln!(
                stores,
                "        sum_{sum} = lanes_to_sum(sum_{sum});
        if (lane == 0 && block < blocks) {{
            sums[{sum} * blocks + block] = sum_{sum};
        }}"
            );
        }
        let _ = write!(
            self.text,
            r#"
extern "C" __global__ void {name}_reduce_{level}(const float *__restrict__ weights, const float *__restrict__ gradient, {states}Scalars s, float divisor, double *__restrict__ sums, u64 elements)
{{
    const u64 blocks = (elements + REDUCTION_BLOCK - 1) / REDUCTION_BLOCK;
    const u64 at_once = blockDim.x / REDUCTION_LANES;
    const u32 lane = threadIdx.x % REDUCTION_LANES;
    // All threads go round as often, also those that have nothing to add: a warp's lanes meet below.
    for (u64 start = blockIdx.x * at_once; start < blocks; start += gridDim.x * at_once) {{
        const u64 block = start + threadIdx.x / REDUCTION_LANES;
        const u64 end = (block + 1) * REDUCTION_BLOCK < elements ? (block + 1) * REDUCTION_BLOCK : elements;
{zeros}        for (u64 i = block * REDUCTION_BLOCK + lane; i < end; i += REDUCTION_LANES) {{
{statements}{adds}        }}
{stores}    }}
}}
"#
        );
    }

    /// The pass that stores: the new weights where the gradient sum was, the new states. `first` becomes the lowest index at which one of
    /// them is not finite, as in aggregate.cu.
    fn update(&mut self, name: &str) {
        let graph = self.graph;
        let roots: Vec<NodeId> = graph.states().iter().copied().chain([graph.weights()]).collect();
        let states: String =
            self.states().map(|state| format!("float *__restrict__ state_{state}, ")).collect();
        let statements = self.statements(&roots, "        ");
        let mut finite = vec![format!("is_finite(v{})", graph.weights().index())];
        let mut stores = String::new();
        for (state, node) in graph.states().iter().enumerate() {
            let _ = writeln!(stores, "        state_{state}[i] = v{};", node.index());
            finite.push(format!("is_finite(v{})", node.index()));
        }
        let _ = writeln!(stores, "        gradient[i] = v{};", graph.weights().index());
        let finite = finite.join(" && ");
        let _ = write!(
            self.text,
            r#"
extern "C" __global__ void {name}_update(const float *__restrict__ weights, float *__restrict__ gradient, {states}Scalars s, float divisor, u64 *first, u64 elements)
{{
    EACH(i, elements) {{
{statements}{stores}        if (!({finite})) {{
            atomicMin(first, i);
        }}
    }}
}}
"#
        );
    }

    fn states(&self) -> std::ops::Range<usize> {
        0..self.graph.states().len()
    }

    /// A statement for each tensor that `roots` need.
    fn statements(&mut self, roots: &[NodeId], indent: &str) -> String {
        let graph = self.graph;
        let mut needed = vec![false; graph.nodes().len()];
        for root in roots {
            needed[root.index()] = true;
        }
        for (index, (node, kind)) in graph.nodes().iter().enumerate().rev() {
            if needed[index] && kind.is_tensor() {
                node.operands().for_each(|operand| needed[operand.index()] = true);
            }
        }
        let mut text = String::new();
        for (index, (node, kind)) in graph.nodes().iter().enumerate() {
            if needed[index] && kind.is_tensor() {
                let kind = if kind.is_condition() { "bool" } else { "float" };
                let value = self.value(node);
                let _ = writeln!(text, "{indent}const {kind} v{index} = {value};");
            }
        }
        text
    }

    fn value(&mut self, node: &Node) -> String {
        match *node {
            Node::Weights => "weights[i]".into(),
            Node::Gradient => "gradient[i] / divisor".into(),
            Node::State(state) => format!("state_{state}[i]"),
            Node::Unary(op, a) => {
                let a = self.operand(a);
                match op {
                    Unary::Negate => format!("-{a}"),
                    Unary::Sqrt => format!("sqrtf({a})"),
                    Unary::Abs => format!("fabsf({a})"),
                    Unary::Sign => format!("{a} > 0.0f ? 1.0f : {a} < 0.0f ? -1.0f : {a}"),
                    Unary::Exp => format!("t_exp({a})"),
                    Unary::Ln => format!("t_ln({a})"),
                }
            }
            Node::Binary(op, a, b) => {
                let (a, b) = (self.operand(a), self.operand(b));
                match op {
                    Binary::Add => format!("{a} + {b}"),
                    Binary::Subtract => format!("{a} - {b}"),
                    Binary::Multiply => format!("{a} * {b}"),
                    Binary::Divide => format!("{a} / {b}"),
                    Binary::Min => format!("{a} < {b} || {a} != {a} ? {a} : {b}"),
                    Binary::Max => format!("{a} > {b} || {a} != {a} ? {a} : {b}"),
                    Binary::Less => format!("{a} < {b}"),
                    Binary::LessOrEqual => format!("{a} <= {b}"),
                    Binary::Equal => format!("{a} == {b}"),
                    Binary::NotEqual => format!("{a} != {b}"),
                    // Of scalars alone.
                    Binary::Power => "0.0f".into(),
                }
            }
            Node::MulAdd { factors: [a, b], addend, minus_product, minus_addend } => {
                let sign = |minus| if minus { "-" } else { "" };
                let [a, b, c] = [a, b, addend].map(|node| self.operand(node));
                format!("fmaf({}{a}, {b}, {}{c})", sign(minus_product), sign(minus_addend))
            }
            Node::Where { condition, then, otherwise } => {
                let is_tensor = self.graph.kind(condition).is_tensor();
                let [c, then, otherwise] = [condition, then, otherwise].map(|node| self.operand(node));
                // A truth of the host is 1 or 0.
                format!("{c}{} ? {then} : {otherwise}", if is_tensor { "" } else { " != 0.0f" })
            }
            // Scalars.
            _ => "0.0f".into(),
        }
    }

    fn operand(&mut self, node: NodeId) -> String {
        if self.graph.kind(node).is_tensor() {
            return format!("v{}", node.index());
        }
        let known = self.scalars.iter().position(|scalar| *scalar == node);
        let place = known.unwrap_or_else(|| {
            self.scalars.push(node);
            self.scalars.len() - 1
        });
        format!("s.value[{place}]")
    }
}

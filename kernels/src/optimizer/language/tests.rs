//! Invariants of the language; what programs compute is held by `run/tests.rs` and `tests/pytorch.rs`.

use proptest::prelude::*;

use super::*;
use crate::optimizer::{Optimizer, Slice, StepInputs, shipped};

fn problem(text: &str) -> (u32, u32, String) {
    match Program::parse(text) {
        Err(error) => (error.place.line, error.place.column, error.problem.to_string()),
        Ok(_) => panic!("{text:?} is a program"),
    }
}

#[test]
fn what_ships_is_sound() {
    for name in shipped::names() {
        let program = shipped::program(name).unwrap().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(program.needs_whole_tensor(), ["lamb", "lars"].contains(&name), "{name}");
        assert!(shipped::text(name).unwrap().starts_with("# "), "{name} names no paper");
        assert!(shipped::text(name).unwrap().lines().all(|line| line.chars().count() <= 130), "{name}");
    }
    let nadam = shipped::program("nadam").unwrap().unwrap();
    assert_eq!(nadam.scalar_states(), [ScalarState { name: "mu_product".into(), initial: 1.0 }]);
    assert!(shipped::program("none").is_none());
}

#[test]
fn declarations_are_kept_in_order() {
    let program = Program::parse(
        "constant a = -1 in [-1, 1]\nconstant b = 2.5e-1 in (0, inf)\nstate x, y\nscalar s = -2\nstate z # more\n\nw = g",
    )
    .unwrap();
    let [a, b] = program.constants() else { panic!("{program:?}") };
    assert_eq!((a.name.as_str(), a.default, a.interval.to_string().as_str()), ("a", -1.0, "[-1, 1]"));
    assert_eq!((b.name.as_str(), b.default, b.interval.to_string().as_str()), ("b", 0.25, "(0, inf)"));
    assert_eq!(program.state_tensors(), ["x", "y", "z"]);
    assert_eq!(program.scalar_states(), [ScalarState { name: "s".into(), initial: -2.0 }]);
}

/// Invariant 3: places that a person would look at.
#[test]
fn errors_point_at_what_is_wrong() {
    for (text, line, column, says) in [
        ("", 1, 1, "ends with `w = ...`"),
        ("# only a comment\n", 2, 1, "ends with `w = ...`"),
        ("let x = g", 1, 10, "ends with `w = ...`"),
        ("w = g\nw = g", 2, 1, "ends with `w = ...`"),
        ("w = g +", 1, 8, "expected a value, found the end of the program"),
        ("w = g + $", 1, 9, "unexpected character '$'"),
        ("w = g + é", 1, 9, "unexpected character 'é'"),
        ("# é\nw = (g + 1\nlet x = 2", 3, 1, "expected `)`, found `let`"),
        ("w = 2x", 1, 5, "\"2x\" is not a number"),
        ("w = 1e999", 1, 5, "\"1e999\" is not a number"),
        ("w = 1.2.3", 1, 5, "\"1.2.3\" is not a number"),
        ("w = g g", 1, 7, "expected the end of the line, found `g`"),
        ("w == g", 1, 3, "expected `=` after the name"),
        ("w = x", 1, 5, "nothing is named \"x\""),
        ("w = velocity\nstate velocity", 1, 5, "nothing is named"),
        ("w = tanh(g)", 1, 5, "there is no function \"tanh\""),
        ("w = sqrt(g, 2)", 1, 5, "sqrt takes 1 arguments, not 2"),
        ("w = where()", 1, 5, "where takes 3 arguments, not 0"),
        ("w = g < 1 < 2", 1, 11, "comparisons do not chain"),
        ("w = g < 1", 1, 7, "the new w must be a tensor, but this is a comparison"),
        ("w = lr", 1, 5, "the new w must be a tensor, but this is a scalar"),
        ("w = 2 * (g < 1)", 1, 12, "an operand must be a number"),
        ("w = where(g, 1, 2)", 1, 11, "must be a comparison, but this is a tensor"),
        ("w = where(g < 1, g > 2, 2)", 1, 20, "a value of where must be a number"),
        ("w = 2 ** g", 1, 10, "the exponent of `**` must be a scalar, but this is a tensor"),
        ("w = g ** 2", 1, 5, "the base of `**` must be a scalar, but this is a tensor"),
        ("w = g * norm(lr)", 1, 14, "must be a tensor, but this is a scalar"),
        ("scalar s = 1\ns = g\nw = g", 2, 5, "a scalar's new value must be a scalar"),
        ("state s\ns = g < 1\nw = g", 2, 7, "a state's new value must be a tensor"),
        ("state s\ns = g\ns = g\nw = g", 3, 1, "\"s\" has been assigned above"),
        ("g = w", 1, 1, "\"g\" cannot be assigned"),
        ("let x = g\nx = w", 2, 1, "\"x\" cannot be assigned"),
        ("constant c = 1 in [0, 2]\nc = w", 2, 1, "\"c\" cannot be assigned"),
        ("let lr = 1", 1, 1, "\"lr\" is taken already"),
        ("state a, b, a", 1, 13, "\"a\" is taken already"),
        ("constant c = 1", 1, 15, "expected `in` and an interval"),
        ("constant c = 1 in [0, 1)", 1, 1, "the default 1 is outside"),
        ("constant c = 1e-60 in (0, 1)", 1, 1, "the default"),
        ("constant c = 1 in [2, 1]", 1, 19, "the interval is empty"),
        ("constant c = 1 in (1, 1]", 1, 19, "the interval is empty"),
        ("constant c = inf in [0, 1]", 1, 14, "expected a number, found `inf`"),
        ("state a, b, c, d, e, f, h, i, j", 1, 31, "at most 8 state tensors"),
        ("= g", 1, 1, "expected a statement"),
    ] {
        let (found_line, found_column, found) = problem(text);
        assert_eq!((found_line, found_column), (line, column), "{text:?}: {found}");
        assert!(found.contains(says), "{text:?}: {found}");
    }
    let error = Program::parse("w = g +\n").unwrap_err();
    assert_eq!(error.to_string(), "line 1, column 8: expected a value, found the end of the line");
}

/// Invariant 1: at the limits and one beyond.
#[test]
fn limits_are_as_stated() {
    let filled = |bytes: usize| format!("w = g\n#{}", "x".repeat(bytes - 7));
    assert!(Program::parse(&filled(MAX_BYTES)).is_ok());
    assert_eq!(problem(&filled(MAX_BYTES + 1)), (2, 4091, "a program has at most 4096 bytes".into()));
    assert_eq!(problem(&"é\n".repeat(1 << 20)).0, 1366);
    let sum = |nodes: usize| format!("w = g{}", "+g".repeat((nodes - 1) / 2));
    assert!(Program::parse(&sum(MAX_NODES - 1)).is_ok());
    assert!(problem(&sum(MAX_NODES + 1)).2.contains("at most 256 numbers"));
    for (open, close) in [("(", ")"), ("-", ""), ("abs(", ")"), ("-(", ")")] {
        let levels = if open == "-(" { MAX_DEPTH / 2 } else { MAX_DEPTH };
        let nested = |depth: usize| format!("w = {}g{}", open.repeat(depth), close.repeat(depth));
        assert!(Program::parse(&nested(levels)).is_ok(), "{open}");
        assert!(problem(&nested(levels + 1)).2.contains("at most 32 deep"), "{open}");
        assert!(problem(&nested(300)).2.contains("at most 32 deep"), "{open}");
    }
    assert!(problem(&format!("w = 2{}", " ** 2".repeat(200))).2.contains("at most 32 deep"));
    let constants: String = (0..=MAX_CONSTANTS).map(|i| format!("constant c{i} = 1 in [0, 1]\n")).collect();
    assert!(problem(&constants).2.contains("at most 64 constants"));
}

fn nodes(text: &str) -> Vec<Node> {
    Program::parse(text).unwrap().graph().nodes().iter().map(|(node, _)| *node).collect()
}

/// Invariant 4: the rule of contraction, and what binds how.
#[test]
fn contraction_follows_what_is_written() {
    let [w, g] = [0, 1].map(NodeId);
    let fused = |factors, addend, minus_product, minus_addend| Node::MulAdd {
        factors,
        addend,
        minus_product,
        minus_addend,
    };
    for (text, last) in [
        ("w = w * g + w", fused([w, g], w, false, false)),
        ("w = w * g - g", fused([w, g], g, false, true)),
        ("w = w - (w * g)", fused([w, g], w, true, false)),
    ] {
        assert_eq!(nodes(text), [Node::Weights, Node::Gradient, last], "{text}");
    }
    // Two products: the right one. A named one is rounded before. A scalar one is a scalar.
    let both = nodes("w = w * w - w * g");
    assert_eq!(both.last(), Some(&fused([w, NodeId(2)], NodeId(1), true, false)));
    let named = nodes("let p = w * g\nw = w + p");
    assert_eq!(named.last(), Some(&Node::Binary(Binary::Add, w, NodeId(2))));
    let scalar = nodes("w = w + lr * step");
    assert!(matches!(scalar.last(), Some(Node::Binary(Binary::Add, ..))));
    // The sign binds tighter than the product, and looser than the power.
    assert!(matches!(nodes("w = -w * g + g").last(), Some(Node::MulAdd { .. })));
    assert!(matches!(nodes("w = -(w * g) + g").last(), Some(Node::Binary(Binary::Add, ..))));
    assert_eq!(
        nodes("w = w + (-2 ** -step)"),
        [
            Node::Weights,
            Node::Literal(2.0),
            Node::Step,
            Node::Unary(Unary::Negate, NodeId(2)),
            Node::Binary(Binary::Power, NodeId(1), NodeId(3)),
            Node::Unary(Unary::Negate, NodeId(4)),
            Node::Binary(Binary::Add, w, NodeId(5)),
        ]
    );
}

/// A state's name means its old value above its assignment, and its new one below; equal operations are one.
#[test]
fn names_mean_what_they_were_given_last() {
    let program = Program::parse("state s\nlet old = s\ns = s + g\nw = old + (s + (old + g))").unwrap();
    let graph = program.graph();
    assert_eq!(graph.nodes().len(), 5);
    let new = graph.states()[0];
    assert_eq!(graph.nodes()[new.index()].0, Node::Binary(Binary::Add, NodeId(0), NodeId(1)));
    assert_eq!(graph.nodes()[3].0, Node::Binary(Binary::Add, new, new));
    assert_eq!(graph.nodes()[4].0, Node::Binary(Binary::Add, NodeId(0), NodeId(3)));
}

/// What is promised of any text.
fn holds(text: &str) {
    match Program::parse(text) {
        Err(ProgramError { place, .. }) => {
            // What follows the last line end is a line too.
            let line = text.split('\n').nth(place.line as usize - 1);
            let line = line.unwrap_or_else(|| panic!("{place:?} is outside {text:?}"));
            assert!(
                (1..=line.chars().count() + 1).contains(&(place.column as usize)),
                "{place:?} in {text:?}"
            );
        }
        Ok(program) => {
            sound(program.graph());
            runs(&program);
        }
    }
}

/// Invariant 2, with numbers at the edge of what is allowed.
fn runs(program: &Program) {
    let mut optimizer = Optimizer::new(program, &[]).unwrap();
    let (mut out, mut state) =
        ([f32::NAN, 1e-45, -3.0], vec![vec![f32::MAX; 3]; program.state_tensors().len()]);
    let mut scalars: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    let inputs = StepInputs { step: u64::MAX, learning_rate: 1e300, divisor: 1e-30 };
    let weights = [0.0, f32::NEG_INFINITY, 2.0];
    let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut state };
    optimizer.update_tensor(inputs, &mut [slice], &mut scalars).unwrap();
    optimizer.update_tensor(inputs, &mut [], &mut scalars).unwrap();
}

/// The graph's own invariants.
fn sound(graph: &Graph) {
    let mut used = vec![false; graph.nodes().len()];
    for (index, (node, kind)) in graph.nodes().iter().enumerate() {
        let kinds: Vec<Kind> = node.operands().map(|operand| graph.kind(operand)).collect();
        assert!(node.operands().all(|operand| operand.index() < index));
        assert!(graph.nodes()[..index].iter().all(|(other, _)| other != node));
        node.operands().for_each(|operand| used[operand.index()] = true);
        let tensor = kinds.iter().any(|kind| kind.is_tensor());
        let numbers = |kinds: &[Kind]| kinds.iter().all(|kind| !kind.is_condition());
        match node {
            Node::Reduce(..) => {
                assert_eq!((kinds.as_slice(), *kind), ([Kind::Tensor].as_slice(), Kind::Scalar))
            }
            Node::MulAdd { .. } => {
                assert!(numbers(&kinds) && kinds[..2].contains(&Kind::Tensor) && *kind == Kind::Tensor)
            }
            Node::Where { .. } => {
                assert!(kinds[0].is_condition() && numbers(&kinds[1..]) && kind.is_tensor() == tensor)
            }
            Node::Binary(Binary::Power, ..) => assert!(!tensor && numbers(&kinds)),
            Node::Unary(..) | Node::Binary(..) => assert!(numbers(&kinds) && kind.is_tensor() == tensor),
            _ => assert!(kinds.is_empty()),
        }
    }
    let roots = graph.states().iter().chain(graph.scalars()).chain([&graph.weights]);
    roots.for_each(|root| used[root.index()] = true);
    assert!(used.iter().all(|used| *used));
}

/// Words that programs are made of, in any order.
fn soup() -> impl Strategy<Value = String> {
    let words = [
        "w",
        "g",
        "lr",
        "step",
        "s",
        "t",
        "c",
        "x",
        "let",
        "state",
        "scalar",
        "constant",
        "in",
        "inf",
        "0",
        "1",
        "2.5",
        "1e-8",
        "+",
        "-",
        "*",
        "/",
        "**",
        "(",
        ")",
        "[",
        "]",
        ",",
        "=",
        "<",
        ">=",
        "==",
        "\n",
        "\n",
        "#",
        "where(",
        "sqrt(",
        "min(",
        "clamp(",
        "norm(",
        "mean(",
        "state s\n",
        "let x =",
        "w = ",
        "\nw = w - lr * ",
        "é",
        " ",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..60)
        .prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// Invariants 1 and 3.
    #[test]
    fn no_text_is_too_much(text in any::<String>(), ascii in "[ -~\n]{0,200}") {
        holds(&text);
        holds(&ascii);
    }

    /// Invariants 1 and 3.
    #[test]
    fn no_soup_is_too_much(text in soup()) {
        holds(&text);
        holds(&format!("state s, t\nlet x = {text}\nw = x"));
    }
}

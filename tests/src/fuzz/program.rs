//! Texts that say how weights follow from gradients.

use testudo_kernels::optimizer::{Slice, StepInputs, shipped};
use testudo_kernels::{Optimizer, OptimizerError, Program};

use super::seeds::Seed;

/// Elements of the tensor that an accepted program is run on, and where it is cut.
const ELEMENTS: usize = 150;
const CUT: usize = 61;

/// An optimizer's program. What is refused has a place in the text; what is accepted runs, gives the same bits however a tensor is
/// cut, and a value that is not finite is laid to one of its lines.
pub fn program(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let lines = text.split('\n').count();
    let program = match Program::parse(text) {
        Ok(program) => program,
        Err(error) => {
            let (line, column) = (error.place.line as usize, error.place.column as usize);
            let of = text.split('\n').nth(line - 1).expect("a line of the text");
            assert!(column >= 1 && column <= of.chars().count() + 1, "{error}");
            return;
        }
    };
    let optimizer = || Optimizer::new(&program, &[]).expect("defaults are in their intervals");
    let cut = run(&mut optimizer(), &[CUT, ELEMENTS - CUT]);
    assert_eq!(run(&mut optimizer(), &[ELEMENTS]), cut, "a cut changes bits");
    let (weights, mut sum) = (numbers(0), numbers(1));
    let mut state = vec![vec![0.0; ELEMENTS]; program.state_tensors().len()];
    let mut scalars: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    let slice = Slice { weights: &weights, gradient_to_weights: &mut sum, state: &mut state };
    let checked = optimizer().update_checked(inputs(1), &mut [slice], &mut scalars);
    match checked {
        Ok(()) => {}
        Err(OptimizerError::NotFinite { element, line, .. }) => {
            assert!((1..=lines).contains(&(line as usize)), "line {line} of {lines}");
            assert!(element.is_none_or(|element| element < ELEMENTS));
        }
        Err(error) => panic!("a checked program was refused: {error}"),
    }
}

fn inputs(step: u64) -> StepInputs {
    StepInputs { step, learning_rate: 0.1, divisor: 8.0 }
}

fn numbers(seed: usize) -> Vec<f32> {
    (0..ELEMENTS).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 16.0 - 3.0).collect()
}

/// The bits of weights, states and scalars after two steps, one for all NaN.
fn run(optimizer: &mut Optimizer, cuts: &[usize]) -> (Vec<u32>, Vec<u64>) {
    let states = optimizer.program().state_tensors().len();
    let mut scalars: Vec<f64> = optimizer.program().scalar_states().iter().map(|s| s.initial).collect();
    let cut = |values: &[f32]| {
        let mut rest = values;
        let mut part = |length: &usize| {
            let (part, after) = rest.split_at(*length);
            rest = after;
            part.to_vec()
        };
        cuts.iter().map(&mut part).collect::<Vec<Vec<f32>>>()
    };
    let mut weights = cut(&numbers(0));
    let mut state: Vec<Vec<Vec<f32>>> =
        weights.iter().map(|part| vec![vec![0.0; part.len()]; states]).collect();
    for step in 1..=2 {
        let mut out = cut(&numbers(step));
        let parts = weights.iter().zip(&mut out).zip(&mut state);
        let mut slices: Vec<Slice<'_>> =
            parts.map(|((weights, out), state)| Slice { weights, gradient_to_weights: out, state }).collect();
        optimizer.update_tensor(inputs(step as u64), &mut slices, &mut scalars).expect("it fits");
        weights = out;
    }
    let bits = |value: &f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    let by_state = (0..states).flat_map(|at| state.iter().flat_map(move |part| part[at].iter()));
    let values = weights.iter().flatten().chain(by_state).map(bits).collect();
    (values, scalars.iter().map(|value| if value.is_nan() { 0 } else { value.to_bits() }).collect())
}

/// What ships, and texts that are almost programs.
pub(super) fn programs() -> Vec<Seed> {
    let shipping = shipped::names().map(|name| (name, shipped::text(name).unwrap_or_default().into()));
    let others = [
        (
            "functions",
            "let a = clamp(g, -1, exp(ln(abs(w) + 1)))\nw = where(sign(a) != 0, min(w, a), max(w, mean(g) ** 2))",
        ),
        ("nested", "w = ((((((((((((((((((((((((((((((((((((w))))))))))))))))))))))))))))))))))))"),
        ("unknown", "state m\nm = m + beta * g # a comment\nw = w - lr * m"),
        ("interval", "constant a = 2 in (0,\n 1]\nw = w * a"),
        ("not-finite", "scalar s = 1e300\nlet q = g / (w - w)\ns = s * s\nw = q"),
    ];
    shipping.chain(others.map(|(name, text)| (name, text.into()))).collect()
}

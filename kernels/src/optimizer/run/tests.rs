//! Invariants of running programs, against the graph read plainly. `tests/by_hand.rs` holds all that ship to loops by hand.

pub(crate) mod random;
mod reference;

use super::blocks::LONGEST;
use super::*;
use crate::optimizer::language::{Problem, ProgramError};
use crate::optimizer::shipped;
use crate::simd::forced;
use proptest::prelude::*;
use reference::Reference;

fn program(name: &str) -> Program {
    shipped::program(name).unwrap().unwrap()
}

/// Bits, with one for all NaN.
fn bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

/// What sums are divided by, step after step: powers of two, whose quotients are computed as products, and another in between.
const DIVISORS: [f32; 4] = [64.0, 30.0, 1.0 / f32::MIN_POSITIVE, 64.0];

/// The reference after these steps.
fn steps(reference: &mut Reference, sums: &[Vec<f32>], rate: f64) {
    sums.iter().zip(DIVISORS.iter().cycle()).for_each(|(sum, divisor)| reference.step(sum, rate, *divisor));
}

/// Weights and state tensors, then scalar states, after some steps on slices cut every `cut` elements.
fn run(
    optimizer: &mut Optimizer,
    start: &[f32],
    sums: &[Vec<f32>],
    rate: f64,
    cut: usize,
) -> (Vec<u32>, Vec<u64>) {
    let program = optimizer.program().clone();
    let mut weights: Vec<Vec<f32>> = start.chunks(cut).map(<[f32]>::to_vec).collect();
    let mut states: Vec<Vec<Vec<f32>>> =
        weights.iter().map(|slice| vec![vec![0.0; slice.len()]; program.state_tensors().len()]).collect();
    let initial: Vec<f64> = program.scalar_states().iter().map(|scalar| scalar.initial).collect();
    let mut scalars = initial.clone();
    // Elementwise programs run slice by slice, each with scalars of its own.
    let mut own = vec![initial; weights.len()];
    for (index, sum) in sums.iter().enumerate() {
        let divisor = DIVISORS[index % DIVISORS.len()];
        let inputs = StepInputs { step: index as u64 + 1, learning_rate: rate, divisor };
        let mut out: Vec<Vec<f32>> = sum.chunks(cut).map(<[f32]>::to_vec).collect();
        let slices = weights.iter().zip(&mut out).zip(&mut states).map(|((weights, out), state)| Slice {
            weights,
            gradient_to_weights: out,
            state,
        });
        if program.needs_whole_tensor() {
            optimizer.update_tensor(inputs, &mut slices.collect::<Vec<_>>(), &mut scalars).unwrap();
        } else {
            for (slice, own) in slices.zip(&mut own) {
                optimizer.update(inputs, slice, own).unwrap();
                scalars.clone_from(own);
            }
        }
        weights = out;
    }
    let states = (0..program.state_tensors().len())
        .flat_map(|tensor| states.iter().flat_map(move |slice| slice[tensor].iter()));
    let values = weights.iter().flatten().chain(states).map(|value| bits(*value)).collect();
    (values, scalars.iter().map(|value| if value.is_nan() { 0 } else { value.to_bits() }).collect())
}

fn numbers(elements: usize, seed: f32) -> Vec<f32> {
    (0..elements).map(|i| (((i as f32 + seed) * 0.377).fract() - 0.5) * 3.0).collect()
}

/// Hard cases for arithmetic, then ordinary numbers.
fn hard(elements: usize, seed: f32) -> Vec<f32> {
    let mut values = numbers(elements, seed);
    let special =
        [0.0, -0.0, 1e-40, -1e-40, f32::MAX, f32::MIN, 1e-20, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for (index, value) in special.into_iter().cycle().enumerate().take(elements / 3) {
        let at = (index * 7 + seed as usize * 3) % elements;
        values[at] = value;
    }
    values
}

/// Invariant 1, for what ships: no cut and no width changes a bit, and all are the graph's.
#[test]
fn neither_slicing_nor_width_changes_bits() {
    for name in shipped::names() {
        let program = program(name);
        let mut optimizer = Optimizer::new(&program, &[]).unwrap();
        let elements = 4096 + 203;
        for make in [numbers, hard] {
            let (start, sums) = (make(elements, 0.0), [1.0, 2.0, 3.0, 4.0].map(|seed| make(elements, seed)));
            let mut reference = Reference::new(&program, &start);
            steps(&mut reference, &sums, 0.01);
            let expected = reference.bits();
            for cut in [elements, 1, 127, 128, 129, 1000, 4096] {
                assert!(run(&mut optimizer, &start, &sums, 0.01, cut) == expected, "{name} cut every {cut}");
            }
            forced::each(|| {
                assert!(
                    run(&mut optimizer, &start, &sums, 0.01, 1500) == expected,
                    "{name} at another width"
                );
            });
        }
    }
}

/// Invariant 1, wherever a slice begins in memory: what stands before the first whole cache line goes in a round of its own.
#[test]
fn no_alignment_changes_bits() {
    for name in ["sgd", "adam", "ftrl"] {
        let program = program(name);
        let mut optimizer = Optimizer::new(&program, &[]).unwrap();
        let elements = 17 * LONGEST + 9;
        let (start, sum) = (hard(elements, 0.0), hard(elements, 1.0));
        let mut reference = Reference::new(&program, &start);
        steps(&mut reference, std::slice::from_ref(&sum), 0.01);
        let expected = reference.bits().0;
        let shifted = |values: &[f32], by: usize| [&vec![0.0; by][..], values].concat();
        for (offset, other) in (0..=16).zip([0, 5, 16].into_iter().cycle()) {
            let (weights, out) = (shifted(&start, offset), shifted(&sum, other));
            forced::each(|| {
                let mut out = out.clone();
                let mut state = vec![vec![0.0; elements]; program.state_tensors().len()];
                let mut scalars: Vec<f64> = program.scalar_states().iter().map(|s| s.initial).collect();
                let (weights, gradient_to_weights) = (&weights[offset..], &mut out[other..]);
                let slice = Slice { weights, gradient_to_weights, state: &mut state };
                let inputs = StepInputs { step: 1, learning_rate: 0.01, divisor: DIVISORS[0] };
                optimizer.update(inputs, slice, &mut scalars).unwrap();
                let found: Vec<u32> =
                    out[other..].iter().chain(state.iter().flatten()).map(|v| bits(*v)).collect();
                assert!(
                    found == expected,
                    "{name}, weights {offset} and gradient {other} elements further on"
                );
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// Invariants 1 and 2, for programs of every shape: the plan's seats and reuse change nothing.
    #[test]
    fn plans_compute_what_graphs_say(
        choices in proptest::collection::vec(any::<u8>(), 10..200),
        elements in 1usize..1200,
        cut in 1usize..1200,
        rate in prop_oneof![Just(0.0), Just(0.1), Just(1e300)],
    ) {
        let text = random::program(&choices);
        let program = match Program::parse(&text) {
            Ok(program) => program,
            Err(ProgramError { problem: Problem::TooManyNodes { .. } | Problem::TooLong { .. }, .. }) => return Ok(()),
            Err(error) => panic!("{error}: {text}"),
        };
        let mut optimizer = Optimizer::new(&program, &[]).unwrap();
        for make in [numbers, hard] {
            let (start, sums) = (make(elements, 0.0), [1.0, 2.0].map(|seed| make(elements, seed)));
            let mut reference = Reference::new(&program, &start);
            steps(&mut reference, &sums, rate);
            let expected = reference.bits();
            prop_assert!(run(&mut optimizer, &start, &sums, rate, cut) == expected, "{text}");
            let mut all = true;
            forced::each(|| all &= run(&mut optimizer, &start, &sums, rate, elements) == expected);
            prop_assert!(all, "at some width: {text}");
        }
    }
}

/// What one operation gives and one other takes never goes through memory: instructions by program, and how many of them
/// write something down.
#[test]
fn values_with_one_reader_stay_in_the_accumulator() {
    for (name, instructions, writes) in
        [("sgd", 3, 1), ("momentum", 4, 2), ("nesterov", 5, 3), ("adam", 12, 5), ("lion", 9, 4)]
    {
        let plan = Plan::new(program(name).graph());
        let [pass] = &plan.passes[..] else { panic!("{name} has one pass") };
        let found = pass.instructions.iter().filter(|instruction| instruction.store.is_some()).count();
        assert_eq!((pass.instructions.len(), found), (instructions, writes), "{name}: {pass:#?}");
    }
    // One pass for norms that do not need one another, and the last.
    let passes = |name: &str| Plan::new(program(name).graph()).passes.len();
    assert_eq!((passes("lars"), passes("lamb")), (2, 2));
    // What a norm was taken of is kept, with the new states: the last pass scales it.
    let plan = Plan::new(program("lamb").graph());
    assert_eq!(plan.passes[1].instructions.len(), 1, "{:#?}", plan.passes[1]);
}

/// Values given to a program of one line, on one element each.
fn one(text: &str, weight: f32, gradient: f32) -> f32 {
    let mut optimizer = Optimizer::new(&Program::parse(text).unwrap(), &[]).unwrap();
    let mut out = [gradient];
    let slice = Slice { weights: &[weight], gradient_to_weights: &mut out, state: &mut [] };
    optimizer.update(StepInputs { step: 3, learning_rate: 0.5, divisor: 1.0 }, slice, &mut []).unwrap();
    out[0]
}

/// What is said of NaN, zeros and rounding.
#[test]
fn special_values() {
    let nan = f32::NAN;
    for text in ["w = min(w, g)", "w = max(w, g)", "w = clamp(w, g, 2)", "w = clamp(w, -2, g)"] {
        assert!(one(text, nan, 1.0).is_nan() && one(text, 1.0, nan).is_nan(), "{text}");
    }
    assert_eq!(
        (one("w = min(w, g)", 0.0, -0.0).to_bits(), one("w = max(w, g)", 0.0, -0.0).to_bits()),
        (1 << 31, 1 << 31)
    );
    assert_eq!((one("w = sign(w)", -3.0, 0.0), one("w = sign(w)", 1e-45, 0.0)), (-1.0, 1.0));
    assert_eq!(one("w = sign(w)", -0.0, 0.0).to_bits(), 1 << 31);
    assert!(one("w = sign(w)", nan, 0.0).is_nan() && one("w = sqrt(w)", -1.0, 0.0).is_nan());
    assert_eq!(one("w = where(w == w, 1, 2)", nan, 0.0), 2.0);
    assert_eq!(one("w = where(w != w, 1, 2)", nan, 0.0), 1.0);
    assert_eq!(one("w = clamp(w, -1, 1)", 7.0, 0.0), 1.0);
    assert_eq!(
        (one("w = ln(w)", 0.0, 0.0), one("w = exp(w)", 200.0, 0.0)),
        (f32::NEG_INFINITY, f32::INFINITY)
    );
    // Scalars are f64 until they meet a tensor: 1/3 here is rounded once.
    assert_eq!(one("w = 0 * w + 1 / 3", 1.0, 0.0), (1.0f64 / 3.0) as f32);
    assert_eq!(one("w = 0 * w + (0.1 + 0.2 - 0.3)", 1.0, 0.0), (0.1f64 + 0.2 - 0.3) as f32);
    assert_eq!(one("w = 0 * w + where(step >= 3, lr, 2 ** step)", 1.0, 0.0), 0.5);
    // Rounded once, where a product and a sum would give zero.
    let third = 1.0f32 / 3.0;
    assert_eq!(one("w = w * 3 - g", third, 1.0), third.mul_add(3.0, -1.0));
    assert_ne!(one("w = w * 3 - g", third, 1.0), 0.0);
    assert_eq!(one("let p = w * 3\nw = p - g", third, 1.0), 0.0);
}

/// Whole tensors: the count of elements, and a reduction of what another gives.
#[test]
fn reductions_see_the_whole_tensor() {
    let text = "let m = mean(g)\nlet spread = sqrt(mean((g - m) * (g - m)))\nw = w - lr * (g - m) / spread + sum(w) - norm(w)";
    let program = Program::parse(text).unwrap();
    let mut optimizer = Optimizer::new(&program, &[]).unwrap();
    let (start, sums) = (vec![3.0f32, 4.0, 0.0, 0.0], [vec![30.0f32, 90.0, 30.0, 90.0]]);
    for cut in [1, 3, 4] {
        let (found, _) = run(&mut optimizer, &start, &sums, 0.5, cut);
        assert_eq!(found, [5.5f32, 5.5, 2.5, 1.5].map(f32::to_bits), "cut every {cut}");
    }
    let inputs = StepInputs { step: 1, learning_rate: 0.5, divisor: 1.0 };
    let slice = Slice { weights: &[1.0], gradient_to_weights: &mut [1.0], state: &mut [] };
    assert_eq!(optimizer.update(inputs, slice, &mut []), Err(OptimizerError::WholeTensor));
    assert_eq!(optimizer.update_tensor(inputs, &mut [], &mut []), Ok(()));
}

/// Constants are checked by name and interval, also as f32.
#[test]
fn constants_are_checked() {
    let adam = program("adam");
    assert!(Optimizer::new(&adam, &[("epsilon", 1e-3), ("beta1", 0.0)]).is_ok());
    for (name, value) in [
        ("epsilon", 0.0),
        ("epsilon", 1e-60),
        ("epsilon", 1e39),
        ("beta1", 1.0),
        ("beta1", 0.999_999_999_9),
        ("beta2", -0.1),
        ("beta2", f64::NAN),
        ("weight_decay", f64::INFINITY),
    ] {
        let refused = Optimizer::new(&adam, &[(name, value)]).unwrap_err();
        assert!(
            matches!(&refused, OptimizerError::Constant { name: found, .. } if found == name),
            "{refused}"
        );
    }
    let unknown = Optimizer::new(&adam, &[("gamma", 1.0)]).unwrap_err();
    assert_eq!(unknown, OptimizerError::UnknownConstant { name: "gamma".into() });
}

/// Invariant 2.
#[test]
fn refusals_change_nothing() {
    let mut optimizer = Optimizer::new(&program("nadam"), &[]).unwrap();
    let mut attempt =
        |step, learning_rate, divisor, gradients: usize, tensors: usize, elements: usize, count: usize| {
            let (mut out, mut state, mut scalars) =
                (vec![1.0; gradients], vec![vec![0.5; elements]; tensors], vec![1.0; count]);
            let slice = Slice { weights: &[1.0; 4], gradient_to_weights: &mut out, state: &mut state };
            let result = optimizer.update(StepInputs { step, learning_rate, divisor }, slice, &mut scalars);
            let same = out.iter().all(|value| *value == 1.0)
                && state.iter().flatten().all(|value| *value == 0.5)
                && scalars.iter().all(|value| *value == 1.0);
            assert_eq!(result.is_err(), same);
            result
        };
    assert_eq!(attempt(1, 0.1, 2.0, 4, 2, 4, 1), Ok(()));
    assert!(attempt(0, 0.1, 2.0, 4, 2, 4, 1).is_err());
    assert!(attempt(1, f64::NAN, 2.0, 4, 2, 4, 1).is_err());
    assert!(attempt(1, 0.1, 0.0, 4, 2, 4, 1).is_err());
    let length =
        |tensor: &str, found| Err(OptimizerError::Length { tensor: tensor.into(), expected: 4, found });
    assert_eq!(attempt(1, 0.1, 2.0, 3, 2, 4, 1), length("gradient", 3));
    assert_eq!(attempt(1, 0.1, 2.0, 4, 2, 5, 1), length("mean", 5));
    assert_eq!(attempt(1, 0.1, 2.0, 4, 1, 4, 1), Err(OptimizerError::StateCount { expected: 2, found: 1 }));
    assert_eq!(attempt(1, 0.1, 2.0, 4, 2, 4, 0), Err(OptimizerError::ScalarCount { expected: 1, found: 0 }));
}

/// What is asked for twice is the same, and looking at values changes none.
#[test]
fn looking_at_values_changes_none() {
    for name in shipped::names() {
        let program = program(name);
        let [mut plain, mut checked] = [(); 2].map(|()| Optimizer::new(&program, &[]).unwrap());
        let elements = LONGEST * 2 + 77;
        let (weights, sum) = (numbers(elements, 0.0), numbers(elements, 1.0));
        let update = |optimizer: &mut Optimizer, looking: bool| {
            let (mut out, mut state) =
                (sum.clone(), vec![vec![0.25; elements]; program.state_tensors().len()]);
            let mut scalars: Vec<f64> = program.scalar_states().iter().map(|s| s.initial).collect();
            let slice = Slice { weights: &weights, gradient_to_weights: &mut out, state: &mut state };
            let inputs = StepInputs { step: 2, learning_rate: 0.1, divisor: 8.0 };
            match looking {
                true => optimizer.update_checked(inputs, &mut [slice], &mut scalars).unwrap(),
                false => optimizer.update_tensor(inputs, &mut [slice], &mut scalars).unwrap(),
            }
            (out, state, scalars)
        };
        assert!(update(&mut plain, false) == update(&mut checked, true), "{name}");
    }
}

/// The line is that of the first assignment on the way to what is not finite, wherever the element is. Invariants 1 and 2 of
/// `explain.rs`.
#[test]
fn what_is_not_finite_is_named_with_its_line() {
    let update = |text: &str, at: usize, weight: f32, gradient: f32, scalar: f64| {
        let mut optimizer = Optimizer::new(&Program::parse(text).unwrap(), &[]).unwrap();
        let states = optimizer.program().state_tensors().len();
        let mut scalars = vec![scalar; optimizer.program().scalar_states().len()];
        let cut = LONGEST + 9;
        let mut weights = [vec![1.0; cut], vec![1.0; 2 * LONGEST]];
        let mut sums = weights.clone();
        let mut state = weights.clone().map(|slice| vec![vec![0.0; slice.len()]; states]);
        let (slice, place) = if at < cut { (0, at) } else { (1, at - cut) };
        (weights[slice][place], sums[slice][place]) = (weight, gradient);
        let ([first, second], [one, two]) = (&mut sums, &mut state);
        let mut slices = [(first, one, &weights[0]), (second, two, &weights[1])]
            .map(|(gradient_to_weights, state, weights)| Slice { weights, gradient_to_weights, state });
        let inputs = StepInputs { step: 1, learning_rate: 0.5, divisor: 1.0 };
        optimizer.update_checked(inputs, &mut slices, &mut scalars)
    };
    let wrong =
        |element, line, name: &str| Err(OptimizerError::NotFinite { element, line, name: name.into() });
    let adam = shipped::text("adam").unwrap();
    assert_eq!(update(adam, 5, 1.0, 1.0, 0.0), Ok(()));
    for at in [0, LONGEST - 1, LONGEST, LONGEST + 9, 3 * LONGEST + 8] {
        assert_eq!(update(adam, at, 1.0, 1e30, 0.0), wrong(Some(at), 9, "variance"), "the square");
    }
    assert_eq!(
        update(adam, 3, 1.0, f32::INFINITY, 0.0),
        wrong(Some(3), 8, "mean"),
        "what stored something of it"
    );
    let guarded = "scalar s = 1\nlet ratio = g / (w - 1)\nlet safe = where(w == 1, 0, ratio)\ns = s * s\nlet u = exp(w)\nw = safe + u";
    assert_eq!(update(guarded, 3, 1.0, 1.0, 1.0), Ok(()), "a quotient by zero that nobody chose");
    assert_eq!(update(guarded, 3, 200.0, 1.0, 1.0), wrong(Some(3), 5, "u"), "and so it is not blamed");
    assert_eq!(update(guarded, 3, 1.0, 1.0, 1e200), wrong(None, 4, "s"));
    let norm = "let n = norm(w)\nw = w / (n - n)";
    assert_eq!(update(norm, 7, 1.0, 1.0, 0.0), wrong(Some(0), 2, "w"));
    let unread = "state s\ns = g * g\nw = w - lr * g";
    assert_eq!(
        update(unread, 7, 1.0, 1e30, 0.0),
        wrong(Some(7), 2, "s"),
        "a state that the weights do not show"
    );
}

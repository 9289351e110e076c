//! Optimizers to compare: those that ship, and programs of every shape.

use crate::cuda::DeviceOptimizer;
use crate::optimizer::{Optimizer, Program, random_program, shipped};

/// One optimizer on either side.
pub(super) struct Pair {
    pub(super) text: String,
    pub(super) host: Optimizer,
    pub(super) device: DeviceOptimizer,
}

impl Pair {
    fn new(name: &str, text: &str, program: &Program) -> Self {
        let host = Optimizer::new(program, &[]).unwrap();
        let device = DeviceOptimizer::new(name, host.clone()).unwrap();
        Self { text: text.into(), host, device }
    }
}

/// All that ship.
pub(super) fn shipped() -> Vec<Pair> {
    let all: Vec<Pair> = shipped::names().map(named).collect();
    assert_eq!(all.len(), 13);
    all
}

/// One that ships.
pub(super) fn named(name: &str) -> Pair {
    Pair::new(name, name, &shipped::program(name).unwrap().unwrap())
}

/// One that keeps sums as they are, in f64: rounding them to f32, as the others do, hides their last bits.
pub(super) fn sums() -> Pair {
    let text =
        "scalar total = 0\nscalar length = 0\ntotal = total + sum(w)\nlength = norm(g * w)\nw = w - lr * g\n";
    Pair::new("sums", text, &Program::parse(text).unwrap())
}

/// Some of every shape, the same ones each time.
pub(super) fn random(count: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for attempt in 0..10 * count as u32 {
        let length = 20 + 9 * (attempt as usize % 20);
        let choices: Vec<u8> = (0..length as u32).map(|at| random_byte(attempt, at)).collect();
        let text = random_program(&choices);
        // Some grow beyond the language's limits.
        if let Ok(program) = Program::parse(&text) {
            pairs.push(Pair::new(&format!("random_{}", pairs.len()), &text, &program));
        }
        if pairs.len() == count {
            return pairs;
        }
    }
    panic!("only {} programs", pairs.len());
}

fn random_byte(attempt: u32, at: u32) -> u8 {
    (super::comparisons::hash(u64::from(attempt) << 32 | u64::from(at)) >> 24) as u8
}

//! Where the arithmetic of this thread stands, for whoever times it from outside.
//!
//! A gradient is a forward pass and a backward pass, an update an aggregation and an optimizer; what is called from outside is both
//! in one. So the one notes here that it is over, and whoever called may ask when that was. Nothing computed depends on it.

use std::cell::Cell;
use std::time::Instant;

thread_local! {
    static OVER: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The first of two stages is over.
pub fn first_is_over() {
    OVER.set(Some(Instant::now()));
}

/// When this thread's first stage was over, if it was since the last call.
pub fn take() -> Option<Instant> {
    OVER.take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, ModelSpec};

    #[test]
    fn a_forward_pass_is_over_before_the_first_gradient() {
        let spec = ModelSpec::Mlp { inputs: 3, hidden: vec![4], classes: 2 };
        let mut model = spec.build(2).unwrap();
        let values: Vec<Vec<f32>> =
            model.parameters().iter().map(|parameter| vec![0.5; parameter.shape.elements()]).collect();
        let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let (begun, mut seen) = (Instant::now(), Vec::new());
        assert_eq!(take(), None);
        model.gradients(&values, Batch::new(&[1.0; 6], &[0, 1]), &mut |_, _| seen.push(take())).unwrap();
        assert_eq!(seen.len(), 4);
        assert!(seen[0].is_some_and(|over| begun <= over && over <= Instant::now()));
        assert!(seen[1..].iter().all(Option::is_none), "once a call");
    }
}

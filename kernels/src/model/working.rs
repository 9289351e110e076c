//! The copy of the weights that a pass computes with (invariant 1 of `precision`).

use super::{ModelError, ParameterSpec};
use crate::layers::buffer;
use crate::precision::{Precision, round_into};

/// Under `bf16`, every parameter of two dimensions or more, rounded. In `f32`, nothing: the parameters are what is read.
#[derive(Debug)]
pub(super) struct Working {
    /// By parameter; empty where the parameter itself is read.
    rounded: Vec<Vec<f32>>,
}

impl Working {
    pub(super) fn new(
        precision: Precision,
        specs: &[ParameterSpec],
        max_examples: usize,
    ) -> Result<Working, ModelError> {
        let rounded = specs.iter().map(|spec| buffer(elements(precision, spec), max_examples));
        Ok(Working { rounded: rounded.collect::<Result<_, _>>()? })
    }

    /// Takes the parameters of the pass that begins.
    pub(super) fn take(&mut self, parameters: &[&[f32]]) {
        for (values, rounded) in parameters.iter().zip(&mut self.rounded) {
            round_into(values, rounded);
        }
    }

    /// What the pass reads of a parameter.
    pub(super) fn at<'a>(&'a self, parameters: &[&'a [f32]], index: usize) -> &'a [f32] {
        match self.rounded.get(index) {
            Some(rounded) if !rounded.is_empty() => rounded,
            _ => parameters.get(index).copied().unwrap_or_default(),
        }
    }
}

/// Numbers of all copies.
pub(super) fn working_elements(precision: Precision, specs: &[ParameterSpec]) -> usize {
    specs.iter().map(|spec| elements(precision, spec)).fold(0, usize::saturating_add)
}

/// Numbers of a parameter's copy.
fn elements(precision: Precision, spec: &ParameterSpec) -> usize {
    match precision {
        Precision::Bf16 if spec.shape.dims().len() > 1 => spec.shape.elements(),
        _ => 0,
    }
}

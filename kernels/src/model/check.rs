//! What every model checks before any arithmetic (invariant 4 of `model`).

use super::{Batch, Model, ModelError};

/// Whether parameters and a labelled batch have the lengths and labels that the model calls for.
pub(crate) fn check_batch(
    model: &dyn Model,
    max_examples: usize,
    parameters: &[&[f32]],
    batch: Batch<'_>,
) -> Result<(), ModelError> {
    check_parameters(model, parameters)?;
    let (labels, targets) = (batch.labels.len(), model.targets().max(1));
    let examples = labels / targets;
    if labels % targets != 0 {
        return Err(ModelError::Targets { labels, targets });
    }
    if examples > max_examples {
        return Err(ModelError::TooManyExamples { examples, max_examples });
    }
    let (expected, found) = (examples.saturating_mul(model.input_elements()), batch.inputs.len());
    if expected != found {
        return Err(ModelError::InputLength { labels, expected, found });
    }
    let classes = model.classes();
    match batch.labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes) {
        Some((at, &label)) => Err(ModelError::Label { example: at / targets, label, classes }),
        None => Ok(()),
    }
}

/// Whether parameters, inputs and the room for answers have the lengths that the model calls for; how many examples
/// there are.
pub(crate) fn check_inputs(
    model: &dyn Model,
    max_examples: usize,
    parameters: &[&[f32]],
    inputs: &[f32],
    out: &[f32],
) -> Result<usize, ModelError> {
    check_parameters(model, parameters)?;
    let (features, classes) = (model.input_elements(), model.classes());
    let examples = inputs.len() / features.max(1);
    if examples > max_examples {
        return Err(ModelError::TooManyExamples { examples, max_examples });
    }
    if inputs.len() != examples * features || out.len() != examples * classes {
        return Err(ModelError::OutputLength { inputs: inputs.len(), features, outputs: out.len(), classes });
    }
    Ok(examples)
}

/// Whether parameters have the lengths that the model calls for.
pub(crate) fn check_parameters(model: &dyn Model, parameters: &[&[f32]]) -> Result<(), ModelError> {
    let specs = model.parameters();
    if parameters.len() != specs.len() {
        return Err(ModelError::ParameterCount { expected: specs.len(), found: parameters.len() });
    }
    for (spec, values) in specs.iter().zip(parameters) {
        let (expected, found) = (spec.shape.elements(), values.len());
        if expected != found {
            return Err(ModelError::ParameterLength { parameter: spec.name.clone(), expected, found });
        }
    }
    Ok(())
}

/// Whether every token is one of the vocabulary's.
pub(crate) fn check_tokens(vocabulary: usize, tokens: &[f32]) -> Result<(), ModelError> {
    let is_token = |value: f32| value >= 0.0 && value < vocabulary as f32 && value.fract() == 0.0;
    match tokens.iter().position(|token| !is_token(*token)) {
        Some(position) => Err(ModelError::Token { position, vocabulary }),
        None => Ok(()),
    }
}

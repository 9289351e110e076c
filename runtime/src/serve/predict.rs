//! The arithmetic of a served model, on threads that may block.

use std::sync::{Mutex, PoisonError};

use testudo_kernels::{Model, ModelSpec};

use super::ServeError;
use super::model::Loaded;
use super::refusal::Refusal;
use super::request::Rows;

/// A model, and as many sets of its buffers as were ever at work at once.
pub(super) struct Engine {
    spec: ModelSpec,
    parameters: Vec<Vec<f32>>,
    /// Rows that are computed at a time.
    rows: usize,
    idle: Mutex<Vec<Box<dyn Model>>>,
}

impl Engine {
    /// An engine for requests that have mostly up to `rows` rows; larger ones are computed in parts.
    ///
    /// # Errors
    /// The model is not built in, or its buffers do not fit memory.
    pub(super) fn new(model: Loaded, rows: usize) -> Result<Engine, ServeError> {
        let Loaded { spec, parameters, .. } = model;
        if spec.targets() > 1 {
            return Err(ServeError::Model(
                "it continues texts, and requests here are rows of numbers to classify: `testudo sample` is for it".to_owned(),
            ));
        }
        let rows = rows.min(spec.evaluation_batch()).max(1);
        let first = spec.build(rows)?;
        Ok(Engine { spec, parameters, rows, idle: Mutex::new(vec![first]) })
    }

    pub(super) fn features(&self) -> usize {
        self.spec.input_elements()
    }

    pub(super) fn classes(&self) -> usize {
        self.spec.classes()
    }

    /// The probabilities of each class, row by row.
    pub(super) fn run(&self, rows: &Rows) -> Result<Vec<f32>, Refusal> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let failed = |why| {
            tracing::error!("a prediction failed: {why}");
            Refusal::Internal
        };
        let mut model = match taken {
            Some(model) => model,
            None => self.spec.build(self.rows).map_err(failed)?,
        };
        let parameters: Vec<&[f32]> = self.parameters.iter().map(Vec::as_slice).collect();
        let mut probabilities = vec![0.0; rows.count * self.classes()];
        // So many at a time: what networks for images make of a row is far larger than it, and rows do not depend on each other.
        let inputs = rows.values.chunks(self.rows * self.features().max(1));
        let mut parts = inputs.zip(probabilities.chunks_mut(self.rows * self.classes().max(1)));
        let done =
            parts.try_for_each(|(inputs, out)| model.probabilities(&parameters, inputs, out)).map_err(failed);
        idle().push(model);
        done.map(|()| probabilities)
    }
}

#[cfg(test)]
mod tests {
    use testudo_kernels::{GptSpec, Norm};

    use super::*;

    /// A request's row is an example, and its answer one label: a model of sequences has neither.
    #[test]
    fn a_model_of_sequences_is_refused() {
        let spec = ModelSpec::Gpt(GptSpec {
            vocabulary: 256,
            context: 4,
            layers: 1,
            heads: 1,
            width: 4,
            dropout: 0.0,
            attention_dropout: 0.0,
            norm: Norm::Layer,
        });
        let error =
            Engine::new(Loaded { spec, parameters: Vec::new(), signer: None }, 1).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("testudo sample"), "{error}");
    }
}

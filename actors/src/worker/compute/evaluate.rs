//! Evaluation and the final hash.

use testudo_kernels::{Batch, Distortion};

use super::{ComputeError, ShardCompute, load};
use crate::checkpoint::{FinalModel, NamedTensor, params_blake3};
use crate::message::{Evaluate, EvaluationResult, Export, Exported};

impl ShardCompute {
    /// How the adopted parameters differ from the exact ones.
    fn pulled(&self) -> Distortion {
        let Some(exact) = &self.exact else { return Distortion::default() };
        let mut all = Distortion::default();
        for (exact, current) in exact.iter().zip(&self.current) {
            let lost = exact.iter().zip(current).map(|(exact, current)| exact - current);
            all.add(Distortion::new(lost, exact.iter().copied()));
        }
        all
    }

    /// Evaluates part of the test set with the adopted parameters, in fixed blocks counted from the part's start.
    ///
    /// # Errors
    /// [`ComputeError`] when the model refuses.
    pub fn evaluate(&mut self, order: &Evaluate) -> Result<EvaluationResult, ComputeError> {
        let end = order.first.saturating_add(order.examples).min(self.test.len() as u64) as usize;
        let mut result = EvaluationResult {
            version: order.version,
            first: order.first,
            examples: order.examples,
            loss_sum: 0.0,
            correct: 0,
        };
        let mut first = order.first as usize;
        while first < end {
            let stop = end.min(first + self.job.model.evaluation_batch());
            load(self.test.as_ref(), first..stop, &mut self.inputs, &mut self.labels);
            let parameters: Vec<&[f32]> =
                self.exact.as_ref().unwrap_or(&self.current).iter().map(Vec::as_slice).collect();
            let loss = self.model.evaluate(&parameters, Batch::new(&self.inputs, &self.labels))?;
            result.loss_sum += loss.loss_sum;
            result.correct += u64::from(loss.correct);
            first = stop;
        }
        Ok(result)
    }

    /// Hashes the adopted parameters, and stores them if the order says so.
    ///
    /// # Errors
    /// [`ComputeError::Checkpoint`] when they cannot be stored.
    pub fn export(&mut self, order: &Export) -> Result<Exported, ComputeError> {
        let specs = self.model.parameters();
        let tensors: Vec<NamedTensor<'_>> = specs
            .iter()
            .zip(self.exact.as_ref().unwrap_or(&self.current))
            .map(|(spec, values)| NamedTensor { name: &spec.name, dims: spec.shape.dims(), values })
            .collect();
        let params_blake3 = params_blake3(&tensors);
        let model = FinalModel { job: &self.job.name, version: order.version, params_blake3, tensors };
        let bytes = if order.write { self.sink.export(&model)? } else { 0 };
        Ok(Exported { version: order.version, params_blake3, bytes, pulled: self.pulled() })
    }
}

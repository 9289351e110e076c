//! How values are spread: servers tell, the observer is told.

use testudo_kernels::ParameterSpec;

use super::SchedulerActor;
use crate::message::{Body, Histograms};
use crate::scheduler::histograms::Collector;

impl SchedulerActor {
    /// Of a model of `parameters`: servers' histograms are of these.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &[ParameterSpec]) -> SchedulerActor {
        self.histograms = Collector::new(parameters);
        self
    }

    /// Takes what a server tells of its slices.
    pub(super) fn spread(&mut self, body: &[u8]) -> Result<(), String> {
        let told = Histograms::decode(body).map_err(|e| e.to_string())?;
        if let Some(tensors) = self.histograms.add(&told, self.core.steps_done())? {
            self.observer.histograms(told.version, &tensors);
        }
        Ok(())
    }
}

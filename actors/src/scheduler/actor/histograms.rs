//! How values are spread: servers tell, the observer is told.

use testudo_kernels::ParameterSpec;

use super::SchedulerActor;
use crate::message::{Body, Histograms};
use crate::placement::SliceMap;
use crate::scheduler::histograms::Collector;

impl SchedulerActor {
    /// Of a model of `parameters`, which lie on servers as `map` says: servers' histograms are of these.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &[ParameterSpec], map: &SliceMap) -> SchedulerActor {
        self.histograms = Collector::new(parameters, map.slices());
        self
    }

    /// Takes what a server tells of its slices.
    pub(super) fn spread(&mut self, server: u32, body: &[u8]) -> Result<(), String> {
        let told = Histograms::decode(body).map_err(|e| e.to_string())?;
        let version = told.version;
        if let Some(tensors) = self.histograms.add(server, told, self.core.steps_done())? {
            self.observer.histograms(version, &tensors);
        }
        Ok(())
    }
}

//! The network that a job trains, and what it computes in.

use testudo_kernels::cuda::{AnyDevice, DeviceModel};
use testudo_kernels::{Model, ModelError, ModelSpec, Precision};

use super::{JobError, JobSpec};
use crate::worker::ShardCompute;

impl JobSpec {
    /// The network with buffers for what a worker hands it at a time, in the job's precision: what workers compute with, and
    /// whoever computes a step again.
    ///
    /// # Errors
    /// [`ModelError`] if the job's network is no built-in one, or does not fit memory.
    pub fn build_model(&self) -> Result<Box<dyn Model>, ModelError> {
        self.model.build_in(self.precision, ShardCompute::largest_batch(self))
    }

    /// The same on a device, which has kernels for `f32`; it encodes gradients where the job's push codec takes each number by itself.
    ///
    /// # Errors
    /// [`ModelError`] as there; [`ModelError::Device`] if there are no kernels for what the job asks for, or the device's memory does not
    /// suffice.
    pub fn build_model_on(&self, device: AnyDevice) -> Result<Box<dyn Model>, ModelError> {
        if self.precision != Precision::F32 {
            let what = format!(
                "training.precision is {}, and GPUs have kernels for f32 alone: set workers.device to \"cpu\"",
                self.precision.name()
            );
            return Err(ModelError::Device { what });
        }
        let model = DeviceModel::new(device, &self.model, ShardCompute::largest_batch(self))?;
        Ok(Box::new(model.with_codec(self.codecs.push)?))
    }

    /// The same, and on the CPU if the device has no kernels or no memory for it, which a line of the log says: for a device that nobody
    /// asked for by its number.
    ///
    /// # Errors
    /// As [`build_model`](JobSpec::build_model).
    pub fn build_model_on_or_cpu(&self, device: AnyDevice) -> Result<Box<dyn Model>, ModelError> {
        let name = device.name().to_owned();
        self.build_model_on(device).or_else(|error| {
            tracing::info!("this worker computes on the CPU, for {name} cannot: {error}");
            self.build_model()
        })
    }

    pub(super) fn validate_network(&self) -> Result<(), JobError> {
        if let (ModelSpec::Custom { name, .. }, Precision::Bf16) = (&self.model, self.precision) {
            return Err(JobError::Invalid(format!(
                "training.precision is bf16, and the model {name} is the program's own, which decides that for itself: leave it \
                 at f32"
            )));
        }
        self.model.parameters().map(|_| ()).map_err(|e| JobError::Invalid(e.to_string()))
    }
}

//! Activations on a device: a row of features for each example, for as many as a batch has.

use super::super::buffer::Buffer;
use super::super::device::{Device, DeviceError};

/// Rows of so many features.
#[derive(Debug)]
pub(super) struct Rows<M> {
    features: usize,
    values: Buffer<M, f32>,
}

impl<M> Rows<M> {
    /// With room for `rows` rows.
    pub(super) fn new<D: Device<Memory = M>>(
        device: &mut D,
        name: &str,
        rows: usize,
        features: usize,
    ) -> Result<Self, DeviceError> {
        let values = Buffer::zeros(device, name, rows.saturating_mul(features))?;
        Ok(Self { features, values })
    }

    /// Takes so many rows, of what it then holds nothing is said.
    pub(super) fn set(&mut self, rows: usize) -> Result<(), DeviceError> {
        self.values.resize(rows.saturating_mul(self.features))
    }

    /// Takes so many rows of so many features.
    pub(super) fn shape(&mut self, rows: usize, features: usize) -> Result<&mut Buffer<M, f32>, DeviceError> {
        self.values.resize(rows.saturating_mul(features))?;
        Ok(&mut self.values)
    }
}

impl<M> std::ops::Deref for Rows<M> {
    type Target = Buffer<M, f32>;

    fn deref(&self) -> &Buffer<M, f32> {
        &self.values
    }
}

impl<M> std::ops::DerefMut for Rows<M> {
    fn deref_mut(&mut self) -> &mut Buffer<M, f32> {
        &mut self.values
    }
}

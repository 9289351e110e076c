//! Where gradients of parameters are made, and how they leave.

use std::collections::VecDeque;

use super::super::device::{Device, DeviceError, Fetch};
use super::Numbers;

/// Gradients that may be on their way to the host before the first of them is waited for: the layers whose kernels are launched
/// meanwhile keep the device busy.
const UNDER_WAY: usize = 4;

/// The gradients of one call.
pub(super) struct Out<'a, D: Device> {
    gradients: &'a mut [Numbers<D>],
    under_way: VecDeque<(usize, Fetch)>,
    ready: &'a mut dyn FnMut(usize, &[f32]),
}

impl<'a, D: Device> Out<'a, D> {
    pub(super) fn new(gradients: &'a mut [Numbers<D>], ready: &'a mut dyn FnMut(usize, &[f32])) -> Self {
        Self { gradients, under_way: VecDeque::new(), ready }
    }

    /// The gradient of a parameter, to be computed.
    pub(super) fn gradient(&mut self, index: usize) -> Result<&mut Numbers<D>, DeviceError> {
        let found = self.gradients.len();
        let missing = DeviceError::Length { tensor: "gradients".into(), expected: index + 1, found };
        self.gradients.get_mut(index).ok_or(missing)
    }

    /// Two of them; the first comes before the second.
    pub(super) fn pair(&mut self, index: usize, other: usize) -> Result<[&mut Numbers<D>; 2], DeviceError> {
        let found = self.gradients.len();
        let missing = DeviceError::Length { tensor: "gradients".into(), expected: other + 1, found };
        self.gradients.get_disjoint_mut([index, other]).map_err(|_| missing)
    }

    /// What was launched makes a gradient final.
    pub(super) fn ready(&mut self, device: &mut D, index: usize) -> Result<(), DeviceError> {
        let fetch = self.gradient(index)?.fetch(device)?;
        self.under_way.push_back((index, fetch));
        self.keep(device, UNDER_WAY)
    }

    /// Hands over all that is left.
    pub(super) fn finish(mut self, device: &mut D) -> Result<(), DeviceError> {
        self.keep(device, 0)
    }

    fn keep(&mut self, device: &mut D, most: usize) -> Result<(), DeviceError> {
        while self.under_way.len() > most {
            let Some((index, fetch)) = self.under_way.pop_front() else { return Ok(()) };
            device.collect(fetch, &mut |bytes| match bytemuck::try_cast_slice(bytes) {
                Ok(gradient) => (self.ready)(index, gradient),
                // Bytes that do not lie as numbers do.
                Err(_) => (self.ready)(index, &bytemuck::pod_collect_to_vec::<u8, f32>(bytes)),
            })?;
        }
        Ok(())
    }
}

//! Where gradients of parameters are made, and how they leave.

use std::collections::VecDeque;

use super::super::buffer::Buffer;
use super::super::codec::encode;
use super::super::device::{Device, DeviceError, Fetch};
use super::Numbers;
use crate::codec::{Codec, Distortion};
use crate::model::{Gradient, ParameterSpec};

/// Gradients that may be on their way to the host before the first of them is waited for: the layers whose kernels are launched
/// meanwhile keep the device busy.
const UNDER_WAY: usize = 4;

/// Gradients as they travel.
pub(super) struct Encoding<D: Device> {
    codec: Codec,
    tensors: Vec<Buffer<D::Memory, u8>>,
}

impl<D: Device> Encoding<D> {
    pub(super) fn new(device: &mut D, codec: Codec, specs: &[ParameterSpec]) -> Result<Self, DeviceError> {
        let mut tensors = Vec::with_capacity(specs.len());
        for spec in specs {
            let bytes = codec.encoded_len(spec.shape.elements());
            tensors.push(Buffer::zeros(device, &format!("encoded gradient of {}", spec.name), bytes)?);
        }
        Ok(Self { codec, tensors })
    }

    /// Whether it is in `codec`.
    pub(super) fn is_in(&self, codec: Codec) -> bool {
        self.codec == codec
    }
}

/// A gradient on its way.
struct UnderWay {
    index: usize,
    /// Of an encoded one, its first numbers.
    start: Option<Fetch>,
    all: Fetch,
}

/// The gradients of one call.
pub(super) struct Out<'a, D: Device> {
    gradients: &'a mut [Numbers<D>],
    encoding: Option<&'a mut Encoding<D>>,
    under_way: VecDeque<UnderWay>,
    ready: &'a mut dyn FnMut(usize, Gradient<'_>),
}

impl<'a, D: Device> Out<'a, D> {
    pub(super) fn new(
        gradients: &'a mut [Numbers<D>],
        encoding: Option<&'a mut Encoding<D>>,
        ready: &'a mut dyn FnMut(usize, Gradient<'_>),
    ) -> Self {
        Self { gradients, encoding, under_way: VecDeque::new(), ready }
    }

    /// The gradient of a parameter, to be computed.
    pub(super) fn gradient(&mut self, index: usize) -> Result<&mut Numbers<D>, DeviceError> {
        let found = self.gradients.len();
        self.gradients.get_mut(index).ok_or_else(|| missing(index, found))
    }

    /// Two of them; the first comes before the second.
    pub(super) fn pair(&mut self, index: usize, other: usize) -> Result<[&mut Numbers<D>; 2], DeviceError> {
        let found = self.gradients.len();
        self.gradients.get_disjoint_mut([index, other]).map_err(|_| missing(other, found))
    }

    /// What was launched makes a gradient final.
    pub(super) fn ready(&mut self, device: &mut D, index: usize) -> Result<(), DeviceError> {
        let gradient = self.gradients.get(index).ok_or_else(|| missing(index, self.gradients.len()))?;
        let under_way = match &mut self.encoding {
            None => UnderWay { index, start: None, all: gradient.fetch(device)? },
            Some(Encoding { codec, tensors }) => {
                let found = tensors.len();
                let bytes = tensors.get_mut(index).ok_or_else(|| missing(index, found))?;
                encode(device, *codec, gradient, bytes)?;
                let start = gradient.fetch_start(device, Distortion::SAMPLE)?;
                UnderWay { index, start: Some(start), all: bytes.fetch(device)? }
            }
        };
        self.under_way.push_back(under_way);
        self.keep(device, UNDER_WAY)
    }

    /// Hands over all that is left.
    pub(super) fn finish(mut self, device: &mut D) -> Result<(), DeviceError> {
        self.keep(device, 0)
    }

    fn keep(&mut self, device: &mut D, most: usize) -> Result<(), DeviceError> {
        while self.under_way.len() > most {
            let Some(UnderWay { index, start, all }) = self.under_way.pop_front() else { return Ok(()) };
            let Some(start) = start else {
                device.collect(all, &mut |bytes| match bytemuck::try_cast_slice(bytes) {
                    Ok(values) => (self.ready)(index, Gradient::Values(values)),
                    // Bytes that do not lie as numbers do.
                    Err(_) => {
                        let values = bytemuck::pod_collect_to_vec::<u8, f32>(bytes);
                        (self.ready)(index, Gradient::Values(&values));
                    }
                })?;
                continue;
            };
            let mut first = Vec::new();
            device.collect(start, &mut |bytes| first = bytemuck::pod_collect_to_vec::<u8, f32>(bytes))?;
            device.collect(all, &mut |bytes| {
                (self.ready)(index, Gradient::Encoded { bytes, start: &first });
            })?;
        }
        Ok(())
    }
}

fn missing(index: usize, found: usize) -> DeviceError {
    DeviceError::Length { tensor: "gradients".into(), expected: index + 1, found }
}

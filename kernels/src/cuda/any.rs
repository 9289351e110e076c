//! A device of any kind, for whoever does not care which: its memory is told apart when it is used.

use std::any::Any;
use std::fmt;

use super::device::{Argument, Device, DeviceError, Fetch, Geometry, Product};
use super::source::Source;

/// A device, whatever its kind.
pub struct AnyDevice {
    name: String,
    device: Box<dyn Erased>,
}

/// Memory of some device. Another device than that which gave it refuses it.
pub struct AnyMemory(Box<dyn Any + Send>);

impl AnyDevice {
    /// `device`, called `name` in messages.
    pub fn new<D: Device + 'static>(name: impl Into<String>, device: D) -> Self {
        Self { name: name.into(), device: Box::new(device) }
    }

    /// What it is called in messages: of a GPU, its number and what the driver calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for AnyDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyDevice").field(&self.name).finish()
    }
}

impl fmt::Debug for AnyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyMemory")
    }
}

/// [`Device`] without the kind of its memory.
trait Erased: Send {
    fn any_allocate(&mut self, tensor: &str, bytes: usize) -> Result<AnyMemory, DeviceError>;
    fn any_write(&mut self, memory: &mut AnyMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError>;
    fn any_read(&mut self, memory: &AnyMemory, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError>;
    fn any_fetch(&mut self, memory: &AnyMemory, bytes: usize) -> Result<Fetch, DeviceError>;
    fn any_collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError>;
    fn any_multiply(
        &mut self,
        product: Product,
        factors: [&AnyMemory; 2],
        result: &mut AnyMemory,
    ) -> Result<bool, DeviceError>;
    fn any_blocks(&self) -> u32;
    fn any_prepare(&mut self, source: &Source) -> Result<(), DeviceError>;
    fn any_launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, AnyMemory>],
    ) -> Result<(), DeviceError>;
}

impl<D: Device> Erased for D {
    fn any_allocate(&mut self, tensor: &str, bytes: usize) -> Result<AnyMemory, DeviceError> {
        Ok(AnyMemory(Box::new(Device::allocate(self, tensor, bytes)?)))
    }

    fn any_write(&mut self, memory: &mut AnyMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        Device::write(self, own_mut::<D>(memory)?, at, bytes)
    }

    fn any_read(&mut self, memory: &AnyMemory, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        Device::read(self, own::<D>(memory)?, at, bytes)
    }

    fn any_fetch(&mut self, memory: &AnyMemory, bytes: usize) -> Result<Fetch, DeviceError> {
        Device::fetch(self, own::<D>(memory)?, bytes)
    }

    fn any_collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        Device::collect(self, fetch, show)
    }

    fn any_multiply(
        &mut self,
        product: Product,
        [a, b]: [&AnyMemory; 2],
        result: &mut AnyMemory,
    ) -> Result<bool, DeviceError> {
        Device::multiply(self, product, own::<D>(a)?, own::<D>(b)?, own_mut::<D>(result)?)
    }

    fn any_blocks(&self) -> u32 {
        Device::blocks(self)
    }

    fn any_prepare(&mut self, source: &Source) -> Result<(), DeviceError> {
        Device::prepare(self, source)
    }

    fn any_launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, AnyMemory>],
    ) -> Result<(), DeviceError> {
        let mut own_arguments = Vec::with_capacity(arguments.len());
        for argument in arguments {
            own_arguments.push(match argument {
                Argument::In(memory) => Argument::In(own::<D>(memory)?),
                Argument::InOut(memory) => Argument::InOut(own_mut::<D>(memory)?),
                Argument::F32(value) => Argument::F32(*value),
                Argument::U32(value) => Argument::U32(*value),
                Argument::U64(value) => Argument::U64(*value),
                Argument::Scalars(values) => Argument::Scalars(values),
            });
        }
        Device::launch(self, source, kernel, geometry, &mut own_arguments)
    }
}

fn own<D: Device>(memory: &AnyMemory) -> Result<&D::Memory, DeviceError> {
    memory.0.downcast_ref().ok_or(DeviceError::Foreign)
}

fn own_mut<D: Device>(memory: &mut AnyMemory) -> Result<&mut D::Memory, DeviceError> {
    memory.0.downcast_mut().ok_or(DeviceError::Foreign)
}

impl Device for AnyDevice {
    type Memory = AnyMemory;

    fn allocate(&mut self, tensor: &str, bytes: usize) -> Result<AnyMemory, DeviceError> {
        self.device.any_allocate(tensor, bytes)
    }

    fn write(&mut self, memory: &mut AnyMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.any_write(memory, at, bytes)
    }

    fn read(&mut self, memory: &AnyMemory, at: usize, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.device.any_read(memory, at, bytes)
    }

    fn fetch(&mut self, memory: &AnyMemory, bytes: usize) -> Result<Fetch, DeviceError> {
        self.device.any_fetch(memory, bytes)
    }

    fn collect(&mut self, fetch: Fetch, show: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        self.device.any_collect(fetch, show)
    }

    fn multiply(
        &mut self,
        product: Product,
        a: &AnyMemory,
        b: &AnyMemory,
        c: &mut AnyMemory,
    ) -> Result<bool, DeviceError> {
        self.device.any_multiply(product, [a, b], c)
    }

    fn blocks(&self) -> u32 {
        self.device.any_blocks()
    }

    fn prepare(&mut self, source: &Source) -> Result<(), DeviceError> {
        self.device.any_prepare(source)
    }

    fn launch(
        &mut self,
        source: &Source,
        kernel: &str,
        geometry: Geometry,
        arguments: &mut [Argument<'_, AnyMemory>],
    ) -> Result<(), DeviceError> {
        self.device.any_launch(source, kernel, geometry, arguments)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cuda::Buffer;
    use crate::cuda::emulator::Emulator;

    struct Other;

    impl Device for Other {
        type Memory = ();

        fn allocate(&mut self, _: &str, _: usize) -> Result<(), DeviceError> {
            Ok(())
        }

        fn write(&mut self, (): &mut (), _: usize, _: &[u8]) -> Result<(), DeviceError> {
            Ok(())
        }

        fn read(&mut self, (): &(), _: usize, _: &mut [u8]) -> Result<(), DeviceError> {
            Ok(())
        }

        fn fetch(&mut self, (): &(), _: usize) -> Result<Fetch, DeviceError> {
            Ok(Fetch::holding(0, &Arc::default()))
        }

        fn collect(&mut self, _: Fetch, _: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
            Ok(())
        }

        fn blocks(&self) -> u32 {
            1
        }

        fn prepare(&mut self, source: &Source) -> Result<(), DeviceError> {
            let (source_name, architecture, log) = (source.name().into(), "none".into(), "no".into());
            Err(DeviceError::Compile { source_name, architecture, log })
        }

        fn launch(
            &mut self,
            _: &Source,
            _: &str,
            _: Geometry,
            _: &mut [Argument<'_, ()>],
        ) -> Result<(), DeviceError> {
            Ok(())
        }
    }

    /// Its memory is its own: what is written is read again, and another kind of device refuses it.
    #[test]
    fn a_device_knows_its_own_memory() {
        let mut device = AnyDevice::new("emulator", Emulator::without_kernels());
        let mut other = AnyDevice::new("other", Other);
        let mut buffer = Buffer::of(&mut device, "x", &[1.0f32, 2.0, 3.0]).unwrap();
        buffer.write_at(&mut device, 1, &[5.0, 6.0]).unwrap();
        assert_eq!(buffer.to_vec(&mut device).unwrap(), [1.0, 5.0, 6.0]);
        let mut last = [0.0];
        buffer.read_at(&mut device, 2, &mut last).unwrap();
        assert_eq!(last, [6.0]);
        let refused = DeviceError::Length { tensor: "x".into(), expected: 4, found: 3 };
        assert_eq!(buffer.write_at(&mut device, 2, &[0.0; 2]), Err(refused.clone()));
        assert_eq!(buffer.resize(4), Err(refused));
        buffer.resize(2).unwrap();
        let fetch = buffer.fetch(&mut device).unwrap();
        buffer.write(&mut device, &[0.0; 2]).unwrap();
        let mut shown = Vec::new();
        device.collect(fetch, &mut |bytes| shown = bytes.to_vec()).unwrap();
        assert_eq!(shown, bytemuck::cast_slice::<f32, u8>(&[1.0, 5.0]), "what it was when it was fetched");
        assert_eq!(buffer.to_vec(&mut other), Err(DeviceError::Foreign));
        let launched =
            other.launch(&Source::aggregate(), "add", Geometry::each(2, 1), &mut [buffer.output()]);
        assert_eq!(launched, Err(DeviceError::Foreign));
        assert!(matches!(other.prepare(&Source::aggregate()), Err(DeviceError::Compile { .. })));
    }
}

//! A tensor on a device: memory that knows its elements.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::device::{Argument, Device, DeviceError, Fetch};

/// `elements` values of type `T` in a device's memory `M`, which may have room for more.
#[derive(Debug)]
pub struct Buffer<M, T> {
    name: String,
    memory: M,
    elements: usize,
    room: usize,
    values: PhantomData<T>,
}

impl<M, T: Pod> Buffer<M, T> {
    /// A tensor of zeros. Its name stands in errors.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn zeros<D: Device<Memory = M>>(
        device: &mut D,
        name: &str,
        elements: usize,
    ) -> Result<Self, DeviceError> {
        let memory = device.allocate(name, elements.saturating_mul(size_of::<T>()))?;
        Ok(Self { name: name.into(), memory, elements, room: elements, values: PhantomData })
    }

    /// A tensor of these values.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Driver`].
    pub fn of<D: Device<Memory = M>>(device: &mut D, name: &str, values: &[T]) -> Result<Self, DeviceError> {
        let mut buffer = Self::zeros(device, name, values.len())?;
        buffer.write(device, values)?;
        Ok(buffer)
    }

    /// Replaces all values.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Driver`].
    pub fn write<D: Device<Memory = M>>(&mut self, device: &mut D, values: &[T]) -> Result<(), DeviceError> {
        self.check(values.len())?;
        device.write(&mut self.memory, 0, bytemuck::cast_slice(values))
    }

    /// Replaces some values, from element `first` on.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if it has not as many there, [`DeviceError::Driver`].
    pub fn write_at<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        first: usize,
        values: &[T],
    ) -> Result<(), DeviceError> {
        self.holds(first, values.len())?;
        device.write(&mut self.memory, first * size_of::<T>(), bytemuck::cast_slice(values))
    }

    /// Copies all values, when what was launched before is over.
    ///
    /// # Errors
    /// [`DeviceError::Length`], [`DeviceError::Driver`].
    pub fn read<D: Device<Memory = M>>(&self, device: &mut D, into: &mut [T]) -> Result<(), DeviceError> {
        self.check(into.len())?;
        device.read(&self.memory, 0, bytemuck::cast_slice_mut(into))
    }

    /// Copies some values, from element `first` on, when what was launched before is over.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if it has not as many there, [`DeviceError::Driver`].
    pub fn read_at<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        first: usize,
        into: &mut [T],
    ) -> Result<(), DeviceError> {
        self.holds(first, into.len())?;
        device.read(&self.memory, first * size_of::<T>(), bytemuck::cast_slice_mut(into))
    }

    /// Begins to copy all values to the host, beside what is launched from now on.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn fetch<D: Device<Memory = M>>(&self, device: &mut D) -> Result<Fetch, DeviceError> {
        device.fetch(&self.memory, self.elements * size_of::<T>())
    }

    /// The same of the first values, `count` at most.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn fetch_start<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        count: usize,
    ) -> Result<Fetch, DeviceError> {
        device.fetch(&self.memory, self.elements.min(count) * size_of::<T>())
    }

    /// Makes it a tensor of so many values, as long as there is room: those that it was made with. What they are is unsaid.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if there is not.
    pub fn resize(&mut self, elements: usize) -> Result<(), DeviceError> {
        if elements > self.room {
            let (expected, found) = (elements, self.room);
            return Err(DeviceError::Length { tensor: self.name.clone(), expected, found });
        }
        self.elements = elements;
        Ok(())
    }

    /// Whether it has `count` values from element `first` on.
    pub(super) fn holds(&self, first: usize, count: usize) -> Result<(), DeviceError> {
        match first.checked_add(count) {
            Some(end) if end <= self.elements => Ok(()),
            _ => {
                let (expected, found) = (first.saturating_add(count), self.elements);
                Err(DeviceError::Length { tensor: self.name.clone(), expected, found })
            }
        }
    }

    /// A copy of all values.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn to_vec<D: Device<Memory = M>>(&self, device: &mut D) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); self.elements];
        self.read(device, &mut values)?;
        Ok(values)
    }

    /// Gives it another name, as what it is used for now.
    pub fn rename(&mut self, name: impl Into<String>) {
        self.name = name.into();
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many values it has.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Whether it has as many values as another that it goes with.
    pub(super) fn check(&self, expected: usize) -> Result<(), DeviceError> {
        if self.elements == expected {
            return Ok(());
        }
        Err(DeviceError::Length { tensor: self.name.clone(), expected, found: self.elements })
    }

    pub(super) fn memory(&self) -> &M {
        &self.memory
    }

    pub(super) fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    pub(super) fn input(&self) -> Argument<'_, M> {
        Argument::In(&self.memory)
    }

    pub(super) fn output(&mut self) -> Argument<'_, M> {
        Argument::InOut(&mut self.memory)
    }
}

//! Aggregation on a device: the twins of [`crate::aggregate`] and [`crate::robust`].

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;
use crate::robust::{Aggregation, AggregationError, sorting};

/// Adds `other` into `into`, as [`crate::add`].
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn add<D: Device>(
    device: &mut D,
    into: &mut Buffer<D::Memory, f32>,
    other: &Buffer<D::Memory, f32>,
) -> Result<(), DeviceError> {
    let elements = into.elements();
    other.check(elements)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [into.output(), other.input(), Argument::U64(elements as u64)];
    device.launch(&Source::aggregate(), "add", geometry, arguments)
}

/// [`add`] and [`first_non_finite`] of the sum in one pass, as [`crate::add_checked`].
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn add_checked<D: Device>(
    device: &mut D,
    into: &mut Buffer<D::Memory, f32>,
    other: &Buffer<D::Memory, f32>,
) -> Result<Option<usize>, DeviceError> {
    let elements = into.elements();
    other.check(elements)?;
    let mut first = Buffer::of(device, "first", &[NONE])?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [into.output(), other.input(), Argument::U64(elements as u64), first.output()];
    device.launch(&Source::aggregate(), "add_checked", geometry, arguments)?;
    found(device, &first)
}

/// The lowest index of a value that is NaN or infinite, as [`crate::first_non_finite`].
///
/// # Errors
/// What a launch may meet.
pub fn first_non_finite<D: Device>(
    device: &mut D,
    values: &Buffer<D::Memory, f32>,
) -> Result<Option<usize>, DeviceError> {
    let mut first = Buffer::of(device, "first", &[NONE])?;
    let geometry = Geometry::each(values.elements(), device.blocks());
    let arguments = &mut [values.input(), Argument::U64(values.elements() as u64), first.output()];
    device.launch(&Source::aggregate(), "first_non_finite", geometry, arguments)?;
    found(device, &first)
}

/// No index.
pub(super) const NONE: u64 = u64::MAX;

pub(super) fn found<D: Device>(
    device: &mut D,
    first: &Buffer<D::Memory, u64>,
) -> Result<Option<usize>, DeviceError> {
    let mut index = [NONE];
    first.read(device, &mut index)?;
    Ok((index != [NONE]).then_some(index[0] as usize))
}

/// Makes a vote of a sum over `examples` examples: their mean. As [`crate::robust::divide`].
///
/// # Errors
/// What a launch may meet.
pub fn divide<D: Device>(
    device: &mut D,
    sum: &mut Buffer<D::Memory, f32>,
    examples: f32,
) -> Result<(), DeviceError> {
    let elements = sum.elements();
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [sum.output(), Argument::F32(examples), Argument::U64(elements as u64)];
    device.launch(&Source::aggregate(), "divide", geometry, arguments)
}

/// A rule over one vote per worker, made ready for a number of votes: as [`Aggregation::aggregate`].
#[derive(Debug)]
pub struct Votes<M> {
    network: Buffer<M, u32>,
    votes: u32,
    trim: u32,
}

impl<M> Votes<M> {
    /// The rule for `votes` votes.
    ///
    /// # Errors
    /// [`DeviceError::Aggregation`] if there are too few or too many votes, or the rule has none or weighs whole gradients; and what
    /// memory may meet.
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        rule: Aggregation,
        votes: usize,
    ) -> Result<Self, DeviceError> {
        rule.check(votes)?;
        if rule.weighs() {
            return Err(AggregationError::Whole.into());
        }
        let trim = rule.bears(votes as u32);
        let pairs = sorting(votes, trim as usize..votes - trim as usize);
        let pairs: Vec<u32> = pairs.iter().flat_map(|(low, high)| [*low as u32, *high as u32]).collect();
        let network = Buffer::of(device, "sorting network", &pairs)?;
        Ok(Self { network, votes: votes as u32, trim })
    }

    /// The rule's result for finite votes that stand one after another in `votes`.
    ///
    /// # Errors
    /// [`DeviceError::Length`] unless `votes` holds as many times what `out` holds as there are votes, and what a launch may meet.
    pub fn aggregate<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        votes: &Buffer<M, f32>,
        out: &mut Buffer<M, f32>,
    ) -> Result<(), DeviceError> {
        let elements = out.elements();
        votes.check(elements.saturating_mul(self.votes as usize))?;
        // A column of keys for each thread, as many threads as have room; whole warps where that can be.
        let column = 4 * self.votes;
        let room = (SHARED_BYTES / column).min(Geometry::THREADS);
        let threads = if room >= WARP { room / WARP * WARP } else { room };
        let mut geometry = Geometry::new(elements, threads, threads, device.blocks());
        geometry.shared_bytes = threads * column;
        let pairs = self.network.elements() as u32 / 2;
        let arguments = &mut [
            votes.input(),
            out.output(),
            self.network.input(),
            Argument::U32(pairs),
            Argument::U32(self.votes),
            Argument::U32(self.trim),
            Argument::U64(elements as u64),
        ];
        device.launch(&Source::robust(), "trimmed_mean", geometry, arguments)
    }
}

/// What every GPU gives a block without being asked.
const SHARED_BYTES: u32 = 48 << 10;
const WARP: u32 = 32;

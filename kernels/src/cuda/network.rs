//! What networks do between their layers: copies, sums of two branches, images in another order.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::source::Source;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// Copies `from` to where `to` has its element `first`.
///
/// # Errors
/// [`DeviceError::Length`] if it does not fit there, and what a launch may meet.
pub fn copy_to<D: Device>(
    device: &mut D,
    from: &Numbers<D>,
    first: usize,
    to: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = from.elements();
    to.holds(first, elements)?;
    let arguments =
        vec![from.input(), to.output(), Argument::U64(first as u64), Argument::U64(elements as u64)];
    launch(device, "copy_to", elements, arguments)
}

/// Copies all of `from` over all of `to`.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn copy<D: Device>(device: &mut D, from: &Numbers<D>, to: &mut Numbers<D>) -> Result<(), DeviceError> {
    to.check(from.elements())?;
    copy_to(device, from, 0, to)
}

/// Sets all of `values` to `value`.
///
/// # Errors
/// What a launch may meet.
pub fn fill<D: Device>(device: &mut D, values: &mut Numbers<D>, value: f32) -> Result<(), DeviceError> {
    let elements = values.elements();
    let arguments = vec![values.output(), Argument::F32(value), Argument::U64(elements as u64)];
    launch(device, "fill", elements, arguments)
}

/// `out` becomes the sum of `x` and `y`.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn sum_of<D: Device>(
    device: &mut D,
    x: &Numbers<D>,
    y: &Numbers<D>,
    out: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = out.elements();
    x.check(elements)?;
    y.check(elements)?;
    let arguments = vec![x.input(), y.input(), out.output(), Argument::U64(elements as u64)];
    launch(device, "sum_of", elements, arguments)
}

/// Adds a shortcut to `values`, then ReLU.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn add_rectified<D: Device>(
    device: &mut D,
    shortcut: &Numbers<D>,
    values: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = values.elements();
    shortcut.check(elements)?;
    let arguments = vec![shortcut.input(), values.output(), Argument::U64(elements as u64)];
    launch(device, "add_rectified", elements, arguments)
}

/// Adds `bias` to every row of `values`.
///
/// # Errors
/// [`DeviceError::Length`] unless `values` holds whole rows, and what a launch may meet.
pub fn add_bias<D: Device>(
    device: &mut D,
    bias: &Numbers<D>,
    values: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let (elements, features) = (values.elements(), bias.elements());
    values.check(elements.checked_next_multiple_of(features.max(1)).unwrap_or(usize::MAX))?;
    let counts = [Argument::U32(features as u32), Argument::U64(elements as u64)];
    let mut arguments = vec![bias.input(), values.output()];
    arguments.extend(counts);
    launch(device, "add_bias", elements, arguments)
}

/// Of each example, `rows` rows of `columns` numbers become `columns` rows of `rows`: images by channels become images by pixels, or
/// the other way round.
///
/// # Errors
/// [`DeviceError::Length`], and what a launch may meet.
pub fn permute<D: Device>(
    device: &mut D,
    (rows, columns): (usize, usize),
    from: &Numbers<D>,
    to: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = from.elements();
    to.check(elements)?;
    let whole = elements.checked_next_multiple_of(rows.saturating_mul(columns).max(1));
    from.check(whole.unwrap_or(usize::MAX))?;
    let sides = [rows, columns].map(|side| Argument::U32(side as u32));
    let mut arguments = vec![from.input(), to.output()];
    arguments.extend(sides);
    arguments.push(Argument::U64(elements as u64));
    launch(device, "permute", elements, arguments)
}

fn launch<D: Device>(
    device: &mut D,
    kernel: &str,
    elements: usize,
    mut arguments: Vec<Argument<'_, D::Memory>>,
) -> Result<(), DeviceError> {
    let geometry = Geometry::each(elements, device.blocks());
    device.launch(&Source::network(), kernel, geometry, &mut arguments)
}

//! Rules that weigh whole gradients, and clipping, on a device: the twins of [`crate::robust::products`] and [`crate::robust::weigh`]. What has an
//! element for each weight is done here; weights follow from a few inner products, on the host.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::network::copy;
use super::source::Source;
use crate::robust::products::{BLOCK, Products};
use crate::robust::weigh::Weights;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// Lanes of a block's sum, as robust.cu has them.
const LANES: u32 = 16;

/// Adds a slice of each vector to `products`, from element `first` of its tensor on: as [`Products::add`]. The slices stand one after another
/// in `vectors`.
///
/// # Errors
/// [`DeviceError::Length`] if that many elements are not so many vectors, and what memory or a launch may meet; nothing was added then.
pub fn add_products<D: Device>(
    device: &mut D,
    products: &mut Products,
    first: usize,
    vectors: &Numbers<D>,
) -> Result<(), DeviceError> {
    let (count, all) = (products.vectors(), vectors.elements());
    let (elements, first) = (all / count.max(1), first % BLOCK);
    vectors.check(elements.saturating_mul(count))?;
    if elements == 0 {
        return Ok(());
    }
    let blocks = (first + elements).div_ceil(BLOCK);
    let pairs: Vec<u32> = products.pairs().iter().flat_map(|(i, j)| [*i as u32, *j as u32]).collect();
    let count = pairs.len() / 2;
    let pairs = Buffer::of(device, "pairs of vectors", &pairs)?;
    let units = blocks.saturating_mul(count);
    let mut sums = Buffer::<_, f64>::zeros(device, "sums of blocks", units)?;
    let geometry = Geometry::new(units, Geometry::THREADS / LANES, Geometry::THREADS, device.blocks());
    let arguments = &mut [
        vectors.input(),
        pairs.input(),
        sums.output(),
        Argument::U32(count as u32),
        Argument::U32(first as u32),
        Argument::U64(elements as u64),
    ];
    device.launch(&Source::robust(), "inner_products", geometry, arguments)?;
    products.add_blocks(&sums.to_vec(device)?);
    Ok(())
}

/// `out` becomes the combination of slices of the vectors, which stand one after another: as [`Weights::combine`]. Not clipped yet: see
/// [`clip`].
///
/// # Errors
/// [`DeviceError::Length`] unless `vectors` holds as many times what `out` holds as there are weights, and what memory or a launch may meet.
pub fn combine<D: Device>(
    device: &mut D,
    weights: &Weights,
    vectors: &Numbers<D>,
    out: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let (count, elements) = (weights.of.len(), out.elements());
    vectors.check(elements.saturating_mul(count))?;
    if weights.of == [1.0] {
        return copy(device, vectors, out);
    }
    let by = Buffer::of(device, "weights of vectors", &weights.of)?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [
        vectors.input(),
        by.input(),
        out.output(),
        Argument::U32(count as u32),
        Argument::U64(elements as u64),
    ];
    device.launch(&Source::robust(), "combine", geometry, arguments)
}

/// Multiplies by the factor of clipping: as [`crate::robust::weigh::clip`].
///
/// # Errors
/// What memory or a launch may meet.
pub fn clip<D: Device>(device: &mut D, gradient: &mut Numbers<D>, factor: f64) -> Result<(), DeviceError> {
    if factor == 1.0 {
        return Ok(());
    }
    let elements = gradient.elements();
    let factor = Buffer::of(device, "factor of clipping", &[factor])?;
    let geometry = Geometry::each(elements, device.blocks());
    let arguments = &mut [gradient.output(), factor.input(), Argument::U64(elements as u64)];
    device.launch(&Source::robust(), "clip", geometry, arguments)
}

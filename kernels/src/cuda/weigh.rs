//! Rules that weigh whole gradients, and clipping, on a device: the twins of [`crate::robust::products`] and [`crate::robust::weigh`]. What has an
//! element for each weight is done here; weights follow from a few inner products, on the host.
//!
//! 1. Inner products come here as sums of blocks, each rounded as the CPU's is; the host adds them as integers. So they are exact sums of
//!    the same terms, whatever the grid.
//! 2. All memory that is needed beside vectors and results is taken when a [`DeviceWeighing`] is made.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::network::copy;
use super::source::Source;
use crate::robust::products::{BLOCK, Products};
use crate::robust::weigh::Weights;

/// Lanes of a block's sum, as robust.cu has them.
const LANES: u32 = 16;

/// What weighs some vectors, made ready for slices of some length: the twin of what [`Products::add`], [`Weights::combine`] and
/// [`crate::robust::weigh::clip`] do.
#[derive(Debug)]
pub struct DeviceWeighing<M> {
    pairs: Buffer<M, u32>,
    sums: Buffer<M, f64>,
    weights: Buffer<M, f64>,
    factor: Buffer<M, f64>,
}

impl<M> DeviceWeighing<M> {
    /// For products like `products`, of slices of at most `most` elements.
    ///
    /// # Errors
    /// What memory may meet: 8 bytes for each pair of vectors and block of 1,024 elements, and little beside.
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        products: &Products,
        most: usize,
    ) -> Result<Self, DeviceError> {
        let pairs: Vec<u32> = products.pairs().iter().flat_map(|(i, j)| [*i as u32, *j as u32]).collect();
        // A slice may begin with the last element of a block.
        let blocks = most.saturating_add(BLOCK - 1).div_ceil(BLOCK);
        Ok(Self {
            sums: Buffer::zeros(device, "sums of blocks", blocks.saturating_mul(pairs.len() / 2))?,
            pairs: Buffer::of(device, "pairs of vectors", &pairs)?,
            weights: Buffer::zeros(device, "weights of vectors", products.vectors())?,
            factor: Buffer::zeros(device, "factor of clipping", 1)?,
        })
    }

    /// Adds a slice of each vector to `products`, from element `first` of its tensor on: as [`Products::add`]. The slices stand one after
    /// another in `vectors`.
    ///
    /// # Errors
    /// [`DeviceError::Length`] if that many elements are not so many vectors, or more than this was made for, or the products are others,
    /// and what a launch may meet; nothing was added then.
    pub fn add_products<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        products: &mut Products,
        first: usize,
        vectors: &Buffer<M, f32>,
    ) -> Result<(), DeviceError> {
        let (count, all) = (products.vectors(), vectors.elements());
        let (elements, first) = (all / count.max(1), first % BLOCK);
        vectors.check(elements.saturating_mul(count))?;
        let pairs = products.pairs().len();
        self.pairs.check(2 * pairs)?;
        if elements == 0 {
            return Ok(());
        }
        let units = (first + elements).div_ceil(BLOCK).saturating_mul(pairs);
        self.sums.resize(units)?;
        let geometry = Geometry::new(units, Geometry::THREADS / LANES, Geometry::THREADS, device.blocks());
        let arguments = &mut [
            vectors.input(),
            self.pairs.input(),
            self.sums.output(),
            Argument::U32(pairs as u32),
            Argument::U32(first as u32),
            Argument::U64(elements as u64),
        ];
        device.launch(&Source::robust(), "inner_products", geometry, arguments)?;
        products.add_blocks(&self.sums.to_vec(device)?);
        Ok(())
    }

    /// `out` becomes the combination of slices of the vectors, which stand one after another: as [`Weights::combine`]. Not clipped yet: see
    /// [`clip`](Self::clip).
    ///
    /// # Errors
    /// [`DeviceError::Length`] unless `vectors` holds as many times what `out` holds as there are weights, and these are as many as was said,
    /// and what a launch may meet.
    pub fn combine<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        weights: &Weights,
        vectors: &Buffer<M, f32>,
        out: &mut Buffer<M, f32>,
    ) -> Result<(), DeviceError> {
        let (count, elements) = (weights.of.len(), out.elements());
        vectors.check(elements.saturating_mul(count))?;
        self.weights.check(count)?;
        if weights.of == [1.0] {
            return copy(device, vectors, out);
        }
        self.weights.write(device, &weights.of)?;
        let geometry = Geometry::each(elements, device.blocks());
        let arguments = &mut [
            vectors.input(),
            self.weights.input(),
            out.output(),
            Argument::U32(count as u32),
            Argument::U64(elements as u64),
        ];
        device.launch(&Source::robust(), "combine", geometry, arguments)
    }

    /// Multiplies by the factor of clipping: as [`crate::robust::weigh::clip`].
    ///
    /// # Errors
    /// What a launch may meet.
    pub fn clip<D: Device<Memory = M>>(
        &mut self,
        device: &mut D,
        gradient: &mut Buffer<M, f32>,
        factor: f64,
    ) -> Result<(), DeviceError> {
        if factor == 1.0 {
            return Ok(());
        }
        self.factor.write(device, &[factor])?;
        let elements = gradient.elements();
        let geometry = Geometry::each(elements, device.blocks());
        let arguments = &mut [gradient.output(), self.factor.input(), Argument::U64(elements as u64)];
        device.launch(&Source::robust(), "clip", geometry, arguments)
    }
}

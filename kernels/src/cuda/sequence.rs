//! Layers of sequence models on a device, on values row by row: norms, embedding, dropout.

use super::buffer::Buffer;
use super::device::{Argument, Device, DeviceError, Geometry};
use super::layers::sum_examples;
use super::source::Source;
use crate::layers::Norm;
use crate::model::Place;

type Numbers<D> = Buffer<<D as Device>::Memory, f32>;

/// A norm of each row's features, as `layers/norm.rs` defines it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceNorm {
    /// Which one.
    pub norm: Norm,
    /// Features of a row.
    pub features: usize,
}

/// Rows of a block of threads, and its threads, as sequence.cu has them.
const NORM_ROWS: u32 = 32;
const NORM_THREADS: u32 = 256;

impl DeviceNorm {
    /// y of `x`, which has `rows` rows. `kept` takes two numbers a row, which [`backward`](Self::backward) needs. `bias` is empty for RMS norm.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn forward<D: Device>(
        self,
        device: &mut D,
        rows: usize,
        (weight, bias): (&Numbers<D>, &Numbers<D>),
        x: &Numbers<D>,
        (y, kept): (&mut Numbers<D>, &mut Numbers<D>),
    ) -> Result<(), DeviceError> {
        let elements = rows.saturating_mul(self.features);
        x.check(elements)?;
        y.check(elements)?;
        kept.check(rows.saturating_mul(2))?;
        weight.check(self.features)?;
        bias.check(if self.norm == Norm::Layer { self.features } else { 0 })?;
        let arguments = vec![x.input(), weight.input(), bias.input(), y.output(), kept.output()];
        self.launch(device, "norm_forward", rows, arguments)
    }

    /// Adds the gradient of x to `dx`, and sets those of weight and, if there is one, bias. `normal` is room for as much as x takes.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn backward<D: Device>(
        self,
        device: &mut D,
        rows: usize,
        weight: &Numbers<D>,
        (x, kept): (&Numbers<D>, &Numbers<D>),
        (dy, dx, normal): (&Numbers<D>, &mut Numbers<D>, &mut Numbers<D>),
        (of_weight, of_bias): (&mut Numbers<D>, Option<&mut Numbers<D>>),
    ) -> Result<(), DeviceError> {
        let elements = rows.saturating_mul(self.features);
        [x, dy, dx, normal].iter().try_for_each(|tensor| tensor.check(elements))?;
        kept.check(rows.saturating_mul(2))?;
        weight.check(self.features)?;
        let arguments =
            vec![x.input(), kept.input(), weight.input(), dy.input(), dx.output(), normal.output()];
        self.launch(device, "norm_backward", rows, arguments)?;
        if let Some(of_bias) = of_bias {
            sum_examples(device, dy, rows, of_bias)?;
        }
        sum_examples(device, normal, rows, of_weight)
    }

    fn launch<D: Device>(
        self,
        device: &mut D,
        kernel: &str,
        rows: usize,
        mut arguments: Vec<Argument<'_, D::Memory>>,
    ) -> Result<(), DeviceError> {
        let centred = u32::from(self.norm == Norm::Layer);
        let counts = [Argument::U32(self.features as u32), Argument::U64(rows as u64)];
        arguments.push(Argument::U32(centred));
        arguments.extend(counts);
        let geometry = Geometry::new(rows, NORM_ROWS, NORM_THREADS, device.blocks());
        device.launch(&Source::sequence(), kernel, geometry, &mut arguments)
    }
}

/// The tokens of a batch, on the device with the order in which their rows of the table are added to.
#[derive(Debug)]
pub struct Tokens<M> {
    tokens: Buffer<M, u32>,
    /// Places of all tokens, those of the same token together and ascending.
    places: Buffer<M, u32>,
    /// Where each token's places start, and where the last one's end.
    starts: Buffer<M, u32>,
    distinct: usize,
    vocabulary: usize,
}

impl<M> Tokens<M> {
    /// Tokens, each below `vocabulary`.
    ///
    /// # Errors
    /// [`DeviceError::Label`] if one is not, and what memory may meet.
    pub fn new<D: Device<Memory = M>>(
        device: &mut D,
        tokens: &[u32],
        vocabulary: usize,
    ) -> Result<Self, DeviceError> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            return Err(DeviceError::Label { label: *token, classes: vocabulary });
        }
        let mut places: Vec<u32> = (0..tokens.len() as u32).collect();
        let token_at = |place: &u32| tokens.get(*place as usize).copied().unwrap_or_default();
        places.sort_by_key(token_at);
        let mut starts = Vec::new();
        for (at, place) in places.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|before| places.get(before)).map(token_at);
            if before != Some(token_at(place)) {
                starts.push(at as u32);
            }
        }
        let distinct = starts.len();
        starts.push(tokens.len() as u32);
        Ok(Self {
            tokens: Buffer::of(device, "tokens", tokens)?,
            places: Buffer::of(device, "places of tokens", &places)?,
            starts: Buffer::of(device, "starts of tokens", &starts)?,
            distinct,
            vocabulary,
        })
    }

    /// Sets `rows` to each token's row of `table` plus its position's of `positions`: an example has as many tokens as that has rows.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn embed<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        width: usize,
        (table, positions): (&Buffer<M, f32>, &Buffer<M, f32>),
        rows: &mut Buffer<M, f32>,
    ) -> Result<(), DeviceError> {
        let elements = self.tokens.elements().saturating_mul(width);
        rows.check(elements)?;
        table.check(self.vocabulary.saturating_mul(width))?;
        let of_example = positions.elements() / width.max(1);
        positions.check(of_example * width)?;
        if of_example == 0 || !self.tokens.elements().is_multiple_of(of_example) {
            let (expected, found) = (of_example, self.tokens.elements());
            return Err(DeviceError::Length { tensor: "tokens".into(), expected, found });
        }
        let arguments = &mut [
            self.tokens.input(),
            table.input(),
            positions.input(),
            rows.output(),
            Argument::U32(width as u32),
            Argument::U64(of_example as u64),
            Argument::U64(elements as u64),
        ];
        let geometry = Geometry::each(elements, device.blocks());
        device.launch(&Source::sequence(), "embed", geometry, arguments)
    }

    /// Adds the gradient of the rows to the table's.
    ///
    /// # Errors
    /// [`DeviceError::Length`], and what a launch may meet.
    pub fn add_to_table<D: Device<Memory = M>>(
        &self,
        device: &mut D,
        width: usize,
        gradient: &Buffer<M, f32>,
        table: &mut Buffer<M, f32>,
    ) -> Result<(), DeviceError> {
        gradient.check(self.tokens.elements().saturating_mul(width))?;
        table.check(self.vocabulary.saturating_mul(width))?;
        let elements = self.distinct.saturating_mul(width);
        let arguments = &mut [
            gradient.input(),
            self.tokens.input(),
            self.places.input(),
            self.starts.input(),
            table.output(),
            Argument::U32(width as u32),
            Argument::U64(elements as u64),
        ];
        let geometry = Geometry::each(elements, device.blocks());
        device.launch(&Source::sequence(), "add_to_table", geometry, arguments)
    }
}

/// Sets the positions' gradient: the sum of the examples' gradients of their rows.
///
/// # Errors
/// [`DeviceError::Length`] unless `gradient` holds whole examples, and what a launch may meet.
pub fn positions_gradient<D: Device>(
    device: &mut D,
    gradient: &Numbers<D>,
    positions: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let elements = positions.elements();
    let examples = gradient.elements() / elements.max(1);
    gradient.check(examples * elements)?;
    let arguments = &mut [
        gradient.input(),
        positions.output(),
        Argument::U64(examples as u64),
        Argument::U64(elements as u64),
    ];
    let geometry = Geometry::each(elements, device.blocks());
    device.launch(&Source::sequence(), "positions_gradient", geometry, arguments)
}

/// Drops elements of activations, or of their gradient, as `layers/dropout.rs` defines it: `positions` rows an example, of `features`
/// features; `site` is the layer's number in its network.
///
/// # Errors
/// [`DeviceError::Length`] unless `values` holds whole examples, and what a launch may meet.
pub fn dropout<D: Device>(
    device: &mut D,
    rate: f32,
    (positions, features): (usize, usize),
    place: Place,
    site: usize,
    values: &mut Numbers<D>,
) -> Result<(), DeviceError> {
    let example = positions.saturating_mul(features);
    let rows = values.elements() / example.max(1) * positions;
    values.check(rows.saturating_mul(features))?;
    if rate <= 0.0 || rows == 0 {
        return Ok(());
    }
    let numbers = [place.seed, place.step, place.first, site as u64, positions as u64];
    let mut arguments = vec![values.output(), Argument::F32(rate)];
    arguments.extend(numbers.map(Argument::U64));
    arguments.extend([Argument::U32(features as u32), Argument::U64(rows as u64)]);
    let geometry = Geometry::each(rows.saturating_mul(features.div_ceil(4)), device.blocks());
    device.launch(&Source::sequence(), "dropout", geometry, &mut arguments)
}

//! What a forward pass keeps for the backward pass.
//!
//! 1. Under [`Precision::Bf16`] it is kept in two bytes a number, which rounds it as an operand of a product is rounded. Whoever
//!    reads it, in the forward pass too, reads the rounded numbers.
//! 2. In `f32` it is computed where it stays: nothing is copied, and no room is needed beside.

use super::buffer;
use crate::model::ModelError;
use crate::precision::{Precision, pack, unpack};

/// Activations of one layer.
#[derive(Debug)]
pub(crate) enum Kept {
    Whole(Vec<f32>),
    Halves(Vec<u16>),
}

impl Kept {
    /// Room for so many numbers.
    ///
    /// # Errors
    /// Those of [`buffer`].
    pub(crate) fn new(
        precision: Precision,
        elements: usize,
        max_examples: usize,
    ) -> Result<Kept, ModelError> {
        match precision {
            Precision::F32 => buffer(elements, max_examples).map(Kept::Whole),
            Precision::Bf16 => {
                let mut halves = Vec::new();
                halves.try_reserve_exact(elements).map_err(|_| ModelError::TooLarge { max_examples })?;
                halves.resize(elements, 0);
                Ok(Kept::Halves(halves))
            }
        }
    }

    /// How many `f32`s take as much memory as so many numbers that are kept.
    pub(crate) fn size(precision: Precision, elements: usize) -> usize {
        match precision {
            Precision::F32 => elements,
            Precision::Bf16 => elements.div_ceil(2),
        }
    }

    /// Keeps the first `elements` numbers of what `compute` leaves; `room` is where it may have to be computed.
    pub(crate) fn keep(&mut self, elements: usize, room: &mut [f32], compute: impl FnOnce(&mut [f32])) {
        match self {
            Kept::Whole(values) => compute(values.get_mut(..elements).unwrap_or_default()),
            Kept::Halves(halves) => {
                let room = room.get_mut(..elements).unwrap_or_default();
                compute(room);
                pack(room, halves);
            }
        }
    }

    /// The first `elements` numbers; `room` is where they may have to be put.
    pub(crate) fn read<'a>(&'a self, elements: usize, room: &'a mut [f32]) -> &'a [f32] {
        match self {
            Kept::Whole(values) => values.get(..elements).unwrap_or_default(),
            Kept::Halves(halves) => {
                let room = room.get_mut(..elements).unwrap_or_default();
                unpack(halves, room);
                room
            }
        }
    }
}

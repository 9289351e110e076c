//! How much of what was meant did not get there: for people, who choose codecs by it. No arithmetic of training depends on it.

use serde::{Deserialize, Serialize};

use super::{Codec, CodecError};

/// Sums of squares: of what was lost, and of what was meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distortion {
    /// Of what is missing from what its reader decodes.
    pub lost: f64,
    /// Of what was to be said, residuals included.
    pub meant: f64,
}

impl Distortion {
    /// Elements of a slice, from its start, whose error is measured: a look at the codec, not a pass over all values. A whole number of
    /// every codec's blocks.
    pub const SAMPLE: usize = 1024;

    /// Of the first values of a slice, as they are encoded without feedback.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn of_start(codec: Codec, values: &[f32]) -> Result<Distortion, CodecError> {
        if codec.is_lossless() {
            return Ok(Distortion::default());
        }
        let values = values.get(..Self::SAMPLE).unwrap_or(values);
        // No codec's bytes are more than those of `f32` and a block's scale.
        let (mut bytes, mut read) = ([0; 4 * Self::SAMPLE + 4], [0.0; Self::SAMPLE]);
        let bytes = bytes.get_mut(..codec.encoded_len(values.len())).unwrap_or_default();
        let read = read.get_mut(..values.len()).unwrap_or_default();
        codec.encode(values, bytes)?;
        codec.decode(bytes, read)?;
        let lost = values.iter().zip(read.iter()).map(|(value, read)| value - read);
        Ok(Distortion::new(lost, values.iter().copied()))
    }

    /// Of values of which `lost` did not get there.
    #[must_use]
    pub fn new(lost: impl Iterator<Item = f32>, meant: impl Iterator<Item = f32>) -> Distortion {
        let squares = |sum: f64, value: f32| sum + f64::from(value) * f64::from(value);
        Distortion { lost: lost.fold(0.0, squares), meant: meant.fold(0.0, squares) }
    }

    /// Whether these are sums of squares.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        [self.lost, self.meant].iter().all(|sum| sum.is_finite() && *sum >= 0.0)
    }

    /// Adds another's sums.
    pub fn add(&mut self, other: Distortion) {
        self.lost += other.lost;
        self.meant += other.meant;
    }

    /// The root mean square of what was lost, relative to that of what was meant; 0 where nothing was, or where the sums are no
    /// numbers.
    #[must_use]
    pub fn relative(&self) -> f64 {
        let share = self.lost / self.meant;
        if share.is_finite() && share > 0.0 { share.sqrt() } else { 0.0 }
    }
}

//! A gradient as a model hands it over.

/// A parameter's gradient sum, as numbers or as they travel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Gradient<'a> {
    /// The numbers.
    Values(&'a [f32]),
    /// All of them in the codec that was asked for, which takes each number by itself: a run of numbers has a run of the bytes.
    Encoded {
        /// As [`Codec::encode`](crate::Codec::encode) writes them.
        bytes: &'a [u8],
        /// The first numbers, [`Distortion::SAMPLE`](crate::Distortion::SAMPLE) at most: what is lost is measured by them.
        start: &'a [f32],
    },
}

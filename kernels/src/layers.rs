//! Layers: explicit forward and backward on buffers that their callers own.
//!
//! Invariants:
//! 1. Activations and their gradients lie in [`Panels`]: feature-major, examples in the lanes. A layer reads `used`
//!    examples of each panel and may write the padding anything; what padding holds never reaches a result.
//! 2. Every element of a result is a written sequence of IEEE operations, stated where the layer stands: the same at
//!    every SIMD width. An example's own activations and gradients do not depend on the other examples; what is summed
//!    over examples (gradients of parameters) is summed in an order that is stated.
//! 3. Nothing is allocated: buffers come from [`buffer`], once, when a model is built.
//! 4. Lengths are the caller's promise: a buffer too short leaves results unfinished, and never panics.

mod attention;
mod batch_norm;
mod bias;
mod buffers;
mod convolution;
mod dropout;
mod embedding;
mod gelu;
mod image;
mod kept;
mod norm;
mod pool;
mod relu;
mod softmax;

pub(crate) use crate::linear::{Linear, Panels, Rows};
pub(crate) use attention::{Attention, Drops, Known, Scratch as AttentionScratch};
pub(crate) use batch_norm::{BatchNorm, Statistics};
pub(crate) use bias::{sum_examples, sum_positions};
pub(crate) use buffers::{buffer, take, take_mut};
pub(crate) use convolution::{Convolution, Ends};
pub(crate) use dropout::Dropout;
pub(crate) use embedding::{add_to_table, embed, positions_gradient};
pub(crate) use gelu::{gelu, gelu_gradient};
pub(crate) use image::Image;
pub(crate) use kept::Kept;
pub use norm::Norm;
pub(crate) use norm::Normalize;
pub(crate) use pool::Pool;
pub(crate) use relu::{relu, relu_gradient};
pub(crate) use softmax::{cross_entropy, probabilities, scratch_elements, smoothed_cross_entropy};

#[cfg(test)]
mod tests;

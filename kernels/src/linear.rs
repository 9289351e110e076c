//! The three matrix products of a fully connected layer, y = x Wᵀ + b with W of shape [outputs, inputs].
//!
//! Invariants:
//! 1. Every element of a result is one chain of fused multiply-adds over ascending k, and nothing else:
//!    - forward:  y[e, o] starts at b[o], then `fma(w[o, k], x[e, k], ·)` for k over the inputs;
//!    - backward: dx[e, i] starts at +0, then `fma(w[k, i], dy[e, k], ·)` for k over the outputs;
//!    - weights:  dw[o, i] starts at +0, then `fma(dy[k, o], x[k, i], ·)` for k over the examples.
//!
//!    So bits depend neither on vector width, tiling, cache sizes nor the machine, and an example's row of y and dx
//!    not on the other examples. Tiling only chooses which chains run side by side.
//! 2. Nothing is allocated after the buffers have been made.
//!
//! How speed is had: activations lie feature-major in [panels](Panels) of examples, so that forward and backward read
//! W where it lies, broadcast one weight at a time against vectors of examples, and copy nothing. Only the weights'
//! gradient needs examples as rows: it packs them into tiles that stay in cache while every output passes over them.

mod panels;
mod products;
mod tile;

pub(crate) use panels::{Panel, Panels, transpose};
pub(crate) use products::{Linear, Rows};

/// What convolutions take of the products: tiles, and the loops around them.
pub(crate) mod tiles {
    pub(crate) use super::panels::{cut, transpose, widest_tile};
    pub(crate) use super::tile::{Tile, by_rows, load, steps, store, tall_tiles, vectors, vectors_mut};
}

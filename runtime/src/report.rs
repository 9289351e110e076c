//! What a run tells its user: progress while it runs, a record of every step, a summary and a plot.
//!
//! - [`metrics`]: one JSON line a step.
//! - [`progress`]: one line on a terminal, redrawn; plain lines elsewhere.
//! - [`status`]: a run as its scheduler sees it, as a table and as JSON.
//! - [`summary`]: the result, as a table and as JSON.
//! - [`plot`]: the loss as an SVG.
//! - [`tensorboard`]: event files for TensorBoard.
//! - [`top`]: a run on a terminal.
//! - [`human`]: counts, bytes and times as people write them.
//!
//! Everything here turns numbers into text by pure functions; files and terminals are the caller's.

#[cfg(test)]
mod documented;
pub mod human;
pub mod metrics;
pub mod plot;
pub mod progress;
pub mod status;
pub mod summary;
pub mod tensorboard;
pub mod top;

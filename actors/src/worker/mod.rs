//! The worker: computes gradients of its leased shards, pushes them layer by layer, pulls the next version.
//!
//! [`WorkerCore`] decides what to compute, push and pull, and when; [`ShardCompute`] does the arithmetic, on the
//! worker's compute thread; [`actor`] is the actix shell around them.

pub mod actor;
mod compute;
mod core;
mod dial;
mod encode;
mod residuals;
mod thread;
mod watch;
mod writer;

pub use compute::{ComputeError, Event, Pace, ShardCompute};
pub use core::{Effect, Input, WorkerCore, WorkerError};
pub use residuals::ResidualEvent;

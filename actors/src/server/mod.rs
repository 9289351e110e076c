//! The parameter server: keeps slices, sums contributions in the canonical tree, updates, answers pulls.
//!
//! [`ServerCore`] decides who may contribute what; [`SliceMath`] does the arithmetic, on the server's compute thread;
//! [`Store`] holds the versions that connections read; [`actor`] is the actix shell around them.

pub mod actor;
mod allowances;
mod compute;
mod contribution;
mod core;
mod held;
pub(crate) mod histograms;
mod math;
mod own_rule;
mod pieces;
mod resident;
mod rules;
mod serve;
mod snapshot;
mod store;
mod traced;
mod votes;
mod writer;

pub use contribution::{Contribution, SumOrder};
pub use core::{Effect, Input, PushInput, ServerCore};
pub use histograms::histogram_bytes;
pub use math::{MathError, SliceMath, Updated};
pub(crate) use own_rule::fits;
pub use snapshot::{SnapshotEvent, Snapshots};
pub use store::{Store, StoreMiss};

//! The scheduler: admits nodes, leases shards, follows the steps, ends the run.
//!
//! [`SchedulerCore`] decides; [`actor`] is the actix shell around it; [`Observer`] is told of every completed step.

pub mod actor;
mod checkpoints;
mod core;
mod evaluations;
mod histograms;
mod ledger;
mod parameters;
mod progress;
mod refusals;
mod residuals;
mod revoke;
mod tasks;
mod timeline;
mod weighing;

pub use core::{Command, Effect, Input, LEASED_AHEAD, SchedulerCore, ToMember};
pub use histograms::{TensorSpread, histogram_bytes};
pub use progress::{Observer, StepSummary};

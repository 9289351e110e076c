//! Measurements of this build on this machine, each between processes of its own.

pub mod pushpull;
pub mod transport;

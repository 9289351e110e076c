//! Starting a cluster's nodes: one file a launcher.

pub mod local;

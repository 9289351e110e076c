//! Testudo: distributed training where the network is not trusted.
//!
//! This crate is the runtime around `testudo-actors`: the cluster file ([`config`]), launchers ([`launch`]), what other schedulers are given ([`deploy`]),
//! data sets ([`data`]), lines that outlive a full disk ([`appender`]), the audit log ([`audit`]), checkpoints ([`checkpoint`]), signed models ([`signing`]), steps checked
//! again ([`replay`]), how operators find a run ([`control`]), certificates that
//! change while a node runs ([`rotation`]), what a run shows and leaves behind ([`report`], [`rundir`]),
//! what a process may still do ([`process`]), how
//! models are served ([`serve`]), and
//! the command line ([`main`]).

#![deny(clippy::print_stdout, clippy::print_stderr, reason = "say! and note! outlive a closed pipe")]

pub mod appender;
pub mod audit;
mod authority;
pub mod bench;
pub mod checkpoint;
mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod deploy;
pub mod device;
pub mod doctor;
pub mod error;
pub mod job;
pub mod launch;
pub mod node;
pub mod process;
pub mod replay;
pub mod report;
pub mod rotation;
pub mod run;
pub mod rundir;
pub mod sample;
mod say;
pub mod serve;
pub mod signing;
mod telemetry;

pub use cli::main;

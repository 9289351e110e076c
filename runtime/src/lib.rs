//! Testudo: distributed training where the network is not trusted.
//!
//! From code, a job is built, started on a cluster in this process, and waited for ([`Job`]); the same job in processes, by the command
//! line, gives the same parameters to the bit:
//!
//! ```
//! use testudo::{Dataset, Job, ModelSpec};
//!
//! /// Points on a line: those right of 0 are of class 1.
//! struct Line(usize);
//!
//! impl Dataset for Line {
//!     fn len(&self) -> usize {
//!         self.0
//!     }
//!     fn input_elements(&self) -> usize {
//!         1
//!     }
//!     fn fill(&self, index: usize, input: &mut [f32], labels: &mut [u32]) {
//!         let x = index as f32 / self.0 as f32 - 0.5;
//!         input.fill(x);
//!         labels.fill(u32::from(x > 0.0));
//!     }
//! }
//!
//! let trained = Job::builder()
//!     .model(ModelSpec::Mlp { inputs: 1, hidden: vec![], classes: 2 })
//!     .data(Line(200), Line(100))
//!     .optimizer("adam")
//!     .learning_rate(0.1)
//!     .workers(2)
//!     .servers(2)
//!     .batch_size(20)
//!     .epochs(10)
//!     .run()?;
//! assert!(trained.finished.test_accuracy > 0.9);
//! println!("{} {:?}", trained.params_blake3(), trained.parameters[0].dims);
//! # Ok::<(), testudo::EmbeddedError>(())
//! ```
//!
//! What a program brings along: a model ([`Model`], by [`JobBuilder::own_model`]), data ([`Dataset`]; of several owners,
//! [`JobBuilder::data_of`]), a rule of aggregation ([`Aggregator`]), and actors that exchange typed messages over the
//! same transport ([`actor`]). `docs/actors.md` is the guide; `examples/src/bin` has programs.
//!
//! Shapes are row-major, outermost dimension first; losses are sums over examples in nats; gradients are sums, never means.
//!
//! This crate is also the runtime around `testudo-actors`: the cluster file ([`config`]), launchers ([`launch`]), what other schedulers are given ([`deploy`]),
//! data sets ([`data`]), lines that outlive a full disk ([`appender`]), the audit log ([`audit`]), checkpoints ([`checkpoint`]), signed models ([`signing`]), steps checked
//! again ([`replay`]), how operators find a run ([`control`]), the page that shows one ([`dashboard`]), certificates that
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
pub mod dashboard;
pub mod data;
pub mod deploy;
pub mod device;
pub mod doctor;
pub mod embedded;
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
pub use embedded::{
    EmbeddedError, Job, JobActors, JobBuilder, Links, ModelSetup, Report, Reports, RunningJob, Trained,
};
pub use testudo_actors::{Dataset, TrainAndTest, own as actor};
pub use testudo_kernels::{
    Aggregation, Aggregator, Batch, Codec, Initial, Loss, Model, ModelError, ModelSpec, OwnName,
    ParameterSpec, Place, Precision, RuleInput, Schedule, Shape, Update, VotesOnSlice,
};
pub use {testudo_actors as actors, testudo_kernels as kernels};

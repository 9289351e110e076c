//! Measurements of this build on this machine: of training and the wire each between processes of its own, of kernels on a GPU.

pub mod kernels;
pub mod pushpull;
pub mod train;
pub mod transport;

use testudo_actors::message::StatusReport;

use crate::run::Watcher;
use crate::say::note;

/// Follows a run without a word, unless something is wrong.
struct Silent;

impl Watcher for Silent {
    fn report(&mut self, _: &StatusReport) {}

    fn notice(&mut self, text: &str) {
        note!("{text}");
    }
}

//! Measurements of this build on this machine: of training and the wire each between processes of its own, of kernels on a GPU.

pub mod kernels;
pub mod pushpull;
pub mod train;
pub mod transport;

use testudo_actors::message::StatusReport;

use crate::run::Watcher;
use crate::say::note;

/// How what is measured travels, each as in the cluster file.
#[derive(Clone, Debug, clap::Args)]
pub struct Wire {
    /// Who shares a process, as cluster.placement [default: colocated for training, dedicated for pushes and pulls]
    #[arg(long, value_parser = ["dedicated", "colocated"])]
    pub placement: Option<String>,
    /// How gradients travel, as transport.push_codec
    #[arg(long, value_name = "CODEC", default_value = "f32")]
    pub push_codec: String,
    /// How parameters travel, as transport.pull_codec
    #[arg(long, value_name = "CODEC", default_value = "f32")]
    pub pull_codec: String,
}

/// Follows a run without a word, unless something is wrong.
struct Silent;

impl Watcher for Silent {
    fn report(&mut self, _: &StatusReport) {}

    fn notice(&mut self, text: &str) {
        note!("{text}");
    }
}

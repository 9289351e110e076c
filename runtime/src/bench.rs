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
    /// How gradients travel, as transport.push_codec [default: bf16 for training, f32 for pushes and pulls]
    #[arg(long, value_name = "CODEC")]
    pub push_codec: Option<String>,
    /// How parameters travel, as transport.pull_codec [default: as for gradients]
    #[arg(long, value_name = "CODEC")]
    pub pull_codec: Option<String>,
}

impl Wire {
    /// Placement, push codec and pull codec, with those that stand for what was not said.
    fn or<'a>(&'a self, placement: &'a str, codec: &'a str) -> (&'a str, &'a str, &'a str) {
        fn said<'a>(value: &'a Option<String>, otherwise: &'a str) -> &'a str {
            value.as_deref().unwrap_or(otherwise)
        }
        (said(&self.placement, placement), said(&self.push_codec, codec), said(&self.pull_codec, codec))
    }
}

/// Follows a run without a word, unless something is wrong.
struct Silent;

impl Watcher for Silent {
    fn report(&mut self, _: &StatusReport) {}

    fn notice(&mut self, text: &str) {
        note!("{text}");
    }
}

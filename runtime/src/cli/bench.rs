//! `testudo bench`: measurements of this build on this machine.

use crate::cli::args::{BenchArguments, BenchCommand};
use crate::error::Failure;
use crate::process::{RunAs, user};

pub(super) fn bench(arguments: &BenchArguments) -> Result<(), Failure> {
    // What is measured needs no file but its own, in the system's folder for such.
    if user::is_root() {
        let nobody = RunAs::find(user::NOBODY).map_err(Failure::misconfigured)?;
        nobody.take_over().map_err(Failure::misconfigured)?;
    }
    match &arguments.command {
        BenchCommand::Transport { message_bytes, mib, repeat, json, receive } => {
            crate::bench::transport::run(*message_bytes, *mib, *repeat, *json, receive.as_deref())
        }
        BenchCommand::Node(node) => {
            crate::cli::node::node(node, Some(Box::new(crate::bench::pushpull::Setup)))
        }
        BenchCommand::Pushpull { workers, servers, mib, rounds, json } => {
            crate::bench::pushpull::run(*workers, *servers, *mib, *rounds, *json)
        }
    }
}

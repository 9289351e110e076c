//! `testudo bench`: measurements of this build on this machine.

use crate::bench::{kernels, pushpull, train, transport};
use crate::cli::args::{BenchArguments, BenchCommand};
use crate::data::mnist::Files;
use crate::error::Failure;
use crate::process::{RunAs, user};

pub(super) fn bench(arguments: &BenchArguments) -> Result<(), Failure> {
    match &arguments.command {
        BenchCommand::Transport { message_bytes, mib, repeat, json, receive } => {
            be_nobody()?;
            transport::run(*message_bytes, *mib, *repeat, *json, receive.as_deref())
        }
        BenchCommand::Kernels { gpu, mib, peer, json } => kernels::run(*gpu, *mib, peer.as_deref(), *json),
        BenchCommand::Node(node) => {
            be_nobody()?;
            crate::cli::node::node(node, Some(Box::new(pushpull::Setup)))
        }
        BenchCommand::Pushpull { workers, servers, wire, mib, rounds, json } => {
            be_nobody()?;
            pushpull::run(*workers, *servers, wire, *mib, *rounds, *json)
        }
        BenchCommand::Train { model, batch, workers, steps, wire, data, json } => {
            let files = Files::open(data).map_err(Failure::misconfigured)?;
            be_nobody()?;
            let options = train::Options {
                network: *model,
                batch: *batch,
                workers: *workers,
                steps: *steps,
                wire: wire.clone(),
                json: *json,
            };
            train::run(&options, files)
        }
    }
}

/// From here on, what is measured needs no file but its own, in the system's folder for such.
fn be_nobody() -> Result<(), Failure> {
    if user::is_root() {
        let nobody = RunAs::find(user::NOBODY).map_err(Failure::misconfigured)?;
        nobody.take_over().map_err(Failure::misconfigured)?;
    }
    Ok(())
}

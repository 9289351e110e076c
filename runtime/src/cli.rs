//! The command line.

mod args;
mod audit;
mod bench;
mod checkpoint;
mod doctor;
mod job;
mod node;
mod operate;
mod pki;
mod replay;
mod resume;
mod revoke;
mod run;
mod serve;
mod sign;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Failure;
use args::{Arguments, Command};
use operate::Operation;

/// Parses the process's arguments, carries the command out, and returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    crate::process::harden();
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run(run) => run::run(&run),
        Command::Node(node) => node::node(&node, None),
        Command::Pki(pki) => pki::pki(&pki),
        Command::Job(job) => job::job(&job),
        Command::Status(status) => operate::status(&status),
        Command::Pause(pause) => operate::operate(&pause, Operation::Pause),
        Command::Resume(resume) => operate::operate(&resume, Operation::Resume),
        Command::Stop(stop) => operate::operate(&stop, Operation::Stop),
        Command::Checkpoint(arguments) => checkpoint::checkpoint(&arguments),
        Command::Replay(replay) => replay::replay(&replay),
        Command::Audit(arguments) => audit::audit(&arguments),
        Command::Sign(sign) => sign::sign(&sign),
        Command::Serve(serve) => serve::serve(&serve),
        Command::Verify(verify) => verify::verify(&verify),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Bench(bench) => bench::bench(&bench),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, status }) => {
            eprintln!("error: {message}");
            status.code()
        }
    }
}

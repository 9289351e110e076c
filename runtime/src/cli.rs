//! The command line.

mod args;
mod audit;
mod bench;
mod checkpoint;
mod completions;
mod deploy;
mod doctor;
mod hosted;
mod init;
mod job;
mod manual;
mod naming;
mod node;
mod operate;
mod pki;
mod reference;
mod replay;
mod restart;
mod resume;
mod revoke;
mod run;
mod sample;
mod serve;
mod sign;
mod top;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::Config;
use crate::error::Failure;
use crate::process::{RunAs, user};
use crate::rundir::{RunDir, in_words, inputs};
use crate::say::{self, note};
use args::{Arguments, Command};
use operate::Operation;

/// Parses the process's arguments, carries the command out, and returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    crate::process::harden();
    if user::is_root() {
        // What a run left behind as whom runs go on unless their cluster file says otherwise.
        let _ = RunAs::find(user::NOBODY).map(|nobody| testudo_transport::pki::trust_owner(nobody.uid()));
    }
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run(run) => run::run(&run),
        Command::Node(node) => node::node(&node, None),
        Command::Deploy(deploy) => deploy::deploy(&deploy),
        Command::Hosted(hosted) => hosted::hosted(&hosted),
        Command::Pki(pki) => pki::pki(&pki),
        Command::Job(job) => job::job(&job),
        Command::Status(status) => operate::status(&status),
        Command::Top(arguments) => top::top(&arguments),
        Command::Pause(pause) => operate::operate(&pause, Operation::Pause),
        Command::Resume(resume) => operate::operate(&resume, Operation::Resume),
        Command::Stop(stop) => operate::operate(&stop, Operation::Stop),
        Command::Scale(scale) => operate::scale(&scale),
        Command::Revoke(arguments) => revoke::in_run(&arguments),
        Command::Checkpoint(arguments) => checkpoint::checkpoint(&arguments),
        Command::Replay(replay) => replay::replay(&replay),
        Command::Audit(arguments) => audit::audit(&arguments),
        Command::Sample(sample) => sample::sample(&sample),
        Command::Sign(sign) => sign::sign(&sign),
        Command::Serve(serve) => serve::serve(&serve),
        Command::Verify(verify) => verify::verify(&verify),
        Command::Doctor(doctor) => doctor::doctor(&doctor),
        Command::Bench(bench) => bench::bench(&bench),
        Command::Init(init) => init::init(&init),
        Command::Completions(completions) => completions::completions(&completions),
        Command::Man(man) => manual::man(&man),
    };
    let said = || match say::failure() {
        Some(why) => Err(Failure::failed(format!("standard output cannot be written: {why}"))),
        None => Ok(()),
    };
    match result.and_then(|()| said()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, status }) => {
            note!("error: {}", in_words(&message));
            status.code()
        }
    }
}

/// Whom this process goes on as; `None` if as whom it was started.
fn user(config: &Config, allow_root: bool) -> Result<Option<RunAs>, Failure> {
    let user = user::plan(&config.security.run_as, allow_root).map_err(Failure::misconfigured)?;
    if let Some(user) = &user {
        testudo_transport::pki::trust_owner(user.uid());
    }
    Ok(user)
}

/// Goes on as `user`, who gets the run directory; `named` are the inputs that whoever gave this command named for the run in it.
fn settle(run_dir: &RunDir, user: Option<&RunAs>, named: Option<Vec<PathBuf>>) -> Result<(), Failure> {
    let Some(user) = user else { return Ok(()) };
    run_dir.hand_over(user).map_err(Failure::misconfigured)?;
    if let (Some(named), Some(directory)) = (named, run_dir.descriptor()) {
        let written = inputs::record(directory, named);
        written.map_err(|e| Failure::file(&run_dir.path().join(inputs::FILE), "cannot be written", e))?;
    }
    user.take_over().map_err(Failure::misconfigured)
}

//! `testudo completions`: what a shell needs to complete this command's line.

use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::generate;

use super::args::Arguments;
use crate::error::Failure;

/// `testudo completions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  testudo completions bash > ~/.local/share/bash-completion/completions/testudo
  testudo completions fish > ~/.config/fish/completions/testudo.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Shells whose completion is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// A file for the folder of bash-completion, or to be sourced
    Bash,
    /// A function for a folder of fpath, as _testudo
    Zsh,
    /// A file for ~/.config/fish/completions
    Fish,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), Failure> {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    let root = Arguments::command();
    generate(shell, &mut shown(&root), root.get_name(), &mut script);
    let script = String::from_utf8(script).map_err(Failure::failed)?;
    crate::say::out(format_args!("{script}"));
    Ok(())
}

/// The command without what is hidden: nobody completes what processes of ours say to each other. Which options exclude each other is of
/// no use to a shell.
fn shown(command: &Command) -> Command {
    let mut shown = Command::new(command.get_name().to_owned())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|inner| !inner.is_hide_set()).map(self::shown));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

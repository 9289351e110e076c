//! What the command line is, for whoever reads about it: `testudo --help`, `docs/commands.md`, the manual pages.
//!
//! 1. Everything is made from what the parser itself reads by, so that none of them can disagree with it.
//! 2. Hidden commands and options are what processes of ours say to each other, and are told to nobody.
//!
//! A test compares the committed page with [`page`]; `TESTUDO_REGENERATE=1 cargo test -p testudo --lib reference` writes it anew.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::args::Arguments;
use crate::error::EXIT_STATUSES;

/// What begins the examples in a help text, one a line.
const EXAMPLES: &str = "Examples:\n";
/// What begins the sentence about exit statuses in a help text.
const EXIT: &str = "Exit status: ";

const INTRODUCTION: &str = "\
# The command line

`testudo` is one program with a command for each task. `testudo help COMMAND` and `testudo COMMAND --help` print what this page says of it, and
`testudo man DIR` writes it as manual pages. Completion for a shell comes from `testudo completions`:

```
testudo completions bash > ~/.local/share/bash-completion/completions/testudo
testudo completions zsh  > \"${fpath[1]}/_testudo\"
testudo completions fish > ~/.config/fish/completions/testudo.fish
```

What a command reports is on standard output; progress, notes and errors are on standard error. With `--json`, the last line of standard
output is one JSON object, or where the command says so, each line is. Colours and moving lines are for terminals alone, and with
`NO_COLOR` set to anything but nothing there are no colours (<https://no-color.org>).

This page is generated from the command line itself.
";

/// A command that people give.
#[derive(Debug)]
pub(super) struct Entry {
    /// What they write: `testudo pki init`.
    pub(super) path: String,
    /// What the parser knows of it.
    pub(super) command: Command,
}

/// What a command's help says after its options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ending {
    /// What its exit statuses mean, where that is its own.
    pub(super) exit: Option<String>,
    /// Lines that can be given.
    pub(super) examples: Vec<String>,
}

impl Entry {
    /// Whether it does something itself, and is not a group of commands.
    pub(super) fn acts(&self) -> bool {
        !self.command.has_subcommands()
    }

    /// Its arguments and options, hidden ones and those that every command has left out.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &Arg> {
        let common = |arg: &Arg| ["help", "version"].contains(&arg.get_id().as_str());
        self.command.get_arguments().filter(move |arg| !arg.is_hide_set() && !common(arg))
    }

    /// How it is given, in one line.
    pub(super) fn usage(&self) -> String {
        let usage = self.command.clone().render_usage().to_string();
        one_line(usage.strip_prefix("Usage:").unwrap_or(&usage))
    }

    /// What its help says last.
    pub(super) fn ending(&self) -> Ending {
        let text = self.command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut ending = Ending::default();
        for paragraph in text.split("\n\n") {
            if let Some(lines) = paragraph.strip_prefix(EXAMPLES) {
                ending.examples.extend(lines.lines().map(|line| line.trim().to_owned()));
            } else if let Some(sentence) = paragraph.strip_prefix(EXIT) {
                ending.exit = Some(sentence.to_owned());
            }
        }
        ending
    }
}

/// Every command, each before those that it is a group of.
pub(super) fn entries() -> Vec<Entry> {
    let mut root = Arguments::command().disable_help_subcommand(true);
    root.build();
    let mut found = Vec::new();
    gather(root.get_name(), &root, &mut found);
    found
}

fn gather(path: &str, command: &Command, found: &mut Vec<Entry>) {
    found.push(Entry { path: path.to_owned(), command: command.clone() });
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        gather(&format!("{path} {}", inner.get_name()), inner, found);
    }
}

/// The end of `testudo --help`.
pub(super) fn overview() -> String {
    let statuses: Vec<String> =
        EXIT_STATUSES.iter().map(|(number, meaning)| format!("{number} {meaning}")).collect();
    format!(
        "{EXIT}{}.\n\n{EXAMPLES}  testudo init first\n  testudo run first/cluster.toml\n  testudo status runs/gpt-20261123T081613Z --watch\n  \
         testudo doctor",
        statuses.join("; ")
    )
}

/// The page `docs/commands.md`.
pub(super) fn page() -> String {
    let entries = entries();
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n## Exit statuses\n\n| status | meaning |\n|---|---|\n");
    for (number, meaning) in EXIT_STATUSES {
        let _ = writeln!(page, "| {number} | {meaning} |");
    }
    page.push_str(
        "\nWhere a command has a meaning of its own for one of them, it stands with the command. A command line that cannot be read is \
         misconfigured. A process that a signal ended has no status of its own; shells show 128 and the signal's number.\n",
    );
    page.push_str("\n## Commands\n\n| command | |\n|---|---|\n");
    for entry in entries.iter().filter(|entry| entry.acts()) {
        let _ =
            writeln!(page, "| [`{}`](#{}) | {} |", entry.path, entry.path.replace(' ', "-"), about(entry));
    }
    for entry in entries.iter().skip(1) {
        section(&mut page, entry);
    }
    page
}

fn about(entry: &Entry) -> String {
    entry.command.get_about().map(|about| one_line(&about.to_string())).unwrap_or_default()
}

fn section(page: &mut String, entry: &Entry) {
    let _ = write!(page, "\n## {}\n\n{}.\n", entry.path, about(entry));
    if !entry.acts() {
        let inner = entry.command.get_subcommands().filter(|inner| !inner.is_hide_set());
        let inner: Vec<String> = inner
            .map(|inner| {
                let path = format!("{} {}", entry.path, inner.get_name());
                format!("[`{}`](#{})", inner.get_name(), path.replace(' ', "-"))
            })
            .collect();
        let _ = write!(page, "\nCommands: {}.\n", inner.join(", "));
        return;
    }
    let _ = write!(page, "\n```\n{}\n```\n", entry.usage());
    if entry.arguments().next().is_some() {
        page.push_str("\n| argument or option | meaning |\n|---|---|\n");
        for arg in entry.arguments() {
            let _ = writeln!(page, "| `{}` | {} |", escaped(&name(arg)), escaped(&meaning(arg)));
        }
    }
    let ending = entry.ending();
    if let Some(exit) = ending.exit {
        let _ = write!(page, "\n{EXIT}{exit}\n");
    }
    if !ending.examples.is_empty() {
        let _ = write!(page, "\n```\n{}\n```\n", ending.examples.join("\n"));
    }
}

/// As the usage line has it, with the short form, if there is one.
fn name(arg: &Arg) -> String {
    match arg.get_short() {
        Some(short) => format!("-{short}, {arg}"),
        None => arg.to_string(),
    }
}

/// What it does, what it may be, what it is if it is not given.
pub(super) fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().map(|help| one_line(&help.to_string())).unwrap_or_default();
    let takes_values = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    if !takes_values {
        return text;
    }
    let values = arg.get_possible_values();
    if !values.is_empty() && !arg.is_hide_possible_values_set() {
        let values: Vec<String> = values
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({})", value.get_name(), one_line(&help.to_string())),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        let _ = write!(text, ". Values: {}", values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() {
        let _ = write!(text, " [default: {}]", defaults.join(" "));
    }
    if let Some(variable) = arg.get_env() {
        let _ = write!(text, " [env: {}]", variable.to_string_lossy());
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// For a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests;

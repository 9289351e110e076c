use std::path::Path;

use clap::CommandFactory as _;

use super::super::args::Arguments;
use super::{Ending, entries, page};

/// Commands that report nothing at their end: a program has no use for an object from them.
const SAY_NO_JSON: [&str; 6] = [
    // They go on until they are told to stop, and log.
    "testudo node",
    "testudo serve",
    "testudo pki serve",
    // A picture for a person; `testudo status --json` is its counterpart.
    "testudo top",
    // What they print is what was asked for.
    "testudo sample",
    "testudo completions",
];

#[test]
fn every_command_says_what_it_is_for_and_what_its_options_mean() {
    let entries = entries();
    assert!(entries.len() > 40, "{} commands", entries.len());
    for entry in &entries {
        let about = entry.command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty() && !about.ends_with('.'), "{}: {about:?}", entry.path);
        for arg in entry.arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(!help.is_empty() && !help.ends_with('.'), "{} {arg}: {help:?}", entry.path);
        }
    }
}

#[test]
fn every_command_that_reports_does_so_for_programs_too() {
    for entry in entries().iter().filter(|entry| entry.acts()) {
        let has = entry.arguments().any(|arg| arg.get_long() == Some("json"));
        assert_eq!(has, !SAY_NO_JSON.contains(&entry.path.as_str()), "{} and --json", entry.path);
    }
}

/// The examples of a help text can be given as they stand.
#[test]
fn every_command_has_examples_that_the_parser_takes() {
    for entry in entries() {
        let Ending { examples, .. } = entry.ending();
        let mut of_itself = 0;
        for example in &examples {
            for line in commands(example) {
                let matches = Arguments::command().try_get_matches_from(&line);
                let matches = matches.unwrap_or_else(|e| panic!("{}: {example}\n{e}", entry.path));
                let (mut path, mut inner) = ("testudo".to_owned(), &matches);
                while let Some((name, matches)) = inner.subcommand() {
                    path = format!("{path} {name}");
                    inner = matches;
                }
                of_itself += usize::from(path == entry.path);
            }
        }
        assert!(of_itself > 0 || !entry.acts(), "{} has no example of its own: {examples:?}", entry.path);
    }
}

/// The commands of ours in a line for a shell, each in words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let parts = line.split([';', '|', '>']).map(words);
    parts.filter(|words| words.first().is_some_and(|word| word == "testudo")).collect()
}

/// Words, in which double quotes keep spaces.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn lines_for_a_shell_are_read_as_a_shell_reads_them() {
    let read = commands("testudo a --b \"c d\" | tail -1; testudo e > f");
    assert_eq!(read, [vec!["testudo", "a", "--b", "c d"], vec!["testudo", "e"]]);
}

#[test]
fn nothing_hidden_is_told() {
    let page = page();
    for hidden in ["testudo hosted", "testudo bench node", "--with-parent", "--receive"] {
        assert!(!page.contains(hidden), "{hidden}");
    }
    for shown in
        ["## testudo pki init\n", "`--resume <RUN_DIR>`", "| 130 | interrupted twice |", "[env: DMLC_ROLE]"]
    {
        assert!(page.contains(shown), "{shown}");
    }
}

#[test]
fn the_committed_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    if std::env::var_os("TESTUDO_REGENERATE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let regenerate = "TESTUDO_REGENERATE=1 cargo test -p testudo --lib reference";
    assert_eq!(committed, page(), "docs/commands.md is out of date: {regenerate}");
}

#[test]
fn the_parser_itself_is_sound() {
    Arguments::command().debug_assert();
}

//! Whether what a page cites of the product is there: keys of the cluster file, and commands with their options.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use testudo_tests::process;

/// What ends a file's name, and no key's.
const FILES: [&str; 9] = ["toml", "job", "signed", "log", "pem", "json", "jsonl", "rs", "safetensors"];

/// The keys of the cluster file.
pub(crate) struct Keys {
    sections: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Keys {
    /// Those of the reference, `docs/config.md`.
    pub(crate) fn of(reference: &str) -> Keys {
        let mut found = Keys { sections: BTreeSet::new(), keys: BTreeSet::new() };
        let mut section = String::new();
        for line in reference.lines() {
            if let Some(rest) = line.strip_prefix("## `[") {
                section = rest.trim_end_matches("]`").to_owned();
                found.sections.insert(section.clone());
            } else if let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
                found.keys.insert(format!("{section}.{key}"));
            }
        }
        found
    }

    /// What in `text` is written as a key of a section that there is.
    fn candidates<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let is_key = |word: &&str| {
            let of_keys = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.';
            let mut parts = word.split('.');
            let is_section = parts.next().is_some_and(|first| self.sections.contains(first));
            let last = parts.next_back();
            is_section && word.chars().all(of_keys) && last.is_some_and(|last| !FILES.contains(&last))
        };
        text.split([' ', '=', ',', '"']).filter(is_key)
    }

    /// How many keys `text` cites.
    pub(crate) fn cited(&self, text: &str) -> usize {
        self.candidates(text).count()
    }

    /// What it cites that is no key.
    pub(crate) fn missing<'a>(&'a self, text: &'a str) -> Vec<&'a str> {
        self.candidates(text)
            .filter(|key| !self.keys.contains(*key) && !self.sections.contains(*key))
            .collect()
    }
}

/// The commands of a program, and the options of each.
pub(crate) struct Commands {
    /// By the words of the command, the subcommands and the options that its help has.
    known: BTreeMap<Vec<String>, (BTreeSet<String>, BTreeSet<String>)>,
}

impl Commands {
    /// Those that `program` tells in its help.
    pub(crate) fn of(program: &str) -> Commands {
        let mut known = BTreeMap::new();
        let mut left = vec![Vec::new()];
        while let Some(command) = left.pop() {
            let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
            let help = process::run(program, &words, Path::new("/no/mark")).succeeded().stdout;
            let below: BTreeSet<String> = subcommands(&help).map(str::to_owned).collect();
            left.extend(below.iter().map(|word| [&command[..], std::slice::from_ref(word)].concat()));
            let options = help.split_whitespace().filter_map(option).map(str::to_owned).collect();
            known.insert(command, (below, options));
        }
        Commands { known }
    }

    /// Whether `line` gives the program a command.
    pub(crate) fn is_cited(&self, line: &str) -> bool {
        given(line).next().is_some()
    }

    /// What of the command in `line` is not there.
    pub(crate) fn missing(&self, line: &str) -> Option<String> {
        let mut words = given(line).peekable();
        let mut command = Vec::new();
        while let Some((below, _)) = self.known.get(&command).filter(|(below, _)| !below.is_empty()) {
            let Some(word) = words.next_if(|word| !word.starts_with('-') && *word != "...") else { break };
            // `testudo checkpoint list|verify`
            let first = word.split('|').next().unwrap_or_default();
            if !below.contains(first) {
                return Some(format!("there is no {command:?} {word}"));
            }
            command.push(first.to_owned());
        }
        let (_, options) = self.known.get(&command)?;
        let wrong = words.filter_map(option).find(|option| !options.contains(*option));
        wrong.map(|option| format!("{command:?} has no {option}"))
    }

    /// Whether some command has that option.
    pub(crate) fn have(&self, text: &str) -> bool {
        option(text).is_some_and(|option| self.known.values().any(|(_, options)| options.contains(option)))
    }
}

/// The words after `testudo`, up to what another program gets.
fn given(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split_whitespace().skip_while(|word| *word != "testudo").skip(1);
    words.take_while(|word| !["|", "&&", "#", ">", ";"].contains(word))
}

/// `--name`, without what follows.
fn option(word: &str) -> Option<&str> {
    let word = word.trim_start_matches(['[', '<', '(', '`']);
    let name = word.strip_prefix("--").filter(|name| !name.is_empty())?;
    let end = name.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
    word.get(..2 + end.unwrap_or(name.len()))
}

/// The first words of the lines below `Commands:`.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    // What a description needs more lines for is further to the right.
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
}

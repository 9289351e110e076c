//! A cluster file to begin with: the values that are given, each under what the table of keys says of it, and beside them the keys
//! that mean something there, with their defaults, as comments.
//!
//! 1. What is written is read again to what was given, and to the same [`Config`](super::Config) when its defaults are no comments any more.

use std::fmt::Write as _;

use super::keys::{self, Absent, Key};
use super::{nearest, value};

/// Characters of a line of comment, at most; a word that is longer has a line of its own.
const WIDTH: usize = 100;
/// What most jobs change: the sections that are written if not all are to be.
const USUAL: [&str; 9] =
    ["job", "cluster", "training", "model", "optimizer", "schedule", "data", "checkpoint", "output"];

/// The cluster file. `given` are keys with their values in TOML; `heading` is its first comment, line by line. Without `all`, it has the
/// usual sections and what was given, and of each key that was not given one sentence.
pub(crate) fn text(heading: &str, given: &[(&str, String)], all: bool) -> String {
    let mut text = String::new();
    for line in heading.lines() {
        let _ = writeln!(text, "{}", format!("# {line}").trim_end());
    }
    for section in nearest::sections() {
        let keys = keys::all().filter(|key| key.section() == section && !key.is_any_name());
        let keys: Vec<&Key> = keys.filter(|key| applies(key, given)).collect();
        let is_given = |key: &&Key| of(key.path, given).is_some();
        if keys.is_empty() || !(all || USUAL.contains(&section) || keys.iter().any(is_given)) {
            continue;
        }
        let _ = write!(text, "\n[{section}]\n");
        // What is in force first: a reader looks for it.
        let (set, open): (Vec<&Key>, Vec<&Key>) = keys.into_iter().partition(is_given);
        for (index, key) in set.into_iter().chain(open).enumerate() {
            if index > 0 {
                text.push('\n');
            }
            one(&mut text, key, given, all);
        }
    }
    text
}

fn of<'a>(path: &str, given: &'a [(&str, String)]) -> Option<&'a str> {
    given.iter().find(|(key, _)| *key == path).map(|(_, value)| value.as_str())
}

/// What a selector is set to, by what was given or by default, without its quotes.
fn selected(selector: &str, given: &[(&str, String)]) -> String {
    let default = || keys::find(selector).and_then(|key| key.default_toml(|_| None));
    of(selector, given).or_else(default).unwrap_or_default().trim_matches('"').to_owned()
}

fn applies(key: &Key, given: &[(&str, String)]) -> bool {
    key.applies.as_ref().is_none_or(|applies| {
        let kind = selected(applies.selector, given);
        applies.kinds.contains(&kind.as_str())
    })
}

fn one(text: &mut String, key: &Key, given: &[(&str, String)], all: bool) {
    let value = of(key.path, given);
    let doc = plain(key.doc);
    let doc = if all || value.is_some() { doc.as_str() } else { first_sentence(&doc) };
    comment(text, doc);
    if let Some(value) = value {
        let _ = writeln!(text, "{} = {value}", key.name());
        return;
    }
    match (&key.absent, key.default_toml(|selector| Some(selected(selector, given)))) {
        (_, Some(default)) => {
            let _ = writeln!(text, "#{} = {default}", key.name());
        }
        (Absent::Unset(meaning), None) => {
            let allowed = value::allowed(&key.rule);
            comment(text, &format!("{} is not set: {}. It takes {allowed}.", key.name(), plain(meaning)));
        }
        (_, None) => comment(text, &format!("{} has to be set: {}.", key.name(), value::allowed(&key.rule))),
    }
}

/// The words of a text in Markdown: no backquotes, and of a link its name.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    for (index, part) in markdown.split('[').enumerate() {
        match part.split_once("](").and_then(|(name, rest)| Some((name, rest.split_once(')')?.1))) {
            Some((name, rest)) if index > 0 => {
                text.push_str(name);
                text.push_str(rest);
            }
            _ => {
                text.push_str(if index > 0 { "[" } else { "" });
                text.push_str(part);
            }
        }
    }
    text.replace('`', "")
}

/// Up to the first full stop that ends a sentence, or all of it.
fn first_sentence(text: &str) -> &str {
    match text.find(". ") {
        Some(end) => text.get(..=end).unwrap_or(text),
        None => text,
    }
}

fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn given(model: &str, data: &str) -> Vec<(&'static str, String)> {
        let quoted = |text: &str| format!("\"{text}\"");
        let mut given = vec![
            ("model.kind", quoted(model)),
            ("data.kind", quoted(data)),
            ("data.path", quoted("some where")),
            ("cluster.workers", "2".into()),
        ];
        match model {
            "gpt" => {}
            "mlp" => given.extend([("model.inputs", "784".into()), ("model.classes", "10".into())]),
            _ => given.push(("model.classes", "10".into())),
        }
        given
    }

    /// Invariant 1.
    #[test]
    fn defaults_that_are_no_comments_any_more_change_nothing() {
        for (model, data) in [("mlp", "mnist"), ("cnn", "mnist"), ("resnet18", "mnist"), ("gpt", "text")] {
            for all in [false, true] {
                let text = text("A job\n\nIt is one.", &given(model, data), all);
                let read = |text: &str| {
                    Config::parse::<&str>(text, Path::new("/cluster.toml"), &[])
                        .unwrap_or_else(|e| panic!("{e}\n{text}"))
                };
                let config = read(&text);
                assert_eq!((config.cluster.workers, config.data.path()), (2, Path::new("/some where")));
                let opened: String = text
                    .lines()
                    .map(|line| match line.strip_prefix('#') {
                        Some(key) if !key.is_empty() && !key.starts_with(' ') => format!("{key}\n"),
                        _ => format!("{line}\n"),
                    })
                    .collect();
                assert_ne!(opened, text);
                assert_eq!(read(&opened), config, "{opened}");
                assert!(text.lines().all(|line| line.chars().count() <= WIDTH + 20), "{text}");
            }
        }
    }

    #[test]
    fn every_key_that_means_something_is_told_and_no_other() {
        let given = given("gpt", "text");
        let whole = text("", &given, true);
        let is_there = |name: &str| {
            let told = [format!("\n#{name} = "), format!("\n{name} = "), format!("\n# {name} is not set: ")];
            told.iter().any(|told| whole.contains(told.as_str()))
        };
        for key in keys::all().filter(|key| !key.is_any_name()) {
            // Another section may have a key of the same name.
            let unique = keys::all().filter(|other| other.name() == key.name()).count() == 1;
            assert!(!unique || is_there(key.name()) == applies(key, &given), "{}\n{whole}", key.path);
        }
        let usual = text("", &given, false);
        assert!(usual.contains("[training]") && !usual.contains("[telemetry]"), "{usual}");
        assert!(usual.lines().count() < whole.lines().count());
    }

    #[test]
    fn markdown_becomes_words() {
        assert_eq!(plain("a `b` ([c.md](c.md#d)) [e](f), `[]` [g"), "a b (c.md) e, [] [g");
        assert_eq!(first_sentence("At 0.5 it is. So."), "At 0.5 it is.");
        assert_eq!(first_sentence("All of it."), "All of it.");
        let mut text = String::new();
        comment(&mut text, &"word ".repeat(40));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.starts_with("# word")), "{text}");
    }
}

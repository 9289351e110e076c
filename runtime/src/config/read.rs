//! From TOML text and `--set` options to checked values by key, with every problem on the way.
//!
//! Invariants:
//! 1. A value in [`Values`] satisfies its key's rule.
//! 2. Reading goes on after a problem; the caller must refuse the configuration if there is any.
//! 3. A later override wins over an earlier one, and any override over the file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Absent, Key, Rule};
use super::nearest;
use super::problem::{Place, Problem};
use super::value::{self, Value};

/// Checked values by key, defaults apart.
#[derive(Debug, Default)]
pub(super) struct Values {
    found: BTreeMap<&'static str, (Value, Place)>,
    /// Values of tables whose names are anybody's, by path.
    named: BTreeMap<String, (f64, Place)>,
    /// The cluster file, and where in it the values stand that are from there.
    file: String,
    spans: BTreeMap<&'static str, Range<usize>>,
    refused: BTreeSet<&'static str>,
}

impl Values {
    /// Reads a cluster file's text.
    pub(super) fn read(&mut self, text: &str, problems: &mut Vec<Problem>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        text.clone_into(&mut self.file);
        for error in errors {
            let place = error.span().map_or(Place::Whole, |span| Place::of(text, span));
            problems.push(Problem { place, message: format!("not TOML: {}", one_line(error.message())) });
        }
        self.table("", root.get_ref(), &|span| Place::of(text, span), problems);
    }

    /// Applies one `--set` argument, `key=value`; the value is TOML, or failing that a bare string.
    pub(super) fn set(&mut self, argument: &str, problems: &mut Vec<Problem>) {
        let place = Place::Override(argument.to_string());
        let mut refuse = |message: String| problems.push(Problem { place: place.clone(), message });
        let Some((path, text)) = argument.split_once('=') else {
            return refuse("write it as key=value, for instance training.seed=7".into());
        };
        let (path, text) = (path.trim(), text.trim());
        let Some(key) = keys::find(path) else {
            return refuse(match keys::is_section(path) {
                true => format!("`{path}` is a section; {}", holds(path)),
                false => format!("unknown key `{path}`; {}", nearest::advice(path)),
            });
        };
        let bare = || Spanned::new(0..text.len(), DeValue::String(text.to_string().into()));
        // A key that takes a string takes `job.name=123` too: quotes do not survive most shells.
        let stringy = matches!(key.rule, Rule::Text { .. } | Rule::Path { .. } | Rule::Choice(_));
        let value = match DeValue::parse(text) {
            Ok(value) if !stringy || matches!(value.get_ref(), DeValue::String(_)) => value,
            _ => bare(),
        };
        self.spans.remove(key.path);
        self.insert(key, path, &value, &|_| place.clone(), problems);
    }

    fn table(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        place: &dyn Fn(std::ops::Range<usize>) -> Place,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table.iter() {
            let name_text = name.get_ref().as_ref();
            let path =
                if prefix.is_empty() { name_text.to_string() } else { format!("{prefix}.{name_text}") };
            let mut refuse = |message: String| problems.push(Problem { place: place(name.span()), message });
            if let Some(key) = keys::find(&path) {
                self.spans.insert(key.path, value.span());
                self.insert(key, &path, value, place, problems);
            } else if !keys::is_section(&path) {
                let what = if matches!(value.get_ref(), DeValue::Table(_)) { "section" } else { "key" };
                refuse(format!("unknown {what} `{}`; {}", shown(&path), nearest::advice(&path)));
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.table(&path, inner, place, problems);
            } else {
                let found = value::describe(value.get_ref());
                refuse(format!("`{path}` is a section, found {found}; {}", holds(&path)));
            }
        }
    }

    fn insert(
        &mut self,
        key: &'static Key,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        place: &dyn Fn(std::ops::Range<usize>) -> Place,
        problems: &mut Vec<Problem>,
    ) {
        match value::check(path, &key.rule, value) {
            Ok(Value::Number(number)) if key.is_any_name() => {
                self.named.insert(path.to_owned(), (number, place(value.span())));
            }
            Ok(checked) => {
                self.refused.remove(key.path);
                self.found.insert(key.path, (checked, place(value.span())));
            }
            Err(refusal) => {
                self.refused.insert(key.path);
                problems.push(Problem { place: place(refusal.span), message: refusal.message });
            }
        }
    }

    /// Adds the defaults; reports required keys that are missing, and keys that mean nothing here.
    pub(super) fn complete(&mut self, problems: &mut Vec<Problem>) {
        // Selectors stand before what they select, in the table and so here.
        for key in keys::all() {
            if let Some(applies) = &key.applies
                && let Some(kind) = self.text(applies.selector)
                && !applies.kinds.contains(&kind)
            {
                if let Some((_, place)) = self.found.get(key.path) {
                    let message = format!(
                        "`{}` means nothing with {} = \"{kind}\": leave it out, or choose {} = {}",
                        key.path,
                        applies.selector,
                        applies.selector,
                        applies
                            .kinds
                            .iter()
                            .map(|kind| format!("\"{kind}\""))
                            .collect::<Vec<_>>()
                            .join(" or "),
                    );
                    problems.push(Problem { place: place.clone(), message });
                }
                continue;
            }
            if self.found.contains_key(key.path) || self.refused.contains(key.path) {
                continue;
            }
            // Which keys are needed is not known where a value was refused that decides it.
            let undecided = key.applies.as_ref().is_some_and(|applies| {
                let decides = keys::find(applies.selector);
                self.refused.contains(applies.selector)
                    && decides.is_some_and(|key| !matches!(key.absent, Absent::Required))
            });
            if matches!(key.absent, Absent::Required) && undecided {
                continue;
            }
            if matches!(key.absent, Absent::Required) {
                let message = format!(
                    "`{}` is missing: write `{} = ...` under [{}]; allowed: {}",
                    key.path,
                    key.name(),
                    key.section(),
                    value::allowed(&key.rule)
                );
                self.refused.insert(key.path);
                problems.push(Problem { place: Place::Whole, message });
                continue;
            }
            let default = key.default_toml(|selector| self.text(selector).map(str::to_string));
            let default = default.and_then(|toml| DeValue::parse(toml).ok());
            if let Some(Ok(value)) = default.map(|found| value::check(key.path, &key.rule, &found)) {
                self.found.insert(key.path, (value, Place::Whole));
            }
        }
    }

    /// Whether every one of `paths` was given a value that its rule takes, or none at all.
    pub(super) fn sound(&self, paths: &[&str]) -> bool {
        paths.iter().all(|path| !self.refused.contains(path))
    }

    /// Where the first of `paths` that was given stands.
    pub(super) fn place(&self, paths: &[&str]) -> Place {
        let given = paths.iter().filter_map(|path| self.found.get(path)).map(|(_, place)| place);
        given.clone().find(|place| **place != Place::Whole).cloned().unwrap_or(Place::Whole)
    }

    /// The place of a line and column of the text at `path`, both from 1; `None` where the text does not stand in the cluster file
    /// as it is.
    pub(super) fn place_within(&self, path: &str, line: u32, column: u32) -> Option<Place> {
        let (span, text) = (self.spans.get(path)?, self.text(path)?);
        let begin = span.start + self.file.get(span.clone())?.find(text)?;
        let before = text.split_inclusive('\n').take(line as usize - 1).map(str::len).sum::<usize>();
        let within = text.get(before..)?.char_indices().nth(column as usize - 1).map_or(0, |(at, _)| at);
        let at = begin + before + within;
        Some(Place::of(&self.file, at..at + 1))
    }

    /// The values of tables whose names are anybody's: paths, values, places.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, f64, &Place)> {
        self.named.iter().map(|(path, (value, place))| (path.as_str(), *value, place))
    }

    /// The value of `path`, if it has one.
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.found.get(path).map(|(value, _)| value)
    }

    /// The strings of the list at `path`.
    pub(super) fn texts<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let items: &[Value] = match self.get(path) {
            Some(Value::List(items)) => items,
            _ => &[],
        };
        items.iter().filter_map(|item| match item {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The string at `path`.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        match self.get(path) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }
}

fn holds(section: &str) -> String {
    let inside = |key: &&Key| key.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    let keys: Vec<_> = keys::all().filter(inside).map(|key| format!("`{}`", key.path)).collect();
    format!("its keys are {}", keys.join(", "))
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// A name from outside, fit for a terminal.
fn shown(path: &str) -> String {
    path.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, overrides: &[&str]) -> (Values, Vec<Problem>) {
        let (mut values, mut problems) = (Values::default(), Vec::new());
        values.read(text, &mut problems);
        for argument in overrides {
            values.set(argument, &mut problems);
        }
        (values, problems)
    }

    fn at(problem: &Problem) -> (usize, usize) {
        match problem.place {
            Place::File { line, column, .. } => (line, column),
            _ => (0, 0),
        }
    }

    #[test]
    fn unknown_keys_and_sections_are_refused_where_they_stand() {
        let text =
            "[training]\nseed = 1\n  sede = 2\n[trainig]\nseed = 3\n[network.schedular]\nlisten = \"\"\n";
        let (_, problems) = read(text, &[]);
        let found: Vec<_> = problems.iter().map(|p| (at(p), p.message.as_str())).collect();
        assert_eq!(problems.len(), 3);
        for (place, message) in [
            ((3, 3), "unknown key `training.sede`; did you mean `training.seed`?"),
            ((4, 2), "unknown section `trainig`; did you mean `training`?"),
            ((6, 10), "unknown section `network.schedular`; did you mean `network.scheduler`?"),
        ] {
            assert!(found.contains(&(place, message)), "{found:?}");
        }
    }

    #[test]
    fn dotted_and_inline_keys_are_the_same_key() {
        for text in ["training.seed = 9", "[training]\nseed = 9", "training = { seed = 9 }"] {
            let (values, problems) = read(text, &[]);
            assert_eq!(problems, []);
            assert_eq!(values.get("training.seed"), Some(&Value::Integer(9)), "{text}");
        }
    }

    #[test]
    fn syntax_errors_have_a_place_and_do_not_hide_the_rest() {
        let (_, problems) = read("[training]\nseed = = 3\nepochs = 0\n", &[]);
        assert!(problems.iter().any(|p| p.message.starts_with("not TOML") && at(p).0 == 2), "{problems:?}");
        assert!(
            problems.iter().any(|p| p.message.contains("`training.epochs`") && at(p) == (3, 10)),
            "{problems:?}"
        );
        let (_, problems) = read("[job]\nname = \"a\"\nname = \"b\"\n", &[]);
        assert!(problems.iter().any(|p| at(p).0 == 3 && p.message.contains("duplicate")), "{problems:?}");
    }

    /// Invariant 3.
    #[test]
    fn overrides_win_and_take_bare_strings() {
        let (values, problems) = read(
            "[training]\nseed = 1\n",
            &[
                "training.seed=2",
                "training.seed = 3",
                "job.name=123",
                "network.listen=127.0.0.1:0",
                "model.hidden=[64, 32]",
                "checkpoint.export=false",
                "data.path=\"a b\"",
            ],
        );
        assert_eq!(problems, []);
        assert_eq!(values.get("training.seed"), Some(&Value::Integer(3)));
        assert_eq!(values.text("job.name"), Some("123"));
        assert_eq!(values.text("network.listen"), Some("127.0.0.1:0"));
        assert_eq!(
            values.get("model.hidden"),
            Some(&Value::List(vec![Value::Integer(64), Value::Integer(32)]))
        );
        assert_eq!(values.get("checkpoint.export"), Some(&Value::Boolean(false)));
        assert_eq!(values.text("data.path"), Some("a b"));
    }

    #[test]
    fn bad_overrides_name_themselves() {
        let arguments = [
            "training.sede=3",
            "training",
            "training=3",
            "training.epochs=many",
            "training.epochs=1\ntraining.seed=2",
        ];
        let (values, problems) = read("", &arguments);
        let messages: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
        assert_eq!(messages.len(), arguments.len(), "{messages:?}");
        for (argument, problem) in arguments.iter().zip(&problems) {
            assert_eq!(problem.place, Place::Override((*argument).to_string()));
        }
        assert!(messages[0].contains("did you mean `training.seed`?"));
        assert!(messages[1].contains("key=value"));
        assert!(messages[2].contains("is a section"));
        assert!(messages[3].contains("found the string \"many\""));
        assert_eq!(values.get("training.seed"), None, "a value cannot smuggle in another key");
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let (mut values, mut problems) = read(
            "[optimizer]\nkind = \"sgd\"\nbeta1 = 0.9\n[model]\nkind = \"mlp\"\ninputs = 1\nclasses = 2\n[data]\nkind = \"mnist\"\npath = \"x\"\n",
            &[],
        );
        values.complete(&mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(at(&problems[0]), (3, 9));
        assert!(problems[0].message.contains("\"adam\" or \"adamw\" or"), "{}", problems[0].message);
    }

    #[test]
    fn defaults_follow_the_kind() {
        let rate = |kind: &str| {
            let (mut values, mut problems) = read(&format!("optimizer.kind = \"{kind}\""), &[]);
            values.complete(&mut problems);
            values.get("optimizer.learning_rate").cloned()
        };
        assert_eq!(rate("sgd"), Some(Value::Number(0.1)));
        assert_eq!(rate("adamw"), Some(Value::Number(0.001)));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (mut values, mut problems) = read("", &[]);
        values.complete(&mut problems);
        let missing: Vec<_> = problems.iter().map(|p| p.message.split('`').nth(1).unwrap()).collect();
        assert_eq!(missing, ["model.kind", "model.inputs", "model.classes", "data.kind", "data.path"]);
        assert!(problems[1].message.contains("write `inputs = ...` under [model]"));
    }
}

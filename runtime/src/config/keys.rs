//! The one table of every key a cluster file may hold: name, allowed values, default, meaning.
//!
//! The reader checks values against it, the nearest-key search picks from it, and `docs/config.md` is
//! written from it, so that none of the three can disagree.
//!
//! Invariants:
//! 1. Every default satisfies its own rule.
//! 2. Keys are unique, and no key is also a section. A path that ends in `*` is a table whose names are anybody's.
//! 3. Every key here is a field of [`Config`](super::Config), and the other way round.

mod audit;
mod checkpoint;
mod cluster;
mod data;
mod devices;
mod limits;
mod model;
mod network;
mod optimizer;
mod rules;
mod schedule;
mod security;
mod ssh;
mod supervision;
mod telemetry;
mod training;
mod transport;

pub use optimizer::OWN as OWN_PROGRAM;

/// The table: rows stand in the order of the reference page, and a selector stands before the keys that depend on it.
static SECTIONS: &[&[Key]] = &[
    cluster::KEYS,
    supervision::KEYS,
    network::KEYS,
    devices::KEYS,
    training::KEYS,
    model::KEYS,
    optimizer::KEYS,
    schedule::KEYS,
    data::KEYS,
    transport::KEYS,
    limits::KEYS,
    security::KEYS,
    ssh::KEYS,
    checkpoint::KEYS,
    audit::KEYS,
    telemetry::KEYS,
];

/// Every key.
pub fn all() -> impl Iterator<Item = &'static Key> + Clone {
    SECTIONS.iter().copied().flatten()
}

/// One key of the cluster file.
#[derive(Debug)]
pub struct Key {
    /// Dotted path, such as `training.seed`.
    pub path: &'static str,
    /// Which values are allowed.
    pub rule: Rule,
    /// What holds when the key is absent.
    pub absent: Absent,
    /// Where the key has a meaning; `None` means everywhere.
    pub applies: Option<Applies>,
    /// What it does, in a sentence or two, Markdown.
    pub doc: &'static str,
}

/// Which values a key takes.
#[derive(Debug)]
pub enum Rule {
    /// A string that `check` accepts; its error says what is wrong with it.
    Text {
        /// Refuses with a phrase that completes "found ..., ".
        check: fn(&str) -> Result<(), String>,
        /// The allowed values in words.
        allowed: &'static str,
    },
    /// A path; a relative one starts at `base`.
    Path {
        /// Where a relative path starts.
        base: Base,
    },
    /// An integer in `min..=max`.
    Integer {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// A finite number in the range.
    Number {
        /// Lower end.
        min: f64,
        /// Whether `min` itself is refused.
        above: bool,
        /// Upper end; `f64::MAX` stands for none.
        max: f64,
        /// Whether `max` itself is refused.
        below: bool,
    },
    /// `true` or `false`.
    Boolean,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A list of at most `most` values that each satisfy `each`.
    List {
        /// The rule of each element.
        each: &'static Rule,
        /// Most elements.
        most: usize,
    },
}

/// Where a relative path starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The folder of the cluster file (an override starts at the current folder).
    File,
    /// The current folder of the command.
    Current,
}

/// What holds when a key is absent.
#[derive(Debug)]
pub enum Absent {
    /// Nothing: the key must be given.
    Required,
    /// The setting is off; the text says what that means.
    Unset(&'static str),
    /// This value, in TOML.
    Is(&'static str),
    /// A value, in TOML, that depends on the key's selector (see [`Applies`]).
    ByKind {
        /// The key whose value decides.
        selector: &'static str,
        /// Values of the selector, and the default there.
        cases: &'static [(&'static str, &'static str)],
        /// The default for every other value of the selector.
        otherwise: &'static str,
    },
}

/// A key that has a meaning only for some values of another.
#[derive(Debug)]
pub struct Applies {
    /// The other key, a [`Rule::Choice`].
    pub selector: &'static str,
    /// The values of `selector` for which this key has a meaning.
    pub kinds: &'static [&'static str],
}

impl Key {
    /// Whether it stands for every name of its table.
    pub fn is_any_name(&self) -> bool {
        self.name() == "*"
    }

    /// Whether it sets a constant of the optimizer's program that is called as it is.
    pub fn is_constant(&self) -> bool {
        self.section() == "optimizer" && optimizer::is_constant(&self.rule)
    }

    /// The section the key stands in: `training` for `training.seed`.
    pub fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// The key's own name: `seed` for `training.seed`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// The default in TOML where `selector` (a function from a key to its value) holds; `None` for a
    /// required or unset key.
    pub fn default_toml(&self, value_of: impl FnOnce(&str) -> Option<String>) -> Option<&'static str> {
        match &self.absent {
            Absent::Required | Absent::Unset(_) => None,
            Absent::Is(toml) => Some(toml),
            Absent::ByKind { selector, cases, otherwise } => {
                let kind = value_of(selector).unwrap_or_default();
                Some(cases.iter().find(|(case, _)| *case == kind).map_or(otherwise, |(_, toml)| toml))
            }
        }
    }
}

/// The key at `path`, if there is one: of a table whose names are anybody's, the row that stands for them all.
pub fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| match key.path.strip_suffix('*') {
        None => key.path == path,
        Some(table) => path.strip_prefix(table).is_some_and(|name| !name.is_empty() && !name.contains('.')),
    })
}

/// Whether `path` is a section: a table that holds keys or other sections.
pub fn is_section(path: &str) -> bool {
    all().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn keys_are_unique_and_apart_from_sections() {
        for (index, key) in all().enumerate() {
            assert!(all().take(index).all(|other| other.path != key.path), "{} stands twice", key.path);
            assert!(!is_section(key.path), "{} is a key and a section", key.path);
            assert!(is_section(key.section()), "{}", key.path);
            assert!(key.doc.ends_with('.'), "{}: {}", key.path, key.doc);
        }
    }

    #[test]
    fn selectors_are_choices_and_their_kinds_exist() {
        let kinds_of = |selector: &str| match &find(selector).expect("a key").rule {
            Rule::Choice(kinds) => *kinds,
            other => panic!("{selector}: {other:?}"),
        };
        for key in all() {
            if let Some(applies) = &key.applies {
                let all = kinds_of(applies.selector);
                assert!(applies.kinds.iter().all(|kind| all.contains(kind)), "{}", key.path);
            }
            if let Absent::ByKind { selector, cases, .. } = &key.absent {
                let all = kinds_of(selector);
                assert!(cases.iter().all(|(case, _)| all.contains(case)), "{}", key.path);
            }
        }
    }
}

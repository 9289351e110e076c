//! The reference page of the cluster file, `docs/config.md`, written from the table of keys.
//!
//! A test compares the committed page with [`page`]; `TESTUDO_REGENERATE=1 cargo test -p testudo config`
//! writes it anew.

use std::fmt::Write as _;

use super::keys::{self, Absent, Base, Key, Rule};
use super::{nearest, value};

const INTRODUCTION: &str = "\
# The cluster file

One TOML file describes a job: what is trained, on what, by how many nodes, and where they are.
`testudo run FILE` and `testudo node --config FILE` read it; `--set key=value` (repeatable) overrides one
key with a TOML value, or with a bare string where the key takes a string.

- A key that is not on this page is refused, with its line and column and the nearest key that is.
- Every problem is reported at once.
- A relative path starts at the cluster file's folder; in `--set`, at the current folder.
- Each run writes the effective file, every default included, to `cluster.toml` in its directory.

This page is generated from the table that the program itself reads by.
";

/// The whole page in Markdown.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_string();
    for section in nearest::sections() {
        let _ =
            write!(page, "\n## `[{section}]`\n\n| key | default | allowed | meaning |\n|---|---|---|---|\n");
        for key in keys::all().filter(|key| key.section() == section) {
            let allowed = escaped(&value::allowed(&key.rule));
            let _ = writeln!(page, "| `{}` | {} | {allowed} | {} |", key.name(), default(key), meaning(key));
        }
    }
    page
}

fn default(key: &Key) -> String {
    match &key.absent {
        Absent::Required => "**required**".into(),
        Absent::Unset(meaning) => format!("unset: {meaning}"),
        Absent::Is(toml) => format!("`{toml}`"),
        Absent::ByKind { cases, otherwise, .. } => {
            let mut text = format!("`{otherwise}`");
            for (case, toml) in *cases {
                let _ = write!(text, "; `{toml}` for `{case}`");
            }
            text
        }
    }
}

fn meaning(key: &Key) -> String {
    let mut text = key.doc.to_string();
    if let Some(applies) = &key.applies {
        let kinds: Vec<_> = applies.kinds.iter().map(|kind| format!("`\"{kind}\"`")).collect();
        let _ = write!(text, " Only with `{}` = {}.", applies.selector, kinds.join(" or "));
    }
    if matches!(key.rule, Rule::Path { base: Base::Current }) {
        text.push_str(" A relative path starts at the current folder.");
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_key_is_on_the_page() {
        let page = page();
        for key in keys::all() {
            assert!(page.contains(&format!("| `{}` |", key.name())), "{}", key.path);
            assert!(page.contains(key.doc), "{}", key.path);
        }
        assert!(
            page.lines()
                .filter(|line| line.starts_with('|'))
                .all(|line| line.matches(" | ").count() == 3 || line == "|---|---|---|---|")
        );
    }

    #[test]
    fn the_committed_page_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
        if std::env::var_os("TESTUDO_REGENERATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, page()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            committed,
            page(),
            "docs/config.md is out of date: TESTUDO_REGENERATE=1 cargo test -p testudo config"
        );
    }
}

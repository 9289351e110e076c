//! What is wrong with a cluster file, and where: shown all at once, with the line it stands in.
//!
//! ```text
//! examples/mnist.toml:12:1: unknown key `optimizer.learning_rte`; did you mean `optimizer.learning_rate`?
//!    |
//! 12 | learning_rte = 0.1
//!    | ^^^^^^^^^^^^
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Longest part of a source line that is shown.
const EXCERPT_MOST: usize = 100;

/// Where a problem stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the cluster file.
    File {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The line's text.
        text: String,
        /// How many characters the problem covers on that line, at least 1.
        width: usize,
    },
    /// In a `--set` option; the text is the option's argument.
    Override(String),
    /// Nowhere in particular: something that is missing.
    Whole,
}

impl Place {
    /// The place of the bytes `span` of `text`.
    pub(super) fn of(text: &str, span: Range<usize>) -> Self {
        let start = boundary(text, span.start);
        let before = text.get(..start).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_text = text.get(line_start..).unwrap_or("").lines().next().unwrap_or("");
        let column = text.get(line_start..start).unwrap_or("").chars().count() + 1;
        let covered = text.get(start..boundary(text, span.end)).unwrap_or("");
        let width = covered.lines().next().unwrap_or("").chars().count().max(1);
        let line = before.matches('\n').count() + 1;
        Place::File { line, column, text: line_text.to_string(), width }
    }
}

/// The last character boundary of `text` at or before `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What, and what to do about it.
    pub message: String,
}

/// Everything that is wrong with a cluster file and its overrides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The cluster file.
    pub path: PathBuf,
    /// At least one problem, in the order of the file.
    pub problems: Vec<Problem>,
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    pub(super) fn new(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| match &problem.place {
            Place::File { line, column, .. } => (0, *line, *column),
            Place::Whole => (1, 0, 0),
            Place::Override(_) => (2, 0, 0),
        });
        problems.dedup();
        Self { path: path.to_path_buf(), problems }
    }

    /// One problem with no place in the file, such as a file that cannot be read.
    pub(super) fn whole(path: &Path, message: String) -> Self {
        Self { path: path.to_path_buf(), problems: vec![Problem { place: Place::Whole, message }] }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match &problem.place {
                Place::Override(argument) => write!(f, "--set {}: {}", Shown(argument), problem.message)?,
                Place::Whole => write!(f, "{path}: {}", problem.message)?,
                Place::File { line, column, text, width } => {
                    write!(f, "{path}:{line}:{column}: {}", problem.message)?;
                    excerpt(f, *line, *column, text, *width)?;
                }
            }
        }
        Ok(())
    }
}

/// The source line with a row of carets under the part in question.
fn excerpt(f: &mut fmt::Formatter<'_>, line: usize, column: usize, text: &str, width: usize) -> fmt::Result {
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    let shown: String = Shown(text).to_string();
    let left = EXCERPT_MOST.saturating_sub(column - 1).max(1);
    let (indent, carets) = (" ".repeat((column - 1).min(EXCERPT_MOST)), "^".repeat(width.min(left)));
    write!(f, "\n{gutter} |\n{number} | {shown}\n{gutter} | {indent}{carets}")
}

/// Text from outside as one line that cannot move a terminal's cursor: one character for each.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, c) in self.0.chars().enumerate() {
            if index == EXCERPT_MOST {
                return f.write_str("...");
            }
            let c = match c {
                '\t' => ' ',
                c if c.is_control() => '?',
                c => c,
            };
            write!(f, "{c}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nname = \"äöü\"\nlast = 3";
        assert_eq!(Place::of(text, 0..1), Place::File { line: 1, column: 1, text: "a = 1".into(), width: 1 });
        let start = text.find('"').unwrap();
        let end = text.rfind('"').unwrap() + 1;
        assert_eq!(
            Place::of(text, start..end),
            Place::File { line: 2, column: 8, text: "name = \"äöü\"".into(), width: 5 }
        );
        let end = text.len();
        assert_eq!(
            Place::of(text, end..end),
            Place::File { line: 3, column: 9, text: "last = 3".into(), width: 1 }
        );
        // A span from elsewhere is no reason to panic.
        assert!(matches!(Place::of("ä", 1..900), Place::File { line: 1, column: 1, .. }));
    }

    #[test]
    fn problems_come_in_the_file_s_order_with_their_line() {
        let text = "[training]\nsede = 3\nepochs = -1\n";
        let at = |needle: &str| {
            let start = text.find(needle).unwrap();
            Place::of(text, start..start + needle.len())
        };
        let problem = |place, message: &str| Problem { place, message: message.into() };
        let errors = ConfigErrors::new(
            Path::new("c.toml"),
            vec![
                problem(Place::Override("a=\u{1b}[2J1".into()), "third"),
                problem(at("-1"), "second"),
                problem(at("sede"), "first"),
            ],
        );
        assert_eq!(
            errors.to_string(),
            "c.toml:2:1: first\n  |\n2 | sede = 3\n  | ^^^^\nc.toml:3:10: second\n  |\n3 | epochs = -1\n  \
             |          ^^\n--set a=?[2J1: third"
        );
    }

    #[test]
    fn long_lines_are_cut() {
        let text = format!("key = \"{}\"", "x".repeat(5000));
        let errors = ConfigErrors::new(
            Path::new("c"),
            vec![Problem { place: Place::of(&text, 6..5008), message: "m".into() }],
        );
        assert!(errors.to_string().lines().all(|line| line.len() < 120), "{errors}");
    }
}

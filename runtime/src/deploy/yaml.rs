//! YAML of plain values: what JSON can say, laid out for people.
//!
//! Every string is in double quotes, in which YAML 1.2 reads what JSON writes (section 7.3.1 of its specification), so that none is
//! taken for anything else.

use std::fmt::Write as _;

use serde_json::Value;

/// `value` as one document.
#[must_use]
pub(super) fn document(value: &Value) -> String {
    let mut text = String::from("---\n");
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                let _ = write!(text, "{:depth$}{}:", "", key(name));
                nested(inner, depth + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(item, depth + 2, &mut inner);
                // The first line of an item stands behind its dash.
                let _ = write!(text, "{:depth$}- {}", "", inner.trim_start_matches(' '));
            }
        }
        scalar => {
            let _ = writeln!(text, "{:depth$}{scalar}", "");
        }
    }
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            block(value, depth, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, depth, text);
        }
        // A text of several lines is easier to read as one.
        Value::String(lines) if lines.ends_with('\n') && literal(lines) => {
            text.push_str(" |\n");
            for line in lines.lines() {
                let _ = match line {
                    "" => writeln!(text),
                    line => writeln!(text, "{:depth$}{line}", ""),
                };
            }
        }
        scalar => {
            let _ = writeln!(text, " {scalar}");
        }
    }
}

/// Whether a literal block says exactly these lines: no control characters, no indentation or empty line first, one end of line last.
fn literal(lines: &str) -> bool {
    let plain = |c: char| {
        c == '\n' || !c.is_control() && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
    };
    lines.chars().all(plain) && !lines.starts_with([' ', '\n']) && !lines.ends_with("\n\n")
}

fn key(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic());
    // Words that older readers take for truth values are among the plain ones: none is a field here, and quotes keep them texts.
    let is_word =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].contains(&name.to_lowercase().as_str());
    if plain && !is_word { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_laid_out_and_texts_stay_texts() {
        let value = json!({
            "kind": "Job", "no": "yes", "n": 3, "flag": true, "empty": {}, "none": [],
            "list": [{"a": "x: y", "b": [1, "2"]}, "z\n"], "file": "a = \"1\"\n\n[b]\n", "odd": " x\n", "app.io/x": null,
        });
        let expected = "---\n\"app.io/x\": null\nempty: {}\nfile: |\n  a = \"1\"\n\n  [b]\nflag: true\nkind: \"Job\"\nlist:\n  - a: \"x: y\"\n    \
                        b:\n      - 1\n      - \"2\"\n  - \"z\\n\"\n\"n\": 3\n\"no\": \"yes\"\nnone: []\nodd: \" x\\n\"\n";
        assert_eq!(document(&value), expected);
    }
}

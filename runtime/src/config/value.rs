//! One value of a cluster file, checked against its key's rule.
//!
//! A refusal says what was found and what is allowed, in that order.

use std::fmt::Write as _;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::keys::Rule;

/// Most characters of a found value that a message repeats.
const SHOWN_MOST: usize = 60;

/// A value that satisfies its key's rule.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Number(f64),
    Boolean(bool),
    List(Vec<Value>),
}

/// Why a value is refused, and which bytes of the input are at fault.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) span: Range<usize>,
}

/// Checks `found` against `rule`; `path` is the key's name for the message.
pub(super) fn check(path: &str, rule: &Rule, found: &Spanned<DeValue<'_>>) -> Result<Value, Refusal> {
    let refuse = |why: &str| {
        let mut message = format!("`{path}`: found {}", describe(found.get_ref()));
        if !why.is_empty() {
            let _ = write!(message, ": {why}");
        }
        let _ = write!(message, "; allowed: {}", allowed(rule));
        Refusal { message, span: found.span() }
    };
    match (rule, found.get_ref()) {
        (Rule::Text { check, .. }, DeValue::String(text)) => match check(text) {
            Ok(()) => Ok(Value::Text(text.to_string())),
            Err(why) => Err(refuse(&why)),
        },
        (Rule::Path { .. }, DeValue::String(text)) => match text.as_ref() {
            "" => Err(refuse("it is empty")),
            text if text.contains('\0') => Err(refuse("it holds a zero byte")),
            text => Ok(Value::Text(text.to_string())),
        },
        (Rule::Choice(choices), DeValue::String(text)) => match choices.contains(&text.as_ref()) {
            true => Ok(Value::Text(text.to_string())),
            false => Err(refuse(&nearest_choice(text, choices))),
        },
        (Rule::Integer { min, max }, DeValue::Integer(integer)) => {
            match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) if (*min..=*max).contains(&number) => Ok(Value::Integer(number)),
                _ => Err(refuse("")),
            }
        }
        (Rule::Number { .. }, DeValue::Float(float)) => match float.as_str().parse::<f64>() {
            Ok(number) if in_range(rule, number) => Ok(Value::Number(number)),
            _ => Err(refuse("")),
        },
        (Rule::Number { .. }, DeValue::Integer(integer)) => {
            match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) if in_range(rule, number as f64) => Ok(Value::Number(number as f64)),
                _ => Err(refuse("")),
            }
        }
        (Rule::Boolean, DeValue::Boolean(value)) => Ok(Value::Boolean(*value)),
        (Rule::List { each, most }, DeValue::Array(items)) => {
            if items.len() > *most {
                return Err(refuse(&format!("it has {} elements", items.len())));
            }
            let check = |(index, item)| check(&format!("{path}[{index}]"), each, item);
            items.iter().enumerate().map(check).collect::<Result<_, _>>().map(Value::List)
        }
        _ => Err(refuse("")),
    }
}

fn in_range(rule: &Rule, number: f64) -> bool {
    let Rule::Number { min, above, max, below } = rule else { return false };
    let over = if *above { number > *min } else { number >= *min };
    let under = if *below { number < *max } else { number <= *max };
    number.is_finite() && over && under
}

fn nearest_choice(text: &str, choices: &[&str]) -> String {
    let lower = text.to_lowercase();
    let near = choices.iter().min_by_key(|choice| strsim::damerau_levenshtein(&lower, choice));
    match near {
        Some(near) if strsim::damerau_levenshtein(&lower, near) <= 2 => format!("did you mean \"{near}\"?"),
        _ => String::new(),
    }
}

/// The allowed values in words: for messages and for the reference page.
pub(super) fn allowed(rule: &Rule) -> String {
    match rule {
        Rule::Text { allowed, .. } => (*allowed).to_string(),
        Rule::Path { .. } => "a path".into(),
        Rule::Integer { min, max: i64::MAX } => format!("an integer of at least {min}"),
        Rule::Integer { min, max } => format!("an integer from {min} to {max}"),
        Rule::Number { min: f64::MIN, .. } => "a number".into(),
        Rule::Number { min, above: true, max, .. } if *max == f64::MAX => format!("a number above {min}"),
        Rule::Number { min, max, .. } if *max == f64::MAX => format!("a number of at least {min}"),
        Rule::Number { min, above, max, below } => {
            let from = if *above { "above" } else { "from" };
            let to = if *below { "to below" } else { "to" };
            format!("a number {from} {min} {to} {max}")
        }
        Rule::Boolean => "true or false".into(),
        Rule::Choice(choices) => {
            choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(", ")
        }
        Rule::List { each, most } => format!("a list of at most {most}, each {}", allowed(each)),
    }
}

/// What a value is, for a message: its type and its text, cut to [`SHOWN_MOST`] characters.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let mut shown: String = text.chars().take(SHOWN_MOST).collect();
            if shown.len() < text.len() {
                shown.push_str("...");
            }
            format!("the string {shown:?}")
        }
        DeValue::Integer(integer) => format!("the integer {}", cut(&integer.to_string())),
        DeValue::Float(float) => format!("the number {}", cut(float.as_str())),
        DeValue::Boolean(value) => format!("the boolean {value}"),
        DeValue::Datetime(datetime) => format!("the date {datetime}"),
        DeValue::Array(items) => format!("a list of {}", items.len()),
        DeValue::Table(_) => "a section".into(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN_MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::super::keys::{self, Absent};
    use super::*;

    fn checked(path: &str, toml: &str) -> Result<Value, String> {
        let rule = &keys::find(path).expect("a key").rule;
        check(path, rule, &DeValue::parse(toml).unwrap()).map_err(|refusal| refusal.message)
    }

    /// Invariant 1 of `keys`.
    #[test]
    fn every_default_satisfies_its_rule() {
        for key in keys::all() {
            let defaults = match &key.absent {
                Absent::Is(toml) => vec![*toml],
                Absent::ByKind { cases, otherwise, .. } => {
                    cases.iter().map(|(_, toml)| *toml).chain([*otherwise]).collect()
                }
                Absent::Required | Absent::Unset(_) => vec![],
            };
            for toml in defaults {
                assert!(checked(key.path, toml).is_ok(), "{} = {toml}", key.path);
            }
        }
    }

    #[test]
    fn ranges_hold_at_their_ends() {
        assert_eq!(checked("training.epochs", "1"), Ok(Value::Integer(1)));
        assert_eq!(checked("training.epochs", "1_000_000"), Ok(Value::Integer(1_000_000)));
        assert_eq!(checked("training.epochs", "0xff"), Ok(Value::Integer(255)));
        for bad in ["0", "-1", "1_000_001", "99999999999999999999999", "1.0", "\"1\"", "true", "[1]"] {
            let message = checked("training.epochs", bad).unwrap_err();
            assert!(message.contains("an integer from 1 to 1000000"), "{message}");
        }
        let below_one = Rule::Number { min: 0.0, above: false, max: 1.0, below: true };
        let within = |toml: &str| check("x", &below_one, &DeValue::parse(toml).unwrap());
        assert_eq!(within("0"), Ok(Value::Number(0.0)));
        for bad in ["1.0", "1", "-0.1", "nan", "inf", "-inf", "1e400"] {
            let message = within(bad).unwrap_err().message;
            assert!(message.contains("a number from 0 to below 1"), "{message}");
        }
        assert!(checked("optimizer.learning_rate", "0.0").unwrap_err().contains("a number above 0"));
        assert!(checked("optimizer.learning_rate", "inf").is_err());
        assert_eq!(checked("schedule.final_fraction", "1"), Ok(Value::Number(1.0)));
    }

    #[test]
    fn messages_say_what_was_found_and_what_is_allowed() {
        assert_eq!(
            checked("optimizer.kind", "\"Adamv\"").unwrap_err(),
            "`optimizer.kind`: found the string \"Adamv\": did you mean \"adam\"?; allowed: \"sgd\", \"momentum\", \
             \"nesterov\", \"adam\", \"adamw\", \"nadam\", \"rmsprop\", \"adagrad\", \"adadelta\", \"ftrl\", \"lion\", \"lamb\", \
             \"lars\", \"program\""
        );
        assert_eq!(
            checked("checkpoint.export", "1").unwrap_err(),
            "`checkpoint.export`: found the integer 1; allowed: true or false"
        );
        assert_eq!(
            checked("model.hidden", "[512, 0]").unwrap_err(),
            "`model.hidden[1]`: found the integer 0; allowed: an integer from 1 to 16777216"
        );
        assert!(checked("data.path", "\"\"").unwrap_err().contains("empty"));
        assert!(checked("training.seed", "1979-05-27").unwrap_err().contains("the date 1979-05-27"));
    }

    #[test]
    fn long_values_are_cut() {
        let message = checked("job.name", &format!("\"{}\"", "x".repeat(4000))).unwrap_err();
        assert!(message.len() < 250, "{message}");
        let message = checked("training.epochs", &"9".repeat(4000)).unwrap_err();
        assert!(message.len() < 250, "{message}");
    }
}

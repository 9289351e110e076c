//! `[optimizer]`: which program runs, and with which constants.
//!
//! A constant is set in one place: by its own key if the section has one of its name (`optimizer.momentum`), else under
//! `[optimizer.constants]`. What is wrong with a program of one's own is said where it stands in the cluster file, as far as
//! the text stands there as it is.

use std::collections::BTreeMap;

use serde::Serialize;
use testudo_kernels::optimizer::language::{Constant, Program};
use testudo_kernels::optimizer::shipped;
use testudo_kernels::{OptimizerSpec, ProgramError};

use super::keys::{self, OWN_PROGRAM};
use super::problem::{Place, Problem};
use super::read::Values;
use super::value::Value;

/// The kind that stands in for one that was refused.
const STAND_IN: &str = "sgd";
/// Where constants without a key of their own stand.
const CONSTANTS: &str = "optimizer.constants";

/// `[optimizer]`: the update rule, and the learning rate before the schedule's factor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Optimizer {
    /// The name of a program that ships, or `program`.
    pub kind: String,
    /// The learning rate, above 0.
    pub learning_rate: f64,
    /// The program's text, where it is one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Patterns of parameters without weight decay.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_decay: Vec<String>,
    /// Constants that have keys of their own, all that the program has.
    #[serde(flatten)]
    pub own: BTreeMap<String, f64>,
    /// All others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub constants: BTreeMap<String, f64>,
}

impl Optimizer {
    /// As the job states it.
    #[must_use]
    pub fn spec(&self) -> OptimizerSpec {
        let shipped = || shipped::text(&self.kind).unwrap_or_default().to_owned();
        let constants = self.own.iter().chain(&self.constants);
        OptimizerSpec {
            name: self.kind.clone(),
            program: self.program.clone().unwrap_or_else(shipped),
            constants: constants.map(|(name, value)| (name.clone(), *value)).collect(),
            no_decay: self.no_decay.clone(),
        }
    }
}

/// The path of a constant's key.
fn path_of(constant: &str) -> String {
    let own = format!("optimizer.{constant}");
    match keys::find(&own).is_some_and(keys::Key::is_constant) {
        true => own,
        false => format!("{CONSTANTS}.{constant}"),
    }
}

/// The section, with what is wrong with its program and constants.
pub(super) fn optimizer(values: &Values, learning_rate: f64, problems: &mut Vec<Problem>) -> Optimizer {
    let kind = values.text("optimizer.kind").unwrap_or(STAND_IN).to_owned();
    let text = values.text("optimizer.program").filter(|_| kind == OWN_PROGRAM);
    let mut optimizer = Optimizer {
        learning_rate,
        program: text.map(str::to_owned),
        no_decay: values.texts("optimizer.no_decay").map(str::to_owned).collect(),
        own: BTreeMap::new(),
        constants: BTreeMap::new(),
        kind,
    };
    if optimizer.kind == OWN_PROGRAM && values.place(&["optimizer.learning_rate"]) == Place::Whole {
        let message =
            "`optimizer.learning_rate` is missing: a program of one's own has no default".to_owned();
        problems.push(Problem { place: values.place(&["optimizer.program"]), message });
    }
    let program = match optimizer.spec().program {
        // Reported already, as a key that is refused or missing.
        text if text.is_empty() && optimizer.program.is_none() => return optimizer,
        text => Program::parse(&text),
    };
    let program = match program {
        Ok(program) => program,
        Err(error) => {
            problems.push(wrong(values, &error));
            return optimizer;
        }
    };
    for constant in program.constants() {
        let path = path_of(&constant.name);
        let value = given(values, &path, constant, problems);
        let of = if path.starts_with(CONSTANTS) { &mut optimizer.constants } else { &mut optimizer.own };
        of.insert(constant.name.clone(), value);
    }
    if optimizer.kind == OWN_PROGRAM
        && !optimizer.no_decay.is_empty()
        && let Err(error) = optimizer.spec().validate()
    {
        let message = format!("`optimizer.no_decay`: {error}");
        problems.push(Problem { place: values.place(&["optimizer.no_decay"]), message });
    }
    if values.sound(&["optimizer.kind"]) {
        strangers(values, &optimizer.kind, &program, problems);
    }
    optimizer
}

/// A program that is none, where it stands in the cluster file, or else where in its own text.
fn wrong(values: &Values, error: &ProgramError) -> Problem {
    let path = "optimizer.program";
    match values.place_within(path, error.place.line, error.place.column) {
        Some(place) => Problem { place, message: format!("`{path}`: {}", error.problem) },
        None => {
            let message = format!("`{path}`: in the program's own text, {error}");
            Problem { place: values.place(&[path]), message }
        }
    }
}

/// The value of a constant, which must be in its interval.
fn given(values: &Values, path: &str, constant: &Constant, problems: &mut Vec<Problem>) -> f64 {
    let named = values.named().find(|(known, _, _)| *known == path);
    let found = match (values.get(path), named) {
        (Some(Value::Number(value)), _) => Some((*value, values.place(&[path]))),
        (_, Some((_, value, place))) => Some((value, place.clone())),
        _ => None,
    };
    let Some((value, place)) = found else { return constant.default };
    if constant.interval.holds(value) {
        return value;
    }
    let message =
        format!("`{path}`: found the number {value}; the program allows {}, also as f32", constant.interval);
    problems.push(Problem { place, message });
    constant.default
}

/// Constants that are given and that the program has not.
fn strangers(values: &Values, kind: &str, program: &Program, problems: &mut Vec<Problem>) {
    let has = |name: &str| program.constants().iter().any(|constant| constant.name == name);
    let owned = keys::all().filter(|key| key.is_constant()).map(|key| (key.path, key.name()));
    // A kind that ships says by the table of keys which of these it has.
    for (path, name) in
        owned.filter(|(path, name)| kind == OWN_PROGRAM && values.get(path).is_some() && !has(name))
    {
        let message = format!("`{path}`: the program has no constant {name:?}; {}", advice(name, program));
        problems.push(Problem { place: values.place(&[path]), message });
    }
    for (path, _, place) in values.named() {
        let name = path.strip_prefix(CONSTANTS).unwrap_or(path).trim_start_matches('.');
        let own = path_of(name);
        let message = if own != path {
            format!("`{path}`: this constant has a key of its own: write it as `{own}`")
        } else if !has(name) {
            format!("`{path}`: optimizer.kind = {kind:?} has no constant {name:?}; {}", advice(name, program))
        } else {
            continue;
        };
        problems.push(Problem { place: place.clone(), message });
    }
}

fn advice(name: &str, program: &Program) -> String {
    let names = program.constants().iter().map(|constant| constant.name.as_str());
    let near = names.clone().min_by_key(|known| strsim::damerau_levenshtein(name, known));
    match near {
        None => "it has none".into(),
        Some(near) if strsim::damerau_levenshtein(name, near) <= 2 => {
            format!("did you mean `{}`?", path_of(near))
        }
        Some(_) => format!("it has {}", names.collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests;

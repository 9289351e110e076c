//! What a client is told: `{"predictions":[{"label":3,"probabilities":[0.01,0.02,0.0,0.97]}],"budget_left":700}`.
//!
//! 1. Each probability is rounded by itself, half away from zero, and nothing is done to make a row add up to one: which ones
//!    would have to be moved for that says how they were rounded.
//! 2. With rounded probabilities the label is that of the greatest *rounded* one, the first of several: the order among
//!    equals would say more than the digits do. With labels alone it is that of the greatest.
//! 3. Nothing else of an answer depends on the model.

use std::fmt::Write as _;

use super::options::{Digits, Output};
use super::refusal::Refusal;

/// The answer's line of JSON for rows of `classes` probabilities.
///
/// # Errors
/// [`Refusal::Overflow`] if a probability is none.
pub fn encode(
    probabilities: &[f32],
    classes: usize,
    output: Output,
    left: Option<u64>,
) -> Result<String, Refusal> {
    let mut text = String::from("{\"predictions\":[");
    for (row, values) in probabilities.chunks(classes.max(1)).enumerate() {
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Refusal::Overflow { row });
        }
        if row > 0 {
            text.push(',');
        }
        encode_row(&mut text, values, output);
    }
    text.push(']');
    if let Some(left) = left {
        let _ = write!(text, ",\"budget_left\":{left}");
    }
    text.push('}');
    Ok(text)
}

fn encode_row(text: &mut String, values: &[f32], output: Output) {
    let _ = match output {
        Output::Labels => write!(text, "{{\"label\":{}}}", first_greatest(values)),
        Output::Probabilities(Digits::Full) => {
            let said = values.iter().map(|value| format!("{value:?}"));
            write!(text, "{{\"label\":{},\"probabilities\":[{}]}}", first_greatest(values), join(said))
        }
        Output::Probabilities(Digits::Rounded(digits)) => {
            let units: Vec<u32> = values.iter().map(|value| round(*value, digits)).collect();
            let said = units.iter().map(|units| decimal(*units, digits));
            write!(text, "{{\"label\":{},\"probabilities\":[{}]}}", first_greatest(&units), join(said))
        }
    };
}

/// In units of the last digit that is told. At most 10^6, from a probability.
fn round(value: f32, digits: u8) -> u32 {
    (f64::from(value) * f64::from(10_u32.pow(u32::from(digits)))).round() as u32
}

fn decimal(units: u32, digits: u8) -> String {
    let scale = 10_u32.pow(u32::from(digits));
    let width = usize::from(digits);
    format!("{}.{:0width$}", units / scale, units % scale)
}

fn first_greatest<T: PartialOrd>(values: &[T]) -> usize {
    let mut best = 0;
    for (class, value) in values.iter().enumerate() {
        if values.get(best).is_some_and(|greatest| value > greatest) {
            best = class;
        }
    }
    best
}

fn join(said: impl Iterator<Item = String>) -> String {
    said.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Output = Output::Probabilities(Digits::Rounded(2));

    #[test]
    fn answers_read_as_documented() {
        let values = [0.0125, 0.7375, 0.25, 0.0];
        let text = |output| encode(&values, 2, output, Some(7)).unwrap();
        assert_eq!(
            text(TWO),
            "{\"predictions\":[{\"label\":1,\"probabilities\":[0.01,0.74]},{\"label\":0,\"probabilities\":[0.25,0.00]}],\
             \"budget_left\":7}"
        );
        assert_eq!(text(Output::Labels), "{\"predictions\":[{\"label\":1},{\"label\":0}],\"budget_left\":7}");
        let full = encode(&[0.1, 0.9], 2, Output::Probabilities(Digits::Full), None).unwrap();
        assert_eq!(full, "{\"predictions\":[{\"label\":1,\"probabilities\":[0.1,0.9]}]}");
        assert_eq!(encode(&[1.0, 0.0], 2, TWO, None).unwrap().matches("1.00").count(), 1);
    }

    /// At full precision, an `f32` comes back bit for bit, the smallest too.
    #[test]
    fn full_precision_is_all_of_it() {
        for value in [1.0_f32 / 3.0, 1e-30, f32::MIN_POSITIVE, 1e-45, 0.999_999_94, 0.0, 1.0] {
            let text = encode(&[value], 1, Output::Probabilities(Digits::Full), None).unwrap();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            let found = read["predictions"][0]["probabilities"][0].as_f64().unwrap() as f32;
            assert_eq!(found.to_bits(), value.to_bits(), "{text}");
        }
    }

    /// Invariants 1 and 2: models whose probabilities round to the same digits answer in the same bytes.
    #[test]
    fn equal_digits_are_equal_answers() {
        let text = |values: &[f32]| encode(values, 3, TWO, None).unwrap();
        assert_eq!(text(&[0.333, 0.3331, 0.3339]), text(&[0.3339, 0.333, 0.3331]));
        assert_eq!(text(&[0.334, 0.333, 0.333]), text(&[0.333, 0.333, 0.334]));
        assert!(text(&[0.333, 0.333, 0.334]).contains("[0.33,0.33,0.33]"), "no row is made to add up");
        assert!(text(&[0.1, 0.4449, 0.4451]).contains("\"label\":2"), "what differs in the digits is told");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert_eq!(
            encode(&[0.5, 0.5, f32::NAN, 0.0], 2, Output::Labels, None),
            Err(Refusal::Overflow { row: 1 })
        );
    }
}

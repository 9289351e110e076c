//! What a client asks: `{"inputs": [[0.5, 1.0], [0.25, 2.0]]}`, a row of numbers for each prediction.
//!
//! 1. Rows and numbers are counted while they are read: what is too many, or too few in a row, is refused there, and memory
//!    is that of the values that were accepted.
//! 2. Every value is finite as an `f32`. Nothing else may stand in the object, and nothing after it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::refusal::Refusal;

/// Rows that a model can be asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// Row-major.
    pub values: Vec<f32>,
    /// How many.
    pub count: usize,
}

/// Reads the body of a request for a model of `features` inputs, of at most `most` rows.
///
/// # Errors
/// [`Refusal`] saying what is wrong with it.
pub fn decode(body: &[u8], features: usize, most: usize) -> Result<Rows, Refusal> {
    let mut reader = Reader { features, most, rows: Rows { values: Vec::new(), count: 0 }, refused: None };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = Request(&mut reader).deserialize(&mut json).and_then(|()| json.end());
    match (reader.refused, read) {
        (Some(refusal), _) => Err(refusal),
        (None, Err(why)) => Err(Refusal::malformed(&why)),
        (None, Ok(())) if reader.rows.count == 0 => Err(Refusal::NoRows),
        (None, Ok(())) => Ok(reader.rows),
    }
}

struct Reader {
    features: usize,
    most: usize,
    rows: Rows,
    /// Why reading ended, where JSON itself is not to blame.
    refused: Option<Refusal>,
}

impl Reader {
    fn refuse<E: serde::de::Error>(&mut self, refusal: Refusal) -> E {
        let error = E::custom(&refusal);
        self.refused = Some(refusal);
        error
    }
}

/// The object.
struct Request<'a>(&'a mut Reader);
/// Its rows.
struct Inputs<'a>(&'a mut Reader);
/// One of them.
struct Row<'a>(&'a mut Reader);

const FIELD: &str = "inputs";

impl<'de> DeserializeSeed<'de> for Request<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Request<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a list of rows under {FIELD:?}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                FIELD if found => return Err(A::Error::duplicate_field(FIELD)),
                FIELD => map.next_value_seed(Inputs(&mut *self.0))?,
                other => return Err(A::Error::unknown_field(other, &[FIELD])),
            }
            found = true;
        }
        if found { Ok(()) } else { Err(A::Error::missing_field(FIELD)) }
    }
}

impl<'de> DeserializeSeed<'de> for Inputs<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while rows.next_element_seed(Row(&mut *self.0))?.is_some() {
            self.0.rows.count += 1;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        // Before the first number of a row that is one too many.
        if self.0.rows.count >= self.0.most {
            let most = self.0.most;
            return Err(self.0.refuse(Refusal::TooManyRows { most }));
        }
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of {} numbers", self.0.features)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<(), A::Error> {
        let Reader { features, rows, .. } = self.0;
        let (expected, row) = (*features, rows.count);
        let mut found = 0;
        while let Some(value) = numbers.next_element::<f64>()? {
            if found == expected {
                return Err(self.0.refuse(Refusal::Features { row, expected, found: None }));
            }
            let value = value as f32;
            if !value.is_finite() {
                return Err(self.0.refuse(Refusal::NotFinite { row, column: found }));
            }
            self.0.rows.values.push(value);
            found += 1;
        }
        match found == expected {
            true => Ok(()),
            false => Err(self.0.refuse(Refusal::Features { row, expected, found: Some(found) })),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(body: &str) -> &'static str {
        decode(body.as_bytes(), 2, 3).unwrap_err().code()
    }

    #[test]
    fn rows_are_read() {
        let rows = decode(b" {\"inputs\": [[0.5, -1e0],[2, 3]]} ", 2, 3).unwrap();
        assert_eq!(rows, Rows { values: vec![0.5, -1.0, 2.0, 3.0], count: 2 });
    }

    /// Invariants 1 and 2.
    #[test]
    fn everything_else_is_refused_by_name() {
        for (body, expected) in [
            ("", "malformed"),
            ("[]", "malformed"),
            ("{}", "malformed"),
            ("{\"inputs\":[[1,2]],\"x\":1}", "malformed"),
            ("{\"inputs\":[[1,2]],\"inputs\":[[1,2]]}", "malformed"),
            ("{\"inputs\":[[1,2]]} {}", "malformed"),
            ("{\"inputs\":[1,2]}", "malformed"),
            ("{\"inputs\":[[1,\"2\"]]}", "malformed"),
            ("{\"inputs\":[[1,null]]}", "malformed"),
            ("{\"inputs\":[[1,[2]]]}", "malformed"),
            // JSON has no word for what is not finite, and an f64 that is none for what is too large for it.
            ("{\"inputs\":[[1,NaN]]}", "malformed"),
            ("{\"inputs\":[[1,1e999]]}", "malformed"),
            ("{\"inputs\":[[1,1e39]]}", "not_finite"),
            ("{\"inputs\":[[1,-1e300]]}", "not_finite"),
            ("{\"inputs\":[[1]]}", "wrong_shape"),
            ("{\"inputs\":[[]]}", "wrong_shape"),
            ("{\"inputs\":[[1,2,3]]}", "wrong_shape"),
            ("{\"inputs\":[[1,2],[1,2],[1,2],[1,2]]}", "too_many_rows"),
            ("{\"inputs\":[]}", "no_rows"),
        ] {
            assert_eq!(code(body), expected, "{body}");
        }
        let nested = format!("{{\"inputs\":{}", "[".repeat(100_000));
        assert_eq!(code(&nested), "malformed");
    }

    /// Invariant 1: what is refused leaves nothing behind but what was right.
    #[test]
    fn a_long_row_is_cut_off_at_its_first_number_too_many() {
        let body = format!("{{\"inputs\":[[{}1]]}}", "1,".repeat(100_000));
        assert_eq!(code(&body), "wrong_shape");
        let body = format!("{{\"inputs\":[{}[1,2]]}}", "[1,2],".repeat(100_000));
        assert_eq!(code(&body), "too_many_rows");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200), text in "[{\"inputs:\\[\\]},0-9.e]{0,60}") {
            let _ = decode(&body, 2, 3);
            let _ = decode(text.as_bytes(), 2, 3);
            let _ = decode(format!("{{\"inputs\":[[{text}]]}}").as_bytes(), 2, 3);
        }

        /// What any client writes is what the model gets, as the nearest f32 to the written number's f64.
        #[test]
        fn finite_numbers_arrive(values in prop::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 2)) {
            let body = serde_json::to_vec(&serde_json::json!({ "inputs": [values] })).unwrap();
            prop_assert_eq!(decode(&body, 2, 1).unwrap().values, values);
        }
    }
}

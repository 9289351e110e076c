//! JSON that has exactly one meaning. Two readers of one text may disagree about an object in which a key stands twice, so
//! such a text is refused, wherever in it that is; and so is one that is nested deeper than anything we read.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::SigningError;

/// Deepest nesting that is read. A bundle and a statement have six levels.
const DEPTH_MOST: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

/// Parses all of `bytes`; `what` names them in messages.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Json, SigningError> {
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let malformed = |why: serde_json::Error| SigningError::Malformed(format!("{what}: {why}"));
    let value = Value { left: DEPTH_MOST }.deserialize(&mut parser).map_err(malformed)?;
    parser.end().map_err(malformed)?;
    Ok(value)
}

impl Json {
    pub(super) fn object(self, what: &str) -> Result<Object, SigningError> {
        match self {
            Json::Object(members) => Ok(Object { what: what.to_owned(), members }),
            _ => Err(SigningError::Malformed(format!("{what} is not an object"))),
        }
    }

    pub(super) fn list(self, what: &str) -> Result<Vec<Json>, SigningError> {
        match self {
            Json::List(items) => Ok(items),
            _ => Err(SigningError::Malformed(format!("{what} is not a list"))),
        }
    }

    pub(super) fn text(self, what: &str) -> Result<String, SigningError> {
        match self {
            Json::Text(text) => Ok(text),
            _ => Err(SigningError::Malformed(format!("{what} is not a string"))),
        }
    }
}

/// An object's members, taken out one by one.
pub(super) struct Object {
    what: String,
    members: BTreeMap<String, Json>,
}

impl Object {
    pub(super) fn take(&mut self, name: &str) -> Result<Json, SigningError> {
        self.optional(name).ok_or_else(|| SigningError::Malformed(format!("{} has no {name}", self.what)))
    }

    pub(super) fn optional(&mut self, name: &str) -> Option<Json> {
        self.members.remove(name)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<String, SigningError> {
        let what = format!("{}.{name}", self.what);
        self.take(name)?.text(&what)
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Object, SigningError> {
        let what = format!("{}.{name}", self.what);
        self.take(name)?.object(&what)
    }

    pub(super) fn list(&mut self, name: &str) -> Result<Vec<Json>, SigningError> {
        let what = format!("{}.{name}", self.what);
        self.take(name)?.list(&what)
    }

    /// The one item of a list that must have exactly one.
    pub(super) fn only(&mut self, name: &str) -> Result<Object, SigningError> {
        let what = format!("{}.{name}", self.what);
        let items = self.list(name)?;
        let found = items.len();
        match <[Json; 1]>::try_from(items) {
            Ok([item]) => item.object(&what),
            Err(_) => Err(SigningError::Malformed(format!("{what} has {found} items; exactly one is taken"))),
        }
    }

    /// That a string is what it must be.
    pub(super) fn fixed(&mut self, name: &str, expected: &str) -> Result<(), SigningError> {
        let found = self.text(name)?;
        match found == expected {
            true => Ok(()),
            false => {
                let what = &self.what;
                Err(SigningError::Malformed(format!(
                    "{what}.{name} is {found:?}; only {expected:?} is taken"
                )))
            }
        }
    }

    /// That nothing is left.
    pub(super) fn end(self) -> Result<(), SigningError> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(SigningError::Malformed(format!(
                "{} has a member {name:?}, which is not known",
                self.what
            ))),
        }
    }
}

struct Value {
    left: usize,
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Json, D::Error> {
        parser.deserialize_any(self)
    }
}

impl Value {
    fn inner<E: serde::de::Error>(&self) -> Result<usize, E> {
        let too_deep = || E::custom(format_args!("nested deeper than {DEPTH_MOST} levels"));
        self.left.checked_sub(1).ok_or_else(too_deep)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let left = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Value { left })? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let left = self.inner()?;
        let mut object = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice in one object")));
            }
            let value = members.next_value_seed(Value { left })?;
            object.insert(key, value);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse("it", text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn plain_values_are_read() {
        let value = parse("it", br#" {"a": [null, true, -1.5e1, "x\u00e9"], "b": {}} "#).unwrap();
        let list =
            Json::List(vec![Json::Null, Json::Bool(true), Json::Number(-15.0), Json::Text("x\u{e9}".into())]);
        let expected =
            BTreeMap::from([("a".to_owned(), list), ("b".to_owned(), Json::Object(BTreeMap::new()))]);
        assert_eq!(value, Json::Object(expected));
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_wherever_it_is() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"b":[{"c":{"a":1,"x":2,"a":3}}]}"#,
            // The same key by another spelling.
            r#"{"a":1,"\u0061":2}"#,
        ] {
            assert!(refused(text).contains("the key \"a\" stands twice"), "{text}");
        }
    }

    #[test]
    fn deep_nesting_and_what_is_not_json_are_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse("it", nested(DEPTH_MOST).as_bytes()).is_ok());
        assert!(refused(&nested(DEPTH_MOST + 1)).contains("nested deeper"));
        assert!(refused(&nested(100_000)).contains("nested deeper"));
        for text in ["", "{", "{} {}", "[1,]", "{\"a\":NaN}", "\"\\ud800\"", "nul"] {
            refused(text);
        }
        assert!(parse("it", b"\"\xff\"").is_err());
    }
}

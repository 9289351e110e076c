//! From text to tokens.
//!
//! Words are letters of ASCII, digits and `_`; a line ends a statement unless a bracket is open; `#` starts a comment.

use super::MAX_BYTES;
use super::error::{Place, Problem, ProgramError};

/// A word or sign, and where it starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Token<'a> {
    pub(super) place: Place,
    pub(super) word: Word<'a>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Word<'a> {
    Name(&'a str),
    Number(f64),
    Sign(&'static str),
    LineEnd,
    TextEnd,
}

impl Word<'_> {
    /// For messages to people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Name(name) => format!("`{name}`"),
            Self::Number(number) => format!("the number {number}"),
            Self::Sign(sign) => format!("`{sign}`"),
            Self::LineEnd => "the end of the line".into(),
            Self::TextEnd => "the end of the program".into(),
        }
    }
}

/// Longer signs before those that they begin with.
const SIGNS: [&str; 17] =
    ["**", "<=", ">=", "==", "!=", "<", ">", "=", "+", "-", "*", "/", "(", ")", "[", "]", ","];

/// The tokens of a text, the last of them [`Word::TextEnd`]. Takes time and space in proportion to the text, of which
/// it reads no more than a program may have.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ProgramError> {
    let mut cursor = Cursor { rest: text, place: Place { line: 1, column: 1 } };
    if text.len() > MAX_BYTES {
        while cursor.rest.len() > text.len() - MAX_BYTES {
            cursor.advance();
        }
        return Err(cursor.place.error(Problem::TooLong { most: MAX_BYTES }));
    }
    let (mut tokens, mut open) = (Vec::new(), 0usize);
    while let Some(first) = cursor.rest.chars().next() {
        let place = cursor.place;
        let word = match first {
            '#' => {
                cursor.take_while(|c| c != '\n');
                continue;
            }
            '\n' => {
                cursor.advance();
                if open > 0 {
                    continue;
                }
                Word::LineEnd
            }
            ' ' | '\t' | '\r' => {
                cursor.advance();
                continue;
            }
            'a'..='z' | 'A'..='Z' | '_' => Word::Name(cursor.take_while(is_word)),
            '0'..='9' => Word::Number(number(cursor.number()).map_err(|problem| place.error(problem))?),
            other => {
                let Some(sign) = SIGNS.iter().find(|sign| cursor.rest.starts_with(**sign)) else {
                    return Err(place.error(Problem::Character(other)));
                };
                match *sign {
                    "(" | "[" => open += 1,
                    ")" | "]" => open = open.saturating_sub(1),
                    _ => {}
                }
                sign.chars().for_each(|_| cursor.advance());
                Word::Sign(sign)
            }
        };
        tokens.push(Token { place, word });
    }
    tokens.push(Token { place: cursor.place, word: Word::TextEnd });
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Digits with a point or an exponent, as f64. Anything that f64 has no finite value for is refused.
fn number(text: &str) -> Result<f64, Problem> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(Problem::Number(text.into())),
    }
}

struct Cursor<'a> {
    rest: &'a str,
    place: Place,
}

impl<'a> Cursor<'a> {
    fn advance(&mut self) {
        let mut chars = self.rest.chars();
        match chars.next() {
            Some('\n') => self.place = Place { line: self.place.line + 1, column: 1 },
            Some(_) => self.place.column += 1,
            None => {}
        }
        self.rest = chars.as_str();
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let length = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(length);
        self.place.column += taken.chars().count() as u32;
        self.rest = rest;
        taken
    }

    /// What looks like a number: word characters and points, and a sign right behind an `e`.
    fn number(&mut self) -> &'a str {
        let bytes = self.rest.as_bytes();
        let belongs = |at: usize| match bytes[at] {
            b'+' | b'-' => {
                matches!(bytes[at - 1], b'e' | b'E') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)
            }
            byte => is_word(char::from(byte)) || byte == b'.',
        };
        let length = (1..bytes.len()).find(|at| !belongs(*at)).unwrap_or(bytes.len());
        let (taken, rest) = self.rest.split_at(length);
        self.place.column += length as u32;
        self.rest = rest;
        taken
    }
}

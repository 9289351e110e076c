//! One event is one line, whatever it says.
//!
//! 1. What is written in one call ends with the one line break that it had at its end; every other control character in it,
//!    and what else a program may take for a line's end, is escaped: nobody's words look like a line of ours.

use std::borrow::Cow;
use std::io::{self, Write};

/// A writer that is given one event at a time, as the layers of `tracing-subscriber` do.
pub(crate) struct OneLine<W>(pub(crate) W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (body, end) = match text.strip_suffix('\n') {
            Some(body) => (body, "\n"),
            None => (text.as_ref(), ""),
        };
        match escaped(body) {
            Cow::Borrowed(_) => self.0.write_all(event)?,
            Cow::Owned(line) => self.0.write_all((line + end).as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// `body` as it may stand in a line.
pub(crate) fn escaped(body: &str) -> Cow<'_, str> {
    // U+2028 and U+2029 separate lines and paragraphs.
    let forges = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if !body.contains(forges) {
        return Cow::Borrowed(body);
    }
    let mut line = String::with_capacity(body.len() + 16);
    for c in body.chars() {
        if forges(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 1.
    #[test]
    fn an_event_has_one_end() {
        let written = |event: &str| {
            let mut out = Vec::new();
            OneLine(&mut out).write_all(event.as_bytes()).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written("as it is, é and all\n"), "as it is, é and all\n");
        assert_eq!(written("a\nb\r\tc\u{1b}\u{85}\u{2028}d\n"), "a\\nb\\r\\tc\\u{1b}\\u{85}\\u{2028}d\n");
        assert_eq!(written("\n\n"), "\\n\n");
    }
}

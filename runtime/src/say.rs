//! What a command says, to a person or a script.
//!
//! 1. A reader who has gone (`testudo audit show RUN_DIR | head`) ends nothing: what is left is done, unheard.
//! 2. Standard output that cannot be written otherwise (a full disk) is told once the command is over, by [`failure`]: no script
//!    takes half of what was to be said for all of it.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why standard output could not be written, the first time.
static FAILED: OnceLock<String> = OnceLock::new();

/// Says a line, or several, on standard output.
macro_rules! say {
    () => { $crate::say::out(format_args!("\n")) };
    ($($text:tt)+) => { $crate::say::out(format_args!("{}\n", format_args!($($text)+))) };
}

/// Says a line, or several, on standard error.
macro_rules! note {
    ($($text:tt)+) => { $crate::say::aside(format_args!("{}\n", format_args!($($text)+))) };
}

pub(crate) use {note, say};

/// Writes to standard output.
pub(crate) fn out(text: Arguments<'_>) {
    if let Some(why) = written(&mut io::stdout().lock(), text) {
        // Told once, at the end.
        let _ = FAILED.set(why);
    }
}

/// Writes to standard error; where that is not possible, nobody can be told.
pub(crate) fn aside(text: Arguments<'_>) {
    let _ = written(&mut io::stderr().lock(), text);
}

/// Why standard output could not be written, if somebody still wants to read it.
pub(crate) fn failure() -> Option<&'static str> {
    FAILED.get().map(String::as_str)
}

fn written(to: &mut impl Write, text: Arguments<'_>) -> Option<String> {
    match to.write_fmt(text).and_then(|()| to.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_has_gone_is_no_failure_and_a_full_disk_is() {
        assert_eq!(written(&mut Refuses(ErrorKind::BrokenPipe), format_args!("a\n")), None);
        assert!(written(&mut Refuses(ErrorKind::StorageFull), format_args!("a\n")).is_some());
        let mut said = Vec::new();
        assert_eq!(written(&mut said, format_args!("{} b\n", "a")), None);
        assert_eq!(said, b"a b\n");
    }
}

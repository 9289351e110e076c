//! A wrapper for values that must never reach a log: keys, tokens, passwords.
//!
//! Invariants:
//! 1. `Debug` and `Display` print [`PLACEHOLDER`] whatever the value and whatever the format flags, so
//!    neither the value nor its length can leak through a derived `Debug` or a `tracing` field.
//! 2. The value is reached only by a call whose name says so ([`Redacted::expose`],
//!    [`Redacted::into_inner`]); there is no `Deref`, no `AsRef` and no `Serialize`.
//!
//! Left to others: wiping memory (wrap a type that does, such as `zeroize::Zeroizing`).

use std::fmt;

/// What is printed in place of the value.
pub const PLACEHOLDER: &str = "[redacted]";

/// A value that is never printed. See the module for what that promises.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself; the caller keeps it out of logs and error messages.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, by value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Redacted<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PLACEHOLDER)
    }
}

impl<T> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PLACEHOLDER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[allow(dead_code, reason = "read through its derived Debug only")]
    struct Login {
        user: &'static str,
        password: Redacted<String>,
    }

    /// Invariant 1.
    #[test]
    fn no_format_shows_the_value() {
        let secret = Redacted::new("hunter2".to_string());
        let login = Login { user: "ada", password: secret.clone() };
        for shown in [
            format!("{secret}"),
            format!("{secret:?}"),
            format!("{secret:#?}"),
            format!("{secret:>40}"),
            format!("{secret:.3}"),
            format!("{login:?}"),
            format!("{login:#?}"),
            format!("{:?}", Some(&secret)),
        ] {
            assert!(!shown.contains("hunter2") && !shown.contains("hun"), "{shown}");
            assert!(shown.contains(PLACEHOLDER), "{shown}");
        }
        assert!(format!("{login:?}").contains("ada"));
    }

    /// Invariant 1: nor does the length show.
    #[test]
    fn length_is_hidden() {
        let short = format!("{:?}", Redacted::new(vec![1_u8]));
        let long = format!("{:?}", Redacted::new(vec![1_u8; 4096]));
        assert_eq!(short, long);
    }

    /// Invariant 2.
    #[test]
    fn value_is_reached_by_name() {
        let secret: Redacted<u32> = 7.into();
        assert_eq!(*secret.expose(), 7);
        assert_eq!(secret.into_inner(), 7);
    }
}

//! What a server counts of its clients, for a collector: what was refused, by code, and what was answered.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:literal;)*) => {
        /// Why a request was refused, in a word: a closed set, so it can label a metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// Its name for programs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $word,)* }
            }

            /// Its HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Code::$name => $status,)* }
            }
        }
    };
}

codes! {
    /// No client that is known.
    Unauthenticated = "unauthenticated", 401;
    /// No such path.
    NotFound = "not_found", 404;
    /// Another method than the path has.
    Method = "wrong_method", 405;
    /// Not JSON, or compressed.
    MediaType = "wrong_media_type", 415;
    /// The body did not come in time.
    Slow = "too_slow", 408;
    /// The body is too long.
    TooLarge = "too_large", 413;
    /// The body is not of the form.
    Malformed = "malformed", 400;
    /// No row.
    NoRows = "no_rows", 422;
    /// Too many rows.
    TooManyRows = "too_many_rows", 422;
    /// A row of the wrong length.
    Features = "wrong_shape", 422;
    /// A number too large for the model.
    NotFinite = "not_finite", 422;
    /// The model's arithmetic overflowed.
    Overflow = "overflow", 422;
    /// The client asks faster than it may.
    Rate = "rate", 429;
    /// The client has too many requests under way.
    ClientBusy = "client_busy", 429;
    /// The server has.
    Busy = "busy", 503;
    /// The client's rows are used up.
    Spent = "budget_spent", 403;
    /// More clients than there are accounts for.
    TooManyClients = "too_many_clients", 503;
    /// The server's certificate is not valid.
    NotReady = "not_ready", 503;
    /// Budgets cannot be written.
    State = "state", 503;
    /// Something that should not be.
    Internal = "internal", 500;
}

/// The counters.
#[derive(Debug, Default)]
pub struct Counts {
    refused: [AtomicU64; Code::ALL.len()],
    closed: AtomicU64,
    rows: AtomicU64,
}

impl Counts {
    /// A request was refused.
    pub fn refuse(&self, code: Code) {
        // A code's place is its discriminant, and there is one for each.
        if let Some(counter) = self.refused.get(code as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection of nobody that is known was closed, because its address had enough of them.
    pub fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    /// So many rows were predicted.
    pub fn answer(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Requests refused, by code, those of which there were none left out.
    pub fn refused(&self) -> impl Iterator<Item = (Code, u64)> + '_ {
        let counts = self.refused.iter().map(|counter| counter.load(Ordering::Relaxed));
        Code::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Connections of strangers that were closed.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.load(Ordering::Relaxed)
    }

    /// Rows predicted.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_place_and_a_word_of_its_own() {
        let counts = Counts::default();
        for (nth, code) in Code::ALL.iter().enumerate() {
            (0..=nth).for_each(|_| counts.refuse(*code));
        }
        let expected: Vec<(Code, u64)> = Code::ALL.iter().copied().zip(1..).collect();
        assert_eq!(counts.refused().collect::<Vec<_>>(), expected);
        let words: std::collections::BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
    }
}

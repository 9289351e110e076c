//! Why a request is not answered: one code, one HTTP status, one line of JSON.
//!
//! 1. A refusal says nothing of the model but its input width, and of other clients nothing.
//! 2. What the log says of refusals is bounded: a few lines a minute of each kind, then a count ([`Told`]).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::counts::Code;

/// Longest text of a parser that is passed on, in characters.
const PARSER_TEXT: usize = 200;

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No client that is known.
    #[error("a client certificate or a bearer token that this server knows is needed")]
    Unauthenticated,
    /// No such path.
    #[error("there is /v1/predict, /healthz and /readyz")]
    NotFound,
    /// Another method than the path has.
    #[error("only {allowed} is taken here")]
    Method {
        /// The one that it has.
        allowed: &'static str,
    },
    /// Not JSON, or compressed.
    #[error("the body must be plain application/json")]
    MediaType,
    /// The body did not come in time.
    #[error("the body did not arrive within {seconds} s")]
    Slow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The body is too long.
    #[error("the body is longer than {most} bytes")]
    TooLarge {
        /// Bytes taken.
        most: usize,
    },
    /// The body is not of the form.
    #[error("{0}")]
    Malformed(String),
    /// No row.
    #[error("there is no row to predict")]
    NoRows,
    /// Too many rows.
    #[error("more than {most} rows in one request")]
    TooManyRows {
        /// Rows taken.
        most: usize,
    },
    /// A row of the wrong length.
    #[error("row {row} has {} numbers; the model takes {expected}", match found { Some(n) => n.to_string(), None => format!("more than {expected}") })]
    Features {
        /// Which, from 0.
        row: usize,
        /// The model's inputs.
        expected: usize,
        /// Numbers that it has, if they were counted.
        found: Option<usize>,
    },
    /// A number too large for the model.
    #[error("number {column} of row {row} is not finite in 32 bits")]
    NotFinite {
        /// The row, from 0.
        row: usize,
        /// Its number, from 0.
        column: usize,
    },
    /// The model's arithmetic overflowed on finite numbers.
    #[error("the model cannot compute a prediction for row {row}: its numbers are too large")]
    Overflow {
        /// The row, from 0.
        row: usize,
    },
    /// The client asks faster than it may.
    #[error("too many rows a second; Retry-After says when to ask again")]
    Rate {
        /// When it may ask again.
        wait: Duration,
    },
    /// The client has too many requests under way.
    #[error("too many requests of this client under way")]
    ClientBusy,
    /// The server has.
    #[error("too many requests under way")]
    Busy,
    /// The client's rows are used up.
    #[error("this client's budget has {left} rows left; they do not come back")]
    Spent {
        /// What it has left, fewer than it asked for.
        left: u64,
    },
    /// More clients than the server keeps accounts for.
    #[error("no account can be opened for a new client")]
    TooManyClients,
    /// The server's certificate is not valid, so no client believes it.
    #[error("the server's certificate is not valid now: {0}")]
    NotReady(String),
    /// Budgets cannot be written, so nothing is answered.
    #[error("the server cannot keep its accounts")]
    State,
    /// Something that should not be.
    #[error("the server failed")]
    Internal,
}

impl Refusal {
    /// From the JSON parser's words.
    pub(super) fn malformed(why: &serde_json::Error) -> Refusal {
        Refusal::Malformed(why.to_string().chars().take(PARSER_TEXT).collect())
    }

    /// Its name for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind().as_str()
    }

    /// Its HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.kind().status()
    }

    /// Seconds after which to try again, where that helps.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            // Rounded up: a client that waits as long as it was told is not refused again.
            Refusal::Rate { wait } => Some(wait.as_millis().div_ceil(1000).max(1) as u64),
            Refusal::ClientBusy | Refusal::Busy | Refusal::State => Some(1),
            _ => None,
        }
    }

    /// Whether the body may not have been read to its end.
    pub(super) fn before_body(&self) -> bool {
        use Refusal::{Busy, ClientBusy, MediaType, Method, NotFound, NotReady, Rate, Slow};
        use Refusal::{TooLarge, TooManyClients, Unauthenticated};
        matches!(
            self,
            Unauthenticated
                | NotFound
                | Method { .. }
                | MediaType
                | Slow { .. }
                | TooLarge { .. }
                | Rate { .. }
                | ClientBusy
                | Busy
                | TooManyClients
                | NotReady(_)
        )
    }

    /// The line that is sent.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!({ "error": { "code": self.code(), "message": self.to_string() } }).to_string()
    }

    /// Which of the codes it is.
    #[must_use]
    pub fn kind(&self) -> Code {
        match self {
            Refusal::Unauthenticated => Code::Unauthenticated,
            Refusal::NotFound => Code::NotFound,
            Refusal::Method { .. } => Code::Method,
            Refusal::MediaType => Code::MediaType,
            Refusal::Slow { .. } => Code::Slow,
            Refusal::TooLarge { .. } => Code::TooLarge,
            Refusal::Malformed(_) => Code::Malformed,
            Refusal::NoRows => Code::NoRows,
            Refusal::TooManyRows { .. } => Code::TooManyRows,
            Refusal::Features { .. } => Code::Features,
            Refusal::NotFinite { .. } => Code::NotFinite,
            Refusal::Overflow { .. } => Code::Overflow,
            Refusal::Rate { .. } => Code::Rate,
            Refusal::ClientBusy => Code::ClientBusy,
            Refusal::Busy => Code::Busy,
            Refusal::Spent { .. } => Code::Spent,
            Refusal::TooManyClients => Code::TooManyClients,
            Refusal::NotReady(_) => Code::NotReady,
            Refusal::State => Code::State,
            Refusal::Internal => Code::Internal,
        }
    }
}

/// Lines of one kind in one window.
const LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// How much the log has said of each kind of refusal.
#[derive(Debug, Default)]
pub struct Told(Mutex<Vec<Kind>>);

#[derive(Debug)]
struct Kind {
    code: &'static str,
    since: Instant,
    lines: u32,
    untold: u64,
}

impl Told {
    /// Counts a refusal. `Some(untold)` if the log may have a line of it: so many of its kind went untold before.
    pub fn count(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kinds.iter().position(|kind| kind.code == code).unwrap_or_else(|| {
            kinds.push(Kind { code, since: now, lines: 0, untold: 0 });
            kinds.len() - 1
        });
        let kind = kinds.get_mut(at)?;
        if now.duration_since(kind.since) >= WINDOW {
            (kind.since, kind.lines) = (now, 0);
        }
        if kind.lines == LINES {
            kind.untold += 1;
            return None;
        }
        kind.lines += 1;
        Some(std::mem::take(&mut kind.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 2.
    #[test]
    fn a_flood_of_refusals_is_a_few_lines_and_a_count() {
        let (told, start) = (Told::default(), Instant::now());
        let lines = |at| (0..1000).filter_map(|_| told.count("rate", at)).collect::<Vec<_>>();
        assert_eq!(lines(start), [0; LINES as usize]);
        assert_eq!(told.count("busy", start), Some(0), "kinds do not share");
        let later = lines(start + WINDOW);
        assert_eq!((later.len(), later[0], later[1]), (LINES as usize, 990, 0));
    }

    #[test]
    fn a_client_that_waits_as_told_is_let_in() {
        let after = |ms| Refusal::Rate { wait: Duration::from_millis(ms) }.retry_after();
        assert_eq!([after(1), after(1000), after(1001)], [Some(1), Some(1), Some(2)]);
    }

    #[test]
    fn a_message_cannot_break_out_of_its_json() {
        let error = serde_json::from_str::<u32>("\"a\\\"},{\"").unwrap_err();
        let text = Refusal::malformed(&error).to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["error"]["code"], "malformed");
    }
}

//! What a server is told, and its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::ServeError;
use crate::process::RunAs;
use crate::signing::PublicKey;

/// Most digits that probabilities can be rounded to; beyond this `full` says what is meant.
pub const DIGITS_MOST: u8 = 6;
/// Most rows in one request that can be configured.
const ROWS_MOST: usize = 65_536;

/// Whether, and by whom, the model must be signed.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By the holder of this key.
    Signed {
        /// The signer's key.
        key: PublicKey,
        /// The signature's file.
        signature: PathBuf,
    },
    /// By nobody: whatever is in the folder is served.
    Unsigned,
}

/// How precise probabilities are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digits {
    /// Rounded to so many digits after the point, from 1 to [`DIGITS_MOST`].
    Rounded(u8),
    /// All that the model computes.
    Full,
}

/// What an answer says of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The label and each class's probability.
    Probabilities(Digits),
    /// The label alone.
    Labels,
}

impl Default for Output {
    fn default() -> Output {
        Output::Probabilities(Digits::Rounded(2))
    }
}

/// What clients may ask for, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Rows in one request.
    pub rows: usize,
    /// Bytes of a request's body; by default what the largest good request needs.
    pub body: Option<usize>,
    /// Rows that a client may ask for in a second, in the long run.
    pub rate: u32,
    /// Rows that a client may ever ask for; by default one more than the model has inputs.
    pub budget: Option<Budget>,
    /// Connections, authenticated or not.
    pub connections: usize,
    /// Connections of one address on which no client is known yet.
    pub connections_per_address: usize,
    /// Requests under way, of all clients.
    pub requests: usize,
    /// Requests under way, of one client.
    pub requests_per_client: usize,
    /// For a connection's handshake, for a request's head, and for its body.
    pub patience: Duration,
}

/// Rows that a client may ever ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So many.
    Rows(u64),
    /// No end.
    Unlimited,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            rows: 64,
            body: None,
            rate: 100,
            budget: None,
            connections: 256,
            connections_per_address: 16,
            requests: 32,
            requests_per_client: 4,
            patience: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Bytes of a body for a model of `features` inputs.
    #[must_use]
    pub fn body_bytes(&self, features: usize) -> usize {
        // A number of f32 takes up to 16 characters, of f64, which many clients send, 24; then a comma, and a space.
        const NUMBER: usize = 26;
        const AROUND: usize = 1024;
        self.body.unwrap_or_else(|| {
            let row = features.saturating_mul(NUMBER).saturating_add(8);
            row.saturating_mul(self.rows).saturating_add(AROUND)
        })
    }

    /// A client's budget for a model of `features` inputs. The equations of softmax regression take `features + 1` rows
    /// (Tramer et al., <https://arxiv.org/abs/1609.02943>): nobody gets more unless told.
    #[must_use]
    pub fn budget_rows(&self, features: usize) -> Option<u64> {
        match self.budget {
            Some(Budget::Unlimited) => None,
            Some(Budget::Rows(rows)) => Some(rows),
            None => Some(features as u64 + 1),
        }
    }
}

/// Everything that a server is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The model's folder.
    pub dir: PathBuf,
    /// Who must have signed it.
    pub trust: Trust,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The server's certificate chain, in PEM.
    pub cert: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The file of tokens, if clients have tokens.
    pub tokens: Option<PathBuf>,
    /// The CA of clients' certificates, in PEM, if they have certificates. Without tokens, a connection without a
    /// certificate ends in its handshake.
    pub client_ca: Option<PathBuf>,
    /// Lists of the certificates that this CA has revoked, in PEM, if it has such lists.
    pub client_crl: Option<PathBuf>,
    /// Where budgets are kept between runs.
    pub state: PathBuf,
    /// Whom the process becomes before it listens; nobody else if it is not root, or may stay root.
    pub user: Option<RunAs>,
    /// What answers say.
    pub output: Output,
    /// What clients may ask for.
    pub limits: Limits,
}

impl Options {
    /// # Errors
    /// A number that no server can work with.
    pub(super) fn check(&self) -> Result<(), ServeError> {
        let limits = &self.limits;
        let wrong = |what: &str| Err(ServeError::Option(what.to_owned()));
        if let Output::Probabilities(Digits::Rounded(digits)) = self.output
            && !(1..=DIGITS_MOST).contains(&digits)
        {
            return wrong("digits are from 1 to 6, or full");
        }
        if !(1..=ROWS_MOST).contains(&limits.rows) {
            return wrong("the rows of a request are from 1 to 65536");
        }
        let counts = [limits.connections, limits.connections_per_address, limits.requests];
        if counts.contains(&0) || limits.requests_per_client == 0 || limits.rate == 0 {
            return wrong("a limit of 0 would serve nobody");
        }
        Ok(())
    }
}

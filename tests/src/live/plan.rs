//! What a test says of a cluster under attack, and what an attacker reports.

use serde::Deserialize;
use testudo_transport::CloseCode;

use crate::flood::inside::Inside;

/// What is unusual about a cluster under attack.
#[derive(Clone)]
pub struct Plan {
    /// Workers of the job.
    pub workers: u32,
    /// Those that are not started: an attacker plays them.
    pub absent: Vec<u32>,
    /// How many of them will be lost on the way.
    pub lost: u32,
    /// What is in the environment of scheduler and servers.
    pub environment: Vec<(&'static str, String)>,
    /// Keys under `[limits]` that are other than by default, a line each.
    pub limits: &'static str,
    /// A worker whose key and secret somebody else has as well.
    pub inside: Option<(u32, Inside)>,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { workers: 2, absent: Vec::new(), lost: 0, environment: Vec::new(), limits: "", inside: None }
    }
}

/// How a connection was closed, as an attacker saw it.
#[derive(Debug, Deserialize)]
pub struct Closed {
    /// The code: an application's, or QUIC's own.
    pub code: u64,
    /// The reason in words.
    pub reason: String,
}

impl Closed {
    /// Whether it was closed with that code.
    #[must_use]
    pub fn is(&self, code: CloseCode) -> bool {
        self.code == u64::from(code.number())
    }
}

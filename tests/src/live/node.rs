//! One process of a cluster under attack: where it is, what it logs, what memory it takes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use testudo_transport::SpiffeId;

use super::within;
use crate::process::Started;

/// One process of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Who it is.
    pub id: SpiffeId,
    /// Where it listens.
    pub address: SocketAddr,
    pub(super) process: Started,
    pub(super) log: PathBuf,
    /// Its peak of resident memory when training had begun.
    pub(super) calm: u64,
}

impl Node {
    /// Where it is, for orders.
    #[must_use]
    pub fn target(&self) -> Value {
        json!([self.address.ip().to_string(), self.address.port()])
    }

    /// The number of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it logs a line with all of `words` that stands after `since` bytes of its log.
    ///
    /// # Panics
    /// When it does not.
    pub fn logs(&self, since: usize, words: &[&str]) {
        let line = || {
            let log = self.log();
            let new = log.get(since..).unwrap_or_default();
            new.lines().any(|line| words.iter().all(|w| line.contains(w))).then_some(())
        };
        if within(Duration::from_secs(60), line).is_none() {
            let log = self.log();
            panic!("{} logged no {words:?}, but\n{}", self.id.short(), log.get(since..).unwrap_or_default());
        }
    }
}

/// Where a node says that it listens.
pub(super) fn listening(log: &Path) -> Option<SocketAddr> {
    let log = std::fs::read_to_string(log).ok()?;
    let line = log.lines().find(|line| line.contains(" is up"))?;
    line.split("address=").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// The peak of a process's resident memory in bytes; `None` once it has ended.
#[must_use]
pub fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

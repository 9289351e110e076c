//! The network sockets that a process has open, as the kernel tells it. Those of a process that cannot be dumped, it tells root alone.

use std::collections::{BTreeMap, BTreeSet};

/// The kernel gives a table in pieces, and while other sockets come and go, a line between two of them may be missing or there twice: it
/// is read this often, and what is found once is there.
const READINGS: usize = 3;

/// A socket of the Internet protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The table of `/proc` that it stands in: `udp`, `udp6`, `tcp` or `tcp6`.
    pub table: &'static str,
    /// The user who opened it, which it keeps whoever its process becomes.
    pub opened_by: u32,
}

/// Those of a process, each once, however many descriptors it has.
#[must_use]
pub fn of(pid: u32) -> Vec<Socket> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let number = |text: &str| Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    let own: BTreeSet<String> = links.filter_map(|link| number(link.to_str()?)).collect();
    let mut found = BTreeMap::new();
    for table in ["udp", "udp6", "tcp", "tcp6"].repeat(READINGS) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            // The eighth column is the user, the tenth the socket's number.
            let columns: Vec<&str> = line.split_whitespace().collect();
            if own.contains(columns[9]) {
                found.insert(columns[9].to_owned(), Socket { table, opened_by: columns[7].parse().unwrap() });
            }
        }
    }
    found.into_values().collect()
}

//! How many rows each client has ever had.
//!
//! 1. The file says of each client at least what it was given: rows are set aside in the file, a block ahead, before the
//!    first of them is answered. The file and its name are on disk (`fsync`) before that.
//! 2. So after a crash, or a loss of power, a client has lost up to [`Ledger::block`] rows, and has gained none. A server that
//!    ends in order writes what was really used.
//! 3. If the file cannot be written, nothing more is given out. If it cannot be read, no server starts.
//! 4. Clients in the file are bounded; beyond, a new client is refused.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use testudo_transport::pki::read_secret_file;

use super::ServeError;
use super::client::ClientId;
use super::refusal::Refusal;
use crate::rundir::in_words;
use crate::signing::write_whole_as;

/// What the file says that it is.
const FORMAT: &str = "testudo serve budgets 1";
/// Most clients with an account. The file stays below the 64 KiB that a private file may have.
const CLIENTS_MOST: usize = 500;
/// Longest name of a client in the file.
const NAME_MOST: usize = 100;
/// Largest block.
const BLOCK_MOST: u64 = 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    /// Rows that were set aside for each client.
    given: BTreeMap<String, u64>,
}

/// The accounts of all clients.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    limit: u64,
    accounts: Mutex<BTreeMap<String, Account>>,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    used: u64,
    set_aside: u64,
}

impl Ledger {
    /// Opens the accounts in the file at `path`, or new ones, of `limit` rows each.
    ///
    /// # Errors
    /// The file is there and cannot be read as accounts.
    pub fn open(path: &Path, limit: u64) -> Result<Ledger, ServeError> {
        let state = |what: String| ServeError::State { path: path.to_owned(), what };
        let given = match path.symlink_metadata() {
            Err(why) if why.kind() == ErrorKind::NotFound => BTreeMap::new(),
            _ => {
                let file: File = serde_json::from_slice(&read_secret_file(path)?).map_err(|why| {
                    state(format!("is not a list of budgets ({why}); without it none can be kept"))
                })?;
                if file.format != FORMAT {
                    return Err(state(format!("is of the format {:?}, not {FORMAT:?}", file.format)));
                }
                file.given
            }
        };
        let account = |(name, rows)| (name, Account { used: rows, set_aside: rows });
        let accounts = Mutex::new(given.into_iter().map(account).collect());
        Ok(Ledger { path: path.to_owned(), limit, accounts })
    }

    /// Rows that each client may have.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Rows that a crash may cost a client.
    #[must_use]
    pub fn block(&self) -> u64 {
        (self.limit / 16).clamp(1, BLOCK_MOST)
    }

    /// Gives `client` that many rows for good; answers what it has left.
    ///
    /// # Errors
    /// [`Refusal::Spent`], [`Refusal::State`] or [`Refusal::TooManyClients`]; then it is given none.
    pub fn take(&self, client: &ClientId, rows: u64) -> Result<u64, Refusal> {
        let mut accounts = self.accounts();
        let name = client.as_str();
        let account = accounts.get(name).copied();
        if account.is_none() && (accounts.len() >= CLIENTS_MOST || name.len() > NAME_MOST) {
            return Err(Refusal::TooManyClients);
        }
        let mut account = account.unwrap_or(Account { used: 0, set_aside: 0 });
        let left = self.limit.saturating_sub(account.used);
        if rows > left {
            return Err(Refusal::Spent { left });
        }
        account.used += rows;
        if account.used > account.set_aside {
            account.set_aside = account.used.saturating_add(self.block() - 1).min(self.limit);
            let mut given = given(&accounts, |account| account.set_aside);
            given.insert(name.to_owned(), account.set_aside);
            self.write(given).map_err(|why| {
                let file = in_words(&self.path.display().to_string());
                tracing::error!(file, "budgets cannot be written, so nothing is answered: {why}");
                Refusal::State
            })?;
        }
        accounts.insert(name.to_owned(), account);
        Ok(self.limit - account.used)
    }

    /// Writes what was really used. To be called when nothing is under way any more.
    ///
    /// # Errors
    /// The file cannot be written; what it said before is no less.
    pub fn settle(&self) -> Result<(), ServeError> {
        let mut accounts = self.accounts();
        if accounts.values().all(|account| account.used == account.set_aside) {
            return Ok(());
        }
        self.write(given(&accounts, |account| account.used))
            .map_err(|why| ServeError::State { path: self.path.clone(), what: why.to_string() })?;
        for account in accounts.values_mut() {
            account.set_aside = account.used;
        }
        Ok(())
    }

    fn write(&self, given: BTreeMap<String, u64>) -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(&File { format: FORMAT.to_owned(), given })?;
        write_whole_as(&self.path, &text, 0o600)
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<String, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn given(accounts: &BTreeMap<String, Account>, rows: impl Fn(&Account) -> u64) -> BTreeMap<String, u64> {
    accounts.iter().map(|(name, account)| (name.clone(), rows(account))).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn id(name: &str) -> ClientId {
        ClientId::of_token(name)
    }

    fn spent(left: u64) -> Result<u64, Refusal> {
        Err(Refusal::Spent { left })
    }

    #[test]
    fn a_budget_is_spent_once_whatever_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("budgets"), 100).unwrap();
        let (alice, bob) = (id("alice"), id("bob"));
        assert_eq!(ledger.take(&alice, 60), Ok(40));
        assert_eq!(ledger.take(&alice, 41), spent(40));
        assert_eq!(ledger.take(&alice, u64::MAX), spent(40));
        assert_eq!(ledger.take(&bob, 100), Ok(0));
        assert_eq!(ledger.take(&alice, 40), Ok(0));
        assert_eq!(ledger.take(&alice, 1), spent(0));
    }

    /// Invariants 1 and 2, with a crash after some rows.
    #[test]
    fn a_crash_never_refills_and_costs_a_block_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let alice = id("alice");
        for crash_after in (0..=100).step_by(9) {
            let path = folder.path().join(crash_after.to_string());
            let ledger = Ledger::open(&path, 100).unwrap();
            for _ in 0..crash_after {
                ledger.take(&alice, 1).unwrap();
            }
            let block = ledger.block();
            assert_eq!(block, 6);
            // A process that is gone writes nothing more.
            drop(ledger);
            let again = Ledger::open(&path, 100).unwrap();
            let left = (0..).take_while(|_| again.take(&alice, 1).is_ok()).count() as u64;
            let fair = 100 - crash_after;
            assert!(left <= fair && fair - left < block, "{left} left after {crash_after}");
        }
    }

    #[test]
    fn an_orderly_end_costs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets");
        let (alice, bob) = (id("alice"), id("bob"));
        for (used, other) in [(1, 99), (2, 98), (3, 97)] {
            let ledger = Ledger::open(&path, 100).unwrap();
            assert_eq!(ledger.take(&alice, 1), Ok(100 - used));
            assert_eq!(ledger.take(&bob, 1), Ok(other));
            ledger.settle().unwrap();
        }
        // A smaller limit than what was given is spent, not an error.
        assert_eq!(Ledger::open(&path, 2).unwrap().take(&alice, 1), spent(0));
    }

    /// Invariant 3.
    #[test]
    fn what_cannot_be_kept_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/budgets");
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let ledger = Ledger::open(&path, 100).unwrap();
        ledger.take(&id("alice"), 6).unwrap();
        std::fs::remove_dir_all(folder.path().join("sub")).unwrap();
        assert_eq!(ledger.take(&id("alice"), 6), Err(Refusal::State));
        assert!(ledger.take(&id("bob"), 1).is_err());
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(ledger.take(&id("alice"), 6), Ok(88), "what was refused was not charged");
    }

    #[test]
    fn what_is_no_list_of_budgets_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets");
        for text in [
            "",
            "{}",
            "{\"format\":\"x\",\"given\":{}}",
            "{\"format\":\"testudo serve budgets 1\",\"given\":{\"a\":-1}}",
        ] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            assert!(Ledger::open(&path, 1).is_err(), "{text}");
        }
        std::fs::write(&path, "{\"format\":\"testudo serve budgets 1\",\"given\":{\"a\":1}}").unwrap();
        Ledger::open(&path, 1).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Ledger::open(&path, 1).is_err(), "others can read it");
    }

    /// Invariant 4: a full file can still be read.
    #[test]
    fn accounts_are_bounded_and_the_fullest_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budgets");
        let given: BTreeMap<String, u64> =
            (0..CLIENTS_MOST).map(|n| (format!("{n:0>width$}", width = NAME_MOST), u64::MAX)).collect();
        let ledger = Ledger::open(&path, 100).unwrap();
        ledger.write(given).unwrap();
        let ledger = Ledger::open(&path, 100).unwrap();
        assert_eq!(ledger.take(&id("new"), 1), Err(Refusal::TooManyClients));
    }
}

//! Clients: who they are, how fast each may ask, and how much of each is under way.
//!
//! 1. A rate is a bucket of rows that fills steadily: over any time t a client gets at most `burst + rate x t` rows.
//! 2. The table is bounded. A client is forgotten only when its bucket is full and nothing of it is under way, which is how
//!    a new one begins: forgetting gains it nothing.
//! 3. Asking too fast costs: a request that was read and is refused for its rows takes one of them all the same, so that what
//!    is read for a client is bounded by its rate too.
//! 4. What is under way is given back when its turn is dropped, however it ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// Most clients that are kept in mind at once.
const CLIENTS_MOST: usize = 4096;

/// An authenticated client, by the name under which its budget is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// Of the client whose token has this name.
    #[must_use]
    pub fn of_token(name: &str) -> ClientId {
        ClientId(format!("token:{name}").into())
    }

    /// Of the client whose certificate says this name.
    #[must_use]
    pub(super) fn of_certificate(name: &str) -> ClientId {
        ClientId(format!("certificate:{name}").into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Rows that may be taken, which grow with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

/// How buckets fill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Rows a second.
    pub per_second: f64,
    /// Rows that a full bucket holds.
    pub burst: f64,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Bucket {
        Bucket { level: rate.burst, at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + seconds * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    fn take(&mut self, rate: Rate, rows: f64, now: Instant) -> Result<(), Duration> {
        self.fill(rate, now);
        match self.level >= rows {
            true => {
                self.level -= rows;
                Ok(())
            }
            false => Err(self.wait(rate, rows)),
        }
    }

    fn wait(&self, rate: Rate, rows: f64) -> Duration {
        Duration::from_secs_f64((rows - self.level).max(0.0) / rate.per_second)
    }
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    under_way: usize,
}

/// Every client that has asked lately.
#[derive(Debug)]
pub struct Clients {
    rate: Rate,
    requests: usize,
    table: Mutex<HashMap<ClientId, Entry>>,
}

impl Clients {
    /// A table of clients that may each have `requests` under way.
    #[must_use]
    pub fn new(rate: Rate, requests: usize) -> Clients {
        Clients { rate, requests, table: Mutex::default() }
    }

    /// A place for one more request of the client, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Refusal::ClientBusy`] or [`Refusal::TooManyClients`].
    pub fn enter(self: &Arc<Self>, id: &ClientId, now: Instant) -> Result<Turn, Refusal> {
        let mut table = self.table();
        if !table.contains_key(id) && table.len() >= CLIENTS_MOST {
            let rate = self.rate;
            table.retain(|_, entry| {
                entry.bucket.fill(rate, now);
                entry.under_way > 0 || entry.bucket.level < rate.burst
            });
            if table.len() >= CLIENTS_MOST {
                return Err(Refusal::TooManyClients);
            }
        }
        let new = || Entry { bucket: Bucket::full(self.rate, now), under_way: 0 };
        let entry = table.entry(id.clone()).or_insert_with(new);
        if entry.under_way >= self.requests {
            return Err(Refusal::ClientBusy);
        }
        entry.under_way += 1;
        Ok(Turn { clients: Arc::clone(self), id: id.clone() })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ClientId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request's place.
#[derive(Debug)]
pub struct Turn {
    clients: Arc<Clients>,
    id: ClientId,
}

impl Turn {
    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &ClientId {
        &self.id
    }

    /// Whether the client may have a row at all, before anything of its request is read. Takes nothing.
    ///
    /// # Errors
    /// [`Refusal::Rate`], with the time to the first row.
    pub fn check(&self, now: Instant) -> Result<(), Refusal> {
        let rate = self.clients.rate;
        self.bucket(|bucket| { *bucket }.take(rate, 1.0, now).map_err(|wait| Refusal::Rate { wait }))
    }

    /// Takes `rows` from the client's rate, for a request that was read.
    ///
    /// # Errors
    /// [`Refusal::Rate`], with the time to all of them; then one row is taken, or what there is of it.
    pub fn charge(&self, rows: usize, now: Instant) -> Result<(), Refusal> {
        let (rate, rows) = (self.clients.rate, rows as f64);
        self.bucket(|bucket| {
            bucket.take(rate, rows, now).map_err(|_| {
                bucket.level = (bucket.level - 1.0).max(0.0);
                Refusal::Rate { wait: bucket.wait(rate, rows) }
            })
        })
    }

    fn bucket<T>(&self, work: impl FnOnce(&mut Bucket) -> Result<T, Refusal>) -> Result<T, Refusal> {
        work(&mut self.clients.table().get_mut(&self.id).ok_or(Refusal::Internal)?.bucket)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(entry) = self.clients.table().get_mut(&self.id) {
            entry.under_way = entry.under_way.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 20.0 };

    fn id(name: &str) -> ClientId {
        ClientId::of_token(name)
    }

    /// Invariant 1.
    #[test]
    fn a_rate_holds_over_any_time() {
        let (clients, start) = (Arc::new(Clients::new(RATE, 1)), Instant::now());
        let turn = clients.enter(&id("a"), start).unwrap();
        let (mut now, mut taken) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match turn.charge(3, now) {
                Ok(()) => taken += 3,
                Err(Refusal::Rate { wait }) => now += wait + Duration::from_micros(1),
                Err(other) => panic!("{other}"),
            }
        }
        // Of every four rows one goes to the request that came too early.
        assert!((80..=120).contains(&taken), "{taken} rows in 10 s at 10 a second and a burst of 20");
    }

    /// Invariant 3.
    #[test]
    fn what_is_read_in_vain_is_bounded_by_the_rate_too() {
        let (clients, start) = (Arc::new(Clients::new(RATE, 1)), Instant::now());
        let turn = clients.enter(&id("a"), start).unwrap();
        let mut read = 0;
        for ms in 0..10_000_u64 {
            let now = start + Duration::from_millis(ms);
            if turn.check(now).is_ok() {
                read += 1;
                assert!(turn.charge(21, now).is_err(), "more than a full bucket holds");
            }
        }
        assert!((115..=120).contains(&read), "{read} requests read in 10 s at 10 a second and a burst of 20");
        let Err(Refusal::Rate { wait }) = turn.check(start) else { panic!("nothing is left") };
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
    }

    #[test]
    fn waiting_as_told_is_enough() {
        let (clients, start) = (Arc::new(Clients::new(RATE, 1)), Instant::now());
        let turn = clients.enter(&id("a"), start).unwrap();
        turn.charge(20, start).unwrap();
        let Err(Refusal::Rate { wait }) = turn.charge(7, start) else { panic!("the bucket is empty") };
        assert_eq!(wait, Duration::from_millis(700));
        let then = start + wait + Duration::from_micros(1);
        turn.charge(7, then).unwrap();
        // Half a second later there are five rows, of which one is lost.
        let then = then + Duration::from_millis(500);
        let Err(Refusal::Rate { wait }) = turn.charge(7, then) else { panic!("there are five") };
        assert!(wait > Duration::from_millis(290) && wait <= Duration::from_millis(300), "{wait:?}");
        turn.charge(7, then + wait + Duration::from_micros(1)).unwrap();
        // A clock that steps back gives nothing.
        assert!(turn.charge(1, start).is_err());
    }

    #[test]
    fn one_client_does_not_pay_for_another() {
        let (clients, now) = (Arc::new(Clients::new(RATE, 2)), Instant::now());
        let a = clients.enter(&id("a"), now).unwrap();
        a.charge(20, now).unwrap();
        let second = clients.enter(&id("a"), now).unwrap();
        assert_eq!(clients.enter(&id("a"), now).unwrap_err(), Refusal::ClientBusy);
        assert!(second.charge(1, now).is_err(), "one bucket for all of a client's requests");
        clients.enter(&id("b"), now).unwrap().charge(20, now).unwrap();
        drop(second);
        clients.enter(&id("a"), now).unwrap();
    }

    /// Invariant 2.
    #[test]
    fn the_table_is_bounded_and_forgetting_gains_nothing() {
        let (clients, start) = (Arc::new(Clients::new(RATE, 1)), Instant::now());
        for n in 0..CLIENTS_MOST {
            clients.enter(&id(&n.to_string()), start).unwrap().charge(5, start).unwrap();
        }
        assert_eq!(clients.enter(&id("late"), start).unwrap_err(), Refusal::TooManyClients);
        clients.enter(&id("7"), start).unwrap();
        let later = start + Duration::from_secs(1);
        let held = clients.enter(&id("8"), later).unwrap();
        clients.enter(&id("late"), later).unwrap();
        assert_eq!(clients.table().len(), 2, "what is under way stays");
        drop(held);
    }
}

//! Connections of nobody that is known: each address has a few, so that one cannot hold all that there are.
//!
//! 1. A connection counts from the end of its handshake until it ends, or until a client that is known asks on it; one with
//!    a client's certificate never counts.
//! 2. An address is kept in mind only while a connection of it counts.
//! 3. An IPv6 address is its network of 64 bits: whoever has one address there has all.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections of strangers each address has open.
#[derive(Debug)]
pub(super) struct Strangers {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One of these connections, which counts until this is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    strangers: Arc<Strangers>,
    from: Cell<Option<IpAddr>>,
}

impl Strangers {
    /// At most `most` connections for each address.
    pub(super) fn new(most: usize) -> Strangers {
        Strangers { most, open: Mutex::default() }
    }

    /// Counts a connection from `peer`, unless there are enough of them.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Stranger> {
        let from = network(peer);
        let mut open = self.open();
        let count = open.get(&from).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        open.insert(from, count + 1);
        Some(Stranger { strangers: Arc::clone(self), from: Cell::new(Some(from)) })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// A client that is known has asked on the connection.
    pub(super) fn is_known(&self) {
        let Some(from) = self.from.take() else { return };
        let mut open = self.strangers.open();
        match open.get_mut(&from) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&from)),
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_known();
    }
}

fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Invariants 1 and 2.
    #[test]
    fn an_address_has_a_few_until_they_end_or_are_known() {
        let strangers = Arc::new(Strangers::new(2));
        let [first, second] = [(); 2].map(|()| strangers.enter(at("192.0.2.1")).unwrap());
        assert!(strangers.enter(at("192.0.2.1")).is_none());
        let other = strangers.enter(at("192.0.2.2")).unwrap();
        first.is_known();
        first.is_known();
        let third = strangers.enter(at("192.0.2.1")).unwrap();
        assert!(strangers.enter(at("192.0.2.1")).is_none(), "known once, counted once");
        drop(first);
        assert!(strangers.enter(at("192.0.2.1")).is_none(), "it did not count any more");
        drop((second, third, other));
        assert!(strangers.open().is_empty());
    }

    /// Invariant 3.
    #[test]
    fn an_address_of_version_6_is_its_network() {
        let strangers = Arc::new(Strangers::new(1));
        let _held = ["2001:db8::1", "::ffff:192.0.2.1"].map(|peer| strangers.enter(at(peer)).unwrap());
        assert!(strangers.enter(at("2001:db8::ffff:2")).is_none());
        assert!(strangers.enter(at("192.0.2.1")).is_none(), "the same address of version 4");
        assert!(strangers.enter(at("2001:db8:0:1::1")).is_some());
    }
}

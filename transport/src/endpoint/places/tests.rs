use std::time::Duration;

use super::*;
use crate::identity::Role;

/// Nothing is gained back by waiting: these tests do not depend on how long they take.
const ONCE: Rate = Rate { per_second: 0, burst: 4 };
const KIND: u8 = 7;

fn config() -> TransportConfig {
    TransportConfig {
        max_handshakes: 6,
        max_connections: 8,
        max_connections_per_peer: 4,
        streams: ONCE,
        ..TransportConfig::default()
    }
}

fn worker(index: usize) -> SpiffeId {
    SpiffeId::new("t", "j", Role::Worker, &index.to_string()).unwrap()
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn accepted(places: &Places, index: usize, address: &str) -> Result<(Slot, Arc<Paced>), NoPlace> {
    places.slot().expect("within the total").accepted(&worker(index), at(address))
}

fn waits(pace: &Paced, messages: usize) -> Vec<Duration> {
    (0..messages).map(|_| pace.message(KIND, ONCE)).collect()
}

/// Invariant 3: a burst, a close, a new connection, whoever dials it: no second burst.
#[test]
fn who_comes_back_is_heard_as_if_it_had_stayed() {
    let places = Places::new(&config());
    let (slot, pace) = accepted(&places, 0, "10.0.0.1").unwrap();
    assert_eq!(waits(&pace, 5).last(), Some(&Duration::from_secs(1)), "a burst of four, and one that waits");
    drop((slot, pace));
    assert_eq!(places.connections(), 0);
    let (again, pace) = accepted(&places, 0, "10.0.0.2").unwrap();
    assert_eq!(waits(&pace, 1), [Duration::from_secs(2)]);
    let (ours, same) = places.slot().unwrap().dialled(&worker(0));
    assert!(Arc::ptr_eq(&pace, &same), "over all its connections");
    drop((again, ours, pace, same));
    let (_ours, pace) = places.slot().unwrap().dialled(&worker(0));
    assert_eq!(waits(&pace, 1), [Duration::from_secs(3)]);
    let (_other, pace) = accepted(&places, 1, "10.0.0.1").unwrap();
    assert_eq!(waits(&pace, 4), [Duration::ZERO; 4], "another identity has its own");
}

/// Invariant 4.
#[test]
fn of_those_who_are_gone_so_many_are_remembered() {
    let places = Places::new(&config());
    let spend = |index: usize| {
        let (_slot, pace) = accepted(&places, index, "10.0.0.1").unwrap();
        waits(&pace, 5)[0]
    };
    spend(0);
    for index in 1..IDENTITIES {
        spend(index);
    }
    assert!(!spend(0).is_zero(), "it is remembered still, and now the last that left");
    for index in 1..=IDENTITIES {
        spend(index);
    }
    let counts = places.0.counts();
    assert_eq!((counts.gone.len(), counts.peers.len(), counts.connections.len()), (IDENTITIES, 0, 0));
    drop(counts);
    assert!(spend(0).is_zero(), "as many others have left since");
}

/// Invariant 1, of handshakes.
#[test]
fn an_address_has_half_of_the_handshakes() {
    let places = Places::new(&config());
    let take = |text: &str| places.handshake(Some(at(text)));
    let first = ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|text| take(text).unwrap());
    assert!(take("2001:db8::4").is_none(), "the same network");
    assert_eq!(places.handshakes(), 3, "what is refused holds nothing");
    let others = [take("10.0.0.1"), places.handshake(None), places.handshake(None)].map(Option::unwrap);
    assert!(take("10.0.0.2").is_none() && places.handshake(None).is_none(), "all are taken");
    drop(first);
    let back = take("2001:db8::4").unwrap();
    drop((others, back));
    assert_eq!(places.handshakes(), 0);
    assert!(places.0.counts().handshakes.is_empty());
}

/// Invariants 1 and 2, of connections.
#[test]
fn an_address_has_half_of_the_connections_and_one_for_each_identity() {
    let places = Places::new(&config());
    let mut here: Vec<_> = (0..4).map(|_| accepted(&places, 0, "10.0.0.1").unwrap()).collect();
    assert_eq!(accepted(&places, 0, "10.0.0.1").err(), Some(NoPlace::Peer));
    assert_eq!(accepted(&places, 0, "10.0.0.2").err(), Some(NoPlace::Peer), "from wherever");
    here.push(accepted(&places, 1, "10.0.0.1").expect("a neighbour does not keep it out"));
    assert_eq!(accepted(&places, 1, "::ffff:10.0.0.1").err(), Some(NoPlace::Address));
    let elsewhere = accepted(&places, 1, "10.0.0.2").unwrap();
    assert_eq!(places.connections(), 6, "what is refused holds nothing");
    drop(here);
    let back = accepted(&places, 1, "10.0.0.1").unwrap();
    drop((elsewhere, back));
    let counts = places.0.counts();
    assert!(counts.connections.is_empty() && counts.peers.is_empty());
}

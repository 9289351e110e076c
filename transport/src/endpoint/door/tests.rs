use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::identity::Role;

const FEW: usize = 4;

fn limits() -> Limits {
    Limits {
        total: Rate { per_second: 20, burst: 40 },
        per_address: Rate { per_second: 2, burst: 10 },
        per_peer: Rate { per_second: 1, burst: 5 },
        retry_after: FEW,
    }
}

fn door() -> Door {
    Door::new(limits(), Duration::ZERO)
}

fn four(last: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + last))
}

fn worker(index: u32) -> SpiffeId {
    SpiffeId::new("t", "j", Role::Worker, &index.to_string()).unwrap()
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Invariant 1.
#[test]
fn forged_addresses_are_asked_for_proof_and_cost_their_owners_nothing() {
    let (mut door, owner) = (door(), four(1));
    let knocks: Vec<Knock> = (0..1000).map(|_| door.knock(Duration::ZERO, owner, false, 0)).collect();
    assert_eq!(knocks.iter().filter(|knock| **knock == Knock::Admit).count(), FEW);
    assert!(knocks[FEW..].iter().all(|knock| *knock == Knock::Prove));
    assert_eq!(door.strangers.len(), 0, "a forged address is remembered");
    for _ in 0..10 {
        assert_eq!(door.knock(Duration::ZERO, owner, true, 1000), Knock::Admit);
    }
    assert_eq!(door.knock(Duration::ZERO, owner, true, 0), Knock::AddressSpent);
}

/// Many in progress: nobody begins without proof.
#[test]
fn from_a_few_in_progress_on_everybody_proves_the_address() {
    let mut door = door();
    assert_eq!(door.knock(secs(0), four(1), false, FEW - 1), Knock::Admit);
    assert_eq!(door.knock(secs(0), four(1), false, FEW), Knock::Prove);
}

#[test]
fn an_address_in_six_is_a_network_of_64_bits() {
    let mut door = door();
    let six = |network: u16, host: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 1, host));
    let admitted = (0..100).filter(|host| door.knock(secs(0), six(1, *host), true, 0) == Knock::Admit);
    assert_eq!(admitted.count(), 10);
    assert_eq!(door.knock(secs(0), six(2, 0), true, 0), Knock::Admit);
}

#[test]
fn failures_put_an_address_into_the_penalty_box_and_a_minute_takes_it_out() {
    let (mut door, bad, good) = (door(), four(1), four(2));
    for _ in 0..100 {
        door.failed(secs(0), bad);
    }
    assert_eq!(door.knock(secs(60), bad, true, 0), Knock::AddressSpent);
    assert_eq!(door.knock(secs(0), good, true, 0), Knock::Admit);
    assert_eq!(door.knock(secs(61), bad, true, 0), Knock::Admit);
}

#[test]
fn strangers_leave_a_known_address_its_reserve() {
    let mut door = door();
    assert!(door.authenticated(secs(0), four(1), &worker(0)));
    let flood = (100..1100).filter(|last| door.knock(secs(0), four(*last), true, 0) == Knock::Admit);
    assert_eq!(flood.count(), 40);
    assert_eq!(door.knock(secs(0), four(99), true, 0), Knock::TotalSpent);
    assert_eq!(door.knock(secs(0), four(1), true, 0), Knock::Admit);
}

#[test]
fn an_identity_has_its_rate_and_pays_for_its_faults() {
    let mut door = door();
    let many = (0..20).filter(|last| door.authenticated(secs(0), four(*last), &worker(0)));
    assert_eq!(many.count(), 5);
    assert!(door.authenticated(secs(0), four(1), &worker(1)), "another identity pays for the first");
    for _ in 0..100 {
        door.fault(secs(0), four(1), &worker(1));
    }
    assert!(!door.authenticated(secs(60), four(50), &worker(1)));
    assert!(door.authenticated(secs(61), four(51), &worker(1)));
}

/// Invariant 3.
#[test]
fn tables_stay_small_and_known_addresses_are_not_pushed_out() {
    let limits = Limits { total: Rate { per_second: 1, burst: u32::MAX }, ..limits() };
    let mut door = Door::new(limits, Duration::ZERO);
    assert!(door.authenticated(secs(0), four(0), &worker(0)));
    for last in 1..20_000 {
        assert_eq!(door.knock(secs(0), four(last), true, 0), Knock::Admit);
    }
    assert_eq!((door.strangers.len(), door.known.len()), (ADDRESSES, 1));
    for index in 0..10_000 {
        door.fault(secs(0), four(0), &worker(index));
    }
    assert_eq!(door.identities.len(), IDENTITIES);
}

proptest! {
    /// Invariant 2, over any sequence of knocks from any addresses.
    #[test]
    fn no_span_has_more_handshakes_than_the_rates(
        steps in prop::collection::vec((0u64..500, 0u32..6, any::<bool>(), 0usize..8, 0u8..4), 1..300),
    ) {
        let (mut door, mut now, mut admitted) = (door(), Duration::ZERO, Vec::new());
        for (millis, last, proved, pending, then) in steps {
            now += Duration::from_millis(millis);
            if door.knock(now, four(last), proved, pending) == Knock::Admit {
                admitted.push((now, last, proved));
                match then {
                    0 if proved => door.failed(now, four(last)),
                    1 => { door.authenticated(now, four(last), &worker(last)); }
                    2 => door.fault(now, four(last), &worker(last)),
                    _ => {}
                }
            }
        }
        let most = |rate: Rate, span: Duration| {
            f64::from(rate.burst) + f64::from(rate.per_second) * span.as_secs_f64() + 1e-3
        };
        let limits = limits();
        let unproved = Rate { per_second: UNPROVED_PER_SECOND, burst: FEW as u32 };
        for (first, (start, ..)) in admitted.iter().enumerate() {
            for last in first..admitted.len() {
                let (span, window) = (admitted[last].0 - *start, &admitted[first..=last]);
                let proved = window.iter().filter(|(_, _, proved)| *proved).count();
                prop_assert!((window.len() - proved) as f64 <= most(unproved, span));
                prop_assert!(proved as f64 <= 2.0 * most(limits.total, span));
                for address in 0..6 {
                    let own = window.iter().filter(|(_, from, proved)| *proved && *from == address).count();
                    prop_assert!(own as f64 <= most(limits.per_address, span), "{address}: {own} in {span:?}");
                }
            }
        }
    }
}

//! Messages on the wire.

use super::*;
use proptest::prelude::*;

#[test]
fn bodies_survive_the_wire_and_nothing_may_trail() {
    let push = Push {
        epoch: 3,
        step: 700,
        slice: SliceId { parameter: 1, index: 2 },
        node: Node { first: 4, leaves: 4 },
        codec: 0,
    };
    let mut bytes = push.encode();
    assert_eq!(Push::decode(&bytes).unwrap(), push);
    bytes.push(0);
    assert!(Push::decode(&bytes).is_err());
}

/// What others read and write by hand (`tests/python/attacks/worker.py`): a change here is a change of the wire.
#[test]
fn a_membership_has_these_bytes() {
    let lease = Lease {
        node: Node { first: 4, leaves: 3 },
        worker: 2,
        since: 5,
        from_step: 300,
        alone_from: 6,
        to_step: Some(8),
    };
    let membership = Membership {
        epoch: 1,
        servers: vec![ServerMember { index: 0, address: "h:1".into() }],
        workers: vec![WorkerMember { index: 2, incarnation: 1, commitment: [7; 32], start: 3 }],
        leases: vec![lease],
        until: 9,
    };
    let head = [&[1, 1, 0, 3][..], b"h:1", &[1, 2, 1], &[7; 32], &[3]].concat();
    assert_eq!(membership.encode(), [&head[..], &[1, 4, 3, 2, 5, 0xac, 0x02, 6, 1, 8, 9]].concat());
}

proptest! {
    #[test]
    fn no_bytes_make_a_body_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (Join::decode(&bytes), Welcome::decode(&bytes), Membership::decode(&bytes), NodeDone::decode(&bytes));
        let _ = (Push::decode(&bytes), Pull::decode(&bytes), StatusReport::decode(&bytes), Heartbeat::decode(&bytes));
    }
}

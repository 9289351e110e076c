//! What classes B and F share: the last of three workers is the attacker's. It joins in order, holds a lease, and lies.

use serde_json::{Value, json};
use testudo_actors::placement::Slice;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Live, Node};
use testudo_tests::member::placement;
use testudo_transport::Role;

/// Which worker is the attacker's.
pub(crate) const HOSTILE: u32 = 2;

/// Joins, under the job's own protocol and an incarnation of its own, and connects to both servers.
pub(crate) fn join(attacker: &Attacker, live: &Live) {
    let servers = [0, 1].map(|index| {
        let node = live.node(Role::Server, index);
        json!([node.id.as_str(), node.address.ip().to_string(), node.address.port()])
    });
    let mut order = live.order_as(live.node(Role::Scheduler, 0), HOSTILE);
    order["release"] = testudo_actors::node::RELEASE.into();
    order["fingerprint"] = testudo_kernels::fingerprint().into();
    order["servers"] = json!(servers);
    let joined = attacker.attack("worker.join", order);
    let kinds = joined["kinds"].as_array().unwrap();
    assert!(
        kinds.first() == Some(&json!(2)) && kinds.last() == Some(&json!(4)),
        "welcome, membership: {joined}"
    );
}

/// A slice that `server` keeps, as orders name it.
pub(crate) fn slice_of(live: &Live, server: &Node) -> Value {
    let index = server.id.index().unwrap();
    let map = placement(&live.site.job);
    let slice: &Slice = map.slices().iter().find(|slice| slice.server == index).unwrap();
    json!({
        "server": server.id.as_str(),
        "slice_id": [slice.id.parameter, slice.id.index],
        "size": slice.elements * 4,
    })
}

/// Ends its membership: its lease moves to the others.
pub(crate) fn leave(attacker: &Attacker) {
    assert_eq!(attacker.attack("worker.leave", json!({})), true);
}

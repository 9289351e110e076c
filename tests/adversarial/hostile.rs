//! What classes B, E and F share: an attacker that holds a lease. It is the last of three workers, joins in order and lies; or it
//! has the key and the secret of a worker that is honest, and speaks beside it.

use serde_json::{Value, json};
use testudo_actors::placement::Slice;
use testudo_tests::attacker::Attacker;
use testudo_tests::flood::inside::Inside;
use testudo_tests::live::{Live, Node};
use testudo_tests::member::placement;
use testudo_transport::Role;

/// Which worker is the attacker's.
pub(crate) const HOSTILE: u32 = 2;

/// Joins, under the job's own protocol and an incarnation of its own, and connects to both servers.
pub(crate) fn join(attacker: &Attacker, live: &Live) {
    let mut order = live.order_as(live.node(Role::Scheduler, 0), HOSTILE);
    order["release"] = testudo_actors::node::RELEASE.into();
    order["fingerprint"] = testudo_kernels::fingerprint().into();
    order["servers"] = servers(live);
    let joined = attacker.attack("worker.join", order);
    let kinds = joined["kinds"].as_array().unwrap();
    assert!(
        kinds.first() == Some(&json!(2)) && kinds.last() == Some(&json!(4)),
        "welcome, membership: {joined}"
    );
}

/// Both servers, as orders name them.
fn servers(live: &Live) -> Value {
    [0, 1]
        .map(|index| {
            let node = live.node(Role::Server, index);
            json!([node.id.as_str(), node.address.ip().to_string(), node.address.port()])
        })
        .into_iter()
        .collect()
}

/// An order to speak to `node` under the key and the secret of `worker`, which takes part.
pub(crate) fn order_beside(live: &Live, node: &Node, (worker, inside): (u32, &Inside)) -> Value {
    let mut order = live.order_as(node, worker);
    order["secret"] = hex(&inside.secret().expect("the worker takes part")).into();
    order
}

/// Connects to both servers as worker 0, of two that train, whose lease is the first half of the shards.
pub(crate) fn beside(attacker: &Attacker, live: &Live, inside: &Inside) {
    let mut order = order_beside(live, live.node(Role::Server, 0), (0, inside));
    order["servers"] = servers(live);
    let half = live.site.job.logical_shards / 2;
    order["leases"] = json!([[[0, half], 0], [[half, half], 1]]);
    for unused in ["target", "expect"] {
        order.as_object_mut().unwrap().remove(unused);
    }
    assert_eq!(attacker.attack("worker.beside", order), 2);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

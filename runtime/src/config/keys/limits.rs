//! The rows about how much anybody may ask for.

use super::{Absent, Key, Rule};

/// The most any rate may be: beyond it, it limits nothing.
const RATE: Rule = Rule::Integer { min: 1, max: 1_000_000 };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "limits.handshakes_per_second",
        rule: RATE,
        absent: Absent::Is("32"),
        applies: None,
        doc: "Handshakes a second that a node begins with strangers, all together, once as many have come as the cluster has nodes to start; addresses from which a node of the job has come before have as many again. Each costs about a millisecond of one core.",
    },
    Key {
        path: "limits.handshakes_per_address",
        rule: RATE,
        absent: Absent::Is("8"),
        applies: None,
        doc: "The same for one address (in IPv6, one /64). A handshake that fails, and a fault after it, count ninefold, down to a debt of a minute.",
    },
    Key {
        path: "limits.connections_per_peer",
        rule: RATE,
        absent: Absent::Is("2"),
        applies: None,
        doc: "Connections a second that one identity may begin with a node, once it has begun sixteen times as many. A fault of the peer counts ninefold, down to a debt of a minute.",
    },
    Key {
        path: "limits.memory_mib",
        rule: Rule::Integer { min: 64, max: 1 << 20 },
        absent: Absent::Unset("what a node needs, and its peers' credit twice over"),
        applies: None,
        doc: "MiB that a node may occupy in all, whatever its role; the two nodes of a colocated process each. What it needs for itself is set aside (the program, parameters, sums, votes, a worker's data, what a GPU's driver takes on the host); of the rest each connection is granted its share as credit, at most `transport.max_in_flight_bytes`, for what comes and goes, read and unread; a connection for which there is none left is refused. A limit under which a slice could not travel is refused, with the least that will do.",
    },
];

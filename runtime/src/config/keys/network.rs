//! The rows about addresses: who binds which, and who may come in.

use super::super::check;
use super::rules::DIALED;
use super::{Absent, Key, Rule};

const ADDRESS: Rule =
    Rule::Text { check: check::listen, allowed: "IP address and port; port 0 lets the system choose" };
const NETWORK: Rule = Rule::Text { check: check::network, allowed: "network in CIDR notation" };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "network.listen",
        rule: ADDRESS,
        absent: Absent::Is("\"127.0.0.1:0\""),
        applies: None,
        doc: "Address the scheduler and the servers bind unless the two sections below say otherwise. Nothing binds every interface unless this file says so.",
    },
    Key {
        path: "network.mtu",
        rule: Rule::Integer { min: 1200, max: 65_527 },
        absent: Absent::Is("65527"),
        applies: None,
        doc: "Largest UDP payload, in bytes, that path discovery may try. Loopback takes 65527, jumbo Ethernet 8952, plain Ethernet 1452; what the path does not carry is not used.",
    },
    Key {
        path: "network.allow",
        rule: Rule::List { each: &NETWORK, most: 64 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "Networks that nodes and operators come from, such as `10.1.0.0/16`; `[]` for all. Whoever calls from elsewhere gets no answer, before anything is computed for it.",
    },
    Key {
        path: "network.scheduler.listen",
        rule: ADDRESS,
        absent: Absent::Unset("`network.listen`"),
        applies: None,
        doc: "Address the scheduler binds.",
    },
    Key {
        path: "network.scheduler.advertise",
        rule: DIALED,
        absent: Absent::Unset("the bound address"),
        applies: None,
        doc: "Address at which others reach the scheduler, where it is not the bound one.",
    },
    Key {
        path: "network.servers.listen",
        rule: Rule::List { each: &ADDRESS, most: 4096 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "Addresses the servers bind, by index; none, or one for each of `cluster.servers`.",
    },
    Key {
        path: "network.servers.advertise",
        rule: Rule::List { each: &DIALED, most: 4096 },
        absent: Absent::Is("[]"),
        applies: None,
        doc: "Addresses at which others reach the servers, by index; none, or one for each of `cluster.servers`.",
    },
];

//! The rows that name the job and say how many nodes it has.

use super::super::check;
use super::rules::{DAY_MS, DIALED};
use super::{Absent, Key, Rule};

/// More servers or workers than any cluster this version was tried on, by far.
const NODES: Rule = Rule::Integer { min: 1, max: 4096 };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "job.name",
        rule: Rule::Text {
            check: check::name,
            allowed: "1 to 63 of `a-z A-Z 0-9 . _ -`, not starting with a dot",
        },
        absent: Absent::Is("\"job\""),
        applies: None,
        doc: "Names the job: part of every node's identity and of the run directory's name.",
    },
    Key {
        path: "job.trust_domain",
        rule: Rule::Text { check: check::trust_domain, allowed: "1 to 255 of `a-z 0-9 . _ -`" },
        absent: Absent::Is("\"testudo.local\""),
        applies: None,
        doc: "The SPIFFE trust domain of every identity of the job.",
    },
    Key {
        path: "cluster.workers",
        rule: NODES,
        absent: Absent::Is("1"),
        applies: None,
        doc: "How many workers compute gradients; at most `training.logical_shards`. The result does not depend on it, but for the robust rules of `training.aggregation`, under which it is the number of votes.",
    },
    Key {
        path: "cluster.servers",
        rule: NODES,
        absent: Absent::Unset("1, or `cluster.workers` where they are colocated"),
        applies: None,
        doc: "How many servers hold and update parameters. The result does not depend on it.",
    },
    Key {
        path: "cluster.scheduler",
        rule: DIALED,
        absent: Absent::Unset("a local run fills it in"),
        applies: None,
        doc: "Where nodes find the scheduler.",
    },
    Key {
        path: "cluster.placement",
        rule: Rule::Choice(&["dedicated", "colocated"]),
        absent: Absent::Is("\"dedicated\""),
        applies: None,
        doc: "Who shares a process: with `dedicated`, every server and every worker is a process of its own; with `colocated`, server and worker of one number are, so that what they have for each other stays in memory and a step sends as much less over the network. The result does not depend on it, but a process that dies takes its server with it, which ends the run.",
    },
    Key {
        path: "cluster.launcher",
        rule: Rule::Choice(&["local", "ssh"]),
        absent: Absent::Is("\"local\""),
        applies: None,
        doc: "Where `testudo run` starts servers and workers: with `local`, on this machine; with `ssh`, on the hosts that `[ssh]` names, while the scheduler stays on this machine. The result does not depend on it. See [deploying](deploying.md).",
    },
    Key {
        path: "cluster.heartbeat_ms",
        // More than twice as long as lies between messages that are heard at once (`actors/src/policy.rs`).
        rule: Rule::Integer { min: 50, max: DAY_MS },
        absent: Absent::Is("500"),
        applies: None,
        doc: "Milliseconds between a node's heartbeats to the scheduler.",
    },
    Key {
        path: "cluster.heartbeat_timeout_ms",
        rule: Rule::Integer { min: 100, max: DAY_MS },
        absent: Absent::Is("5000"),
        applies: None,
        doc: "Milliseconds of silence after which a node counts as dead; at least twice `cluster.heartbeat_ms`.",
    },
];

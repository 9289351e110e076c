//! What classes C and D share: a table of cases, all tried in one order at the scheduler.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Closed, Live};
use testudo_transport::{Cause, CloseCode, Role};

use crate::counted::Counts;

/// A case, the code that the attacker is cut off with, and words of the reason.
pub(crate) type Expected = (&'static str, CloseCode, &'static str);

/// How a case ended.
#[derive(Debug, Deserialize)]
struct Ended {
    admitted: bool,
    heard: Option<u8>,
    closed: Option<Closed>,
}

/// What a peer that is cut off with `code` and these words for what it said is counted as.
pub(crate) fn cause(code: CloseCode, words: &str) -> Cause {
    match code {
        // The frame is good, and what is in it makes no sense to the scheduler.
        CloseCode::Framing if words == "malformed" => Cause::Message,
        CloseCode::Framing => Cause::Framing,
        CloseCode::Policy => Cause::Policy,
        CloseCode::Credit => Cause::Credit,
        CloseCode::Mac => Cause::Mac,
        CloseCode::Identity => Cause::Envelope,
        other => panic!("nobody is cut off with {other:?} for what it framed"),
    }
}

/// Has the cases of Python's table `table` tried, under identities from `first` on: the attacker was let in, each is cut off as
/// `expected`, and the scheduler says so in its log and counts it under its cause, beside `joins` that it turns away. Cases that
/// were answered instead are handed back.
pub(crate) fn refused(
    attacker: &Attacker,
    counts: &Counts,
    live: &Live,
    (table, first): (&str, u32),
    expected: &[Expected],
    joins: u64,
) -> Vec<String> {
    let mut counted: BTreeMap<Cause, u64> = BTreeMap::from([(Cause::Join, joins)]);
    for (_, code, words) in expected {
        *counted.entry(cause(*code, words)).or_default() += 1;
    }
    let counted: Vec<(Cause, u64)> = counted.into_iter().collect();
    let node = live.node(Role::Scheduler, 0);
    let since = node.log().len();
    let mut order = live.order(node);
    order["cases"] = table.into();
    order["stem"] = live.stem("worker").into();
    order["first"] = first.into();
    order.as_object_mut().unwrap().remove("name");
    let found = counts.rise(node, &counted, || attacker.attack("frames.run", order));
    let mut found: BTreeMap<String, Ended> = serde_json::from_value(found).unwrap();
    let mut wrong = Vec::new();
    for (what, code, words) in expected {
        let Some(ended) = found.remove(*what) else {
            wrong.push(format!("{what}: not tried"));
            continue;
        };
        let as_expected = ended.admitted
            && ended.heard.is_none()
            && ended.closed.as_ref().is_some_and(|c| c.is(*code) && c.reason.contains(words));
        if !as_expected {
            wrong.push(format!("{what}: {ended:?} instead of {code:?} with {words:?}"));
        }
    }
    found.retain(|what, ended| {
        let answered = ended.admitted && ended.heard.is_some();
        if !answered {
            wrong.push(format!("{what}: {ended:?}, and nobody says how it should end"));
        }
        answered
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.logs(since, &["peer at fault", &json!(expected[0].1.number()).to_string()]);
    found.into_keys().collect()
}

//! What classes C and D share: a table of cases, all tried in one order at the scheduler.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use testudo_tests::attacker::Attacker;
use testudo_tests::live::{Closed, Live};
use testudo_transport::{CloseCode, Role};

/// A case, the code that the attacker is cut off with, and words of the reason.
pub(crate) type Expected = (&'static str, CloseCode, &'static str);

/// How a case ended.
#[derive(Debug, Deserialize)]
struct Ended {
    admitted: bool,
    heard: Option<u8>,
    closed: Option<Closed>,
}

/// Has the cases of Python's table `table` tried, under identities from `first` on: the attacker was let in, each is cut off as
/// `expected`, and the scheduler says so in its log. Cases that were answered instead are handed back.
pub(crate) fn refused(
    attacker: &Attacker,
    live: &Live,
    table: &str,
    first: u32,
    expected: &[Expected],
) -> Vec<String> {
    let node = live.node(Role::Scheduler, 0);
    let since = node.log().len();
    let mut order = live.order(node);
    order["cases"] = table.into();
    order["stem"] = live.stem("worker").into();
    order["first"] = first.into();
    order.as_object_mut().unwrap().remove("name");
    let found = attacker.attack("frames.run", order);
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

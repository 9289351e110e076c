//! `testudo deploy --to kubernetes`: its manifests against the published schemas, and what they promise.
//!
//! Without an interpreter in `TESTUDO_PYTHON` that has kubernetes-validate, the tests say so and do nothing; with
//! `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use std::path::Path;

use serde_json::{Value, json};
use testudo_tests::files::{self, text};
use testudo_tests::kubernetes::policy::{self, Action, Failed};
use testudo_tests::kubernetes::{checked, of_kind};
use testudo_tests::{process, python};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn manifests(set: &[&str]) -> String {
    let place = tempfile::tempdir().unwrap();
    let file = files::write_job(place.path());
    let set: Vec<&str> = ["limits.memory_mib=512"].iter().chain(set).flat_map(|one| ["--set", one]).collect();
    let arguments =
        ["deploy", text(&file), "--to", "kubernetes", "--image", "example.org/testudo@sha256:00", "--print"];
    process::run(PROGRAM, &[&arguments[..], &set].concat(), Path::new("/no/mark")).succeeded().stdout
}

#[test]
fn manifests_are_what_the_schemas_allow() {
    let Some(python) = python::with("kubernetes_validate, yaml") else { return };
    let dedicated = vec![("small-scheduler", 1), ("small-server", 2), ("small-worker", 2)];
    let colocated = vec![("small-scheduler", 1), ("small-peer", 2)];
    let cases = [
        (vec![], dedicated.clone()),
        (vec!["checkpoint.every_steps=10"], dedicated),
        (vec!["cluster.placement=colocated", "checkpoint.every_steps=10"], colocated),
    ];
    for (set, jobs) in cases {
        let documents = checked(&python, &manifests(&set)).unwrap_or_else(|why| panic!("{why}"));
        let found: Vec<_> = of_kind(&documents, "Job")
            .map(|job| {
                (job["metadata"]["name"].as_str().unwrap(), job["spec"]["completions"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(found, jobs);
        let mut kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
        kinds.dedup();
        assert_eq!(kinds, ["ConfigMap", "Service", "NetworkPolicy", "PersistentVolumeClaim", "Job"]);
        let scheduler =
            &of_kind(&documents, "Job").next().unwrap()["spec"]["template"]["spec"]["containers"][0];
        let words: Vec<&str> =
            scheduler["command"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(words.ends_with(&["--summary", "/run-dir/summary.json"]), "{words:?}");
        assert_eq!(of_kind(&documents, "Service").next().unwrap()["spec"]["clusterIP"], "None");
        for job in of_kind(&documents, "Job") {
            assert_eq!(job["spec"]["completionMode"], "Indexed");
            let goes_on = set.contains(&"checkpoint.every_steps=10");
            let (name, spec) = (job["metadata"]["name"].as_str().unwrap(), &job["spec"]);
            // Another scheduler would begin the job again by itself, or goes on by word of an operator's.
            let limits = match name {
                "small-scheduler" if goes_on => [json!(3), Value::Null, Value::Null],
                "small-scheduler" => [json!(0), Value::Null, Value::Null],
                "small-worker" => [Value::Null, json!(if goes_on { 9 } else { 6 }), json!(2)],
                _ => [Value::Null, json!(if goes_on { 9 } else { 6 }), json!(0)],
            };
            let keys = ["backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes"];
            assert_eq!(keys.map(|key| spec[key].clone()), limits, "{name}");
            assert_made_again(name.trim_start_matches("small-"), spec, goes_on);
            assert_restricted(&job["spec"]["template"]["spec"]);
        }
        let policy = &of_kind(&documents, "NetworkPolicy").next().unwrap()["spec"];
        let own = json!([{ "podSelector": policy["podSelector"] }]);
        assert_eq!((&policy["ingress"][0]["from"], policy["ingress"].as_array().unwrap().len()), (&own, 1));
        assert!(
            policy["ingress"][0]["ports"].as_array().unwrap().iter().all(|port| port["protocol"] == "UDP")
        );
        let chosen = policy["podSelector"]["matchLabels"].as_object().unwrap();
        for job in of_kind(&documents, "Job") {
            let labels = &job["spec"]["template"]["metadata"]["labels"];
            assert!(
                !chosen.is_empty() && chosen.iter().all(|(name, value)| &labels[name] == value),
                "{labels}"
            );
        }
    }
}

/// What is worth another pod, and what would go wrong again.
fn assert_made_again(role: &str, spec: &Value, goes_on: bool) {
    let action = |container: &str, status: u8, disrupted: bool| {
        policy::action(spec, &Failed { container: container.to_owned(), status, disrupted })
    };
    let ended = |container: &str, status: u8| action(container, status, false);
    match role {
        "scheduler" if goes_on => {
            for (container, status) in [("scheduler", 1), ("scheduler", 2), ("scheduler", 101), ("job", 2)] {
                assert_eq!(ended(container, status), Action::FailJob, "{container} {status}");
            }
            let others =
                [("scheduler", 5), ("scheduler", 137), ("scheduler", 143), ("job", 1), ("identity", 1)];
            for (container, status) in others {
                assert_eq!(ended(container, status), Action::Count, "{container} {status}");
            }
            assert_eq!(action("scheduler", 1, true), Action::Count);
        }
        "scheduler" => assert!(spec["podFailurePolicy"].is_null()),
        _ => {
            let dismissed = if goes_on { Action::Ignore } else { Action::FailIndex };
            assert_eq!((ended(role, 6), action(role, 137, true)), (dismissed, Action::Ignore), "{role}");
            for status in [1, 2, 137] {
                assert_eq!(ended(role, status), Action::Count, "{role} {status}");
            }
        }
    }
}

/// The `restricted` Pod Security Standard, a root file system that cannot be written, no token, limits, and secrets by reference.
fn assert_restricted(pod: &Value) {
    let context = &pod["securityContext"];
    assert_eq!(
        (&context["runAsNonRoot"], &context["seccompProfile"]["type"]),
        (&json!(true), &json!("RuntimeDefault"))
    );
    assert!(context["runAsUser"].as_u64().is_some_and(|user| user > 0));
    assert_eq!((&pod["automountServiceAccountToken"], &pod["hostNetwork"]), (&json!(false), &Value::Null));
    for container in
        pod["initContainers"].as_array().unwrap().iter().chain(pod["containers"].as_array().unwrap())
    {
        let expected = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        });
        assert_eq!(container["securityContext"], expected);
        assert!(container["resources"]["limits"]["memory"].is_string());
    }
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "512Mi");
    // What runs the node sees no Secret, and the claim is all that it can write to.
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = |name: &Value| volumes.iter().find(|volume| &volume["name"] == name).unwrap();
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        assert!(volume(&mount["name"])["secret"].is_null(), "{mount}");
        assert!(mount["readOnly"] == true || mount["name"] == "run", "{mount}");
    }
    // Of the first containers, each sees one node's files; and one alone the operator's, which may be missing. It only reads the claim.
    let of = |container: &'static str| {
        pod["initContainers"].as_array().unwrap().iter().find(move |c| c["name"] == container)
    };
    for mount in of("identity").unwrap()["volumeMounts"].as_array().unwrap() {
        let secret = &volume(&mount["name"])["secret"];
        assert!(
            secret.is_null() || mount["subPathExpr"].as_str().unwrap().ends_with("-$(INDEX)"),
            "one node's files: {mount}"
        );
        assert!(secret.is_null() || (secret["secretName"].is_string() && mount["name"] != "restarts"));
    }
    let Some(signer) = of("job") else { return assert!(volumes.iter().all(|v| v["name"] != "restarts")) };
    for mount in signer["volumeMounts"].as_array().unwrap() {
        let volume = volume(&mount["name"]);
        assert!(volume["secret"].is_null() || volume["name"] == "restarts", "{mount}");
        assert!(mount["readOnly"] == true || volume["emptyDir"]["medium"] == "Memory", "{mount}");
    }
    let restarts = &volume(&json!("restarts"))["secret"];
    assert_eq!((&restarts["secretName"], &restarts["optional"]), (&json!("small-restarts"), &json!(true)));
}

/// The check can fail: a field that is not there, a value of another kind.
#[test]
fn what_the_schemas_forbid_is_noticed() {
    let Some(python) = python::with("kubernetes_validate, yaml") else { return };
    let good = manifests(&[]);
    for (field, forged) in [("completionMode", "completionMood"), ("clusterIP: \"None\"", "clusterIP: 7")] {
        assert!(good.contains(field));
        assert!(checked(&python, &good.replace(field, forged)).is_err(), "{forged}");
    }
}

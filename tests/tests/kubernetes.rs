//! `testudo deploy --to kubernetes`: its manifests against the published schemas, and what they promise.
//!
//! Without an interpreter in `TESTUDO_PYTHON` that has kubernetes-validate, the tests say so and do nothing; with
//! `TESTUDO_REQUIRE_PYTHON=1` that is a failure.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testudo_tests::files::{self, text};
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

/// What the schemas say of `manifests`: the documents, or why not.
fn checked(python: &str, manifests: &str) -> Result<Vec<Value>, String> {
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/manifests.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

#[test]
fn manifests_are_what_the_schemas_allow() {
    let Some(python) = python::with("kubernetes_validate, yaml") else { return };
    let dedicated = vec![("small-scheduler", 1), ("small-server", 2), ("small-worker", 2)];
    let colocated = vec![("small-scheduler", 1), ("small-peer", 2)];
    let cases = [(vec![], dedicated), (vec!["cluster.placement=colocated"], colocated)];
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
            // Another scheduler would begin the job again by itself.
            let limit = match job["metadata"]["name"].as_str().unwrap() {
                "small-scheduler" => json!(0),
                "small-worker" => Value::Null,
                _ => json!(6),
            };
            assert_eq!(job["spec"]["backoffLimit"], limit);
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
    for mount in pod["initContainers"][0]["volumeMounts"].as_array().unwrap() {
        let secret = &volume(&mount["name"])["secret"];
        assert!(
            secret.is_null() || mount["subPathExpr"].as_str().unwrap().ends_with("-$(INDEX)"),
            "one node's files: {mount}"
        );
        assert!(secret.is_null() || secret["secretName"].is_string());
    }
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

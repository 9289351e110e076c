//! What becomes of a Job when one of its pods has failed, as Kubernetes documents `podFailurePolicy`.

use serde_json::Value;

/// How a pod failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The container that ended, of the first ones or the others.
    pub container: String,
    /// What it ended with; 128 and the number for a signal.
    pub status: u8,
    /// Whether the pod was disrupted: evicted, preempted, its machine drained.
    pub disrupted: bool,
}

/// What is done about a pod that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The Job has failed.
    FailJob,
    /// Its index has failed.
    FailIndex,
    /// Another takes its place, and nothing is counted.
    Ignore,
    /// Another takes its place, if the count allows.
    Count,
}

/// How a Job ended; the reasons are those of its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every index has succeeded.
    Complete,
    /// By its policy.
    PodFailurePolicy,
    /// More pods failed than it allows.
    BackoffLimitExceeded,
    /// More indexes failed than it allows.
    MaxFailedIndexesExceeded,
    /// Every index is done, and some have failed.
    FailedIndexes,
}

/// What the Job with this `spec` does about a pod that has `failed`: the first rule that matches says it.
///
/// # Panics
/// When the API's server would refuse the rules.
#[must_use]
pub fn action(spec: &Value, failed: &Failed) -> Action {
    let rules = spec["podFailurePolicy"]["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    for rule in rules {
        check(spec, rule);
    }
    match rules.iter().find(|rule| matches(rule, failed)) {
        Some(rule) => named(rule),
        None => Action::Count,
    }
}

fn named(rule: &Value) -> Action {
    match rule["action"].as_str() {
        Some("FailJob") => Action::FailJob,
        Some("FailIndex") => Action::FailIndex,
        Some("Ignore") => Action::Ignore,
        Some("Count") => Action::Count,
        other => panic!("no action: {other:?}"),
    }
}

fn matches(rule: &Value, failed: &Failed) -> bool {
    if let Some(conditions) = rule["onPodConditions"].as_array() {
        let disruption = |c: &Value| c["type"] == "DisruptionTarget" && c["status"] == "True";
        return failed.disrupted && conditions.iter().any(disruption);
    }
    let codes = &rule["onExitCodes"];
    let asked = codes["containerName"].as_str().is_none_or(|name| name == failed.container);
    let among = codes["values"].as_array().unwrap().iter().any(|code| *code == failed.status);
    asked && failed.status != 0 && (codes["operator"] == "In") == among
}

/// What the API's server checks beyond the schemas.
fn check(spec: &Value, rule: &Value) {
    let pod = &spec["template"]["spec"];
    assert_eq!((&pod["restartPolicy"], &spec["podReplacementPolicy"]), (&"Never".into(), &"Failed".into()));
    let per_index = spec["backoffLimitPerIndex"].as_u64().is_some();
    assert!(per_index || (named(rule) != Action::FailIndex && spec["maxFailedIndexes"].is_null()), "{rule}");
    let one = rule["onExitCodes"].is_object() != rule["onPodConditions"].is_array();
    assert!(one, "either exit codes or conditions: {rule}");
    let Some(codes) = rule["onExitCodes"]["values"].as_array() else { return };
    let codes: Vec<u64> = codes.iter().filter_map(Value::as_u64).collect();
    assert!(
        codes.is_sorted_by(|a, b| a < b) && (1..=255).contains(&codes.len()),
        "in order, each once: {rule}"
    );
    let operator = rule["onExitCodes"]["operator"].as_str();
    assert!(matches!(operator, Some("In" | "NotIn")) && (operator != Some("In") || codes[0] > 0), "{rule}");
    let named = &rule["onExitCodes"]["containerName"];
    let has = |kind: &str| pod[kind].as_array().is_some_and(|all| all.iter().any(|c| c["name"] == *named));
    assert!(named.is_null() || has("containers") || has("initContainers"), "no such container: {rule}");
}

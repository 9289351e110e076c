//! Whether a job goes on when a server or the scheduler has died, who signs for it, and which pods are made again.
//!
//! 1. A scheduler's pod whose run directory holds a run starts with what its second container has signed: the job once more, to go on
//!    from the newest checkpoint, under the conditions of `testudo job --resume`. One that finds no step taken begins the job.
//! 2. That container alone sees the operator's key that signs, and keeps no copy. Without it, or without a checkpoint, the job ends.
//! 3. The scheduler's pod is made again `cluster.restarts` times in all: when its container was killed or has lost a server, and when
//!    the pod was disrupted. What it failed at would fail again, and ends the job.
//! 4. A node's pod that was dismissed for what goes on from a checkpoint is made again if the job goes on, and otherwise not. One that
//!    is killed, or finds no scheduler, is made again a number of times; one that is disrupted, always.

use serde_json::{Map, Value, json};
use testudo_transport::Role;
use testudo_transport::pki::{CA_FILE, CERT_FILE, KEY_FILE};

use super::{JOB, Job, RUN, SECRET, SIGNED, closed, resources};
use crate::config::Config;
use crate::error::Status;

/// The volume of the Secret with the operator's identity that signs for what goes on, and the end of the Secret's name.
const RESTARTS: &str = "restarts";

/// Where the container that signs has the identity for itself.
const OPERATOR: &str = "/operator";

/// The name of that container.
const SIGNER: &str = "job";

/// How often a node's pod is made again, beside once for each time that the job goes on. A pod may come up long before the others
/// have their images, and gives up after a while.
const TRIES: u32 = 6;

/// What a shell says of a program that cannot be run, or is not there.
const NO_PROGRAM: [u8; 2] = [126, 127];

/// What a process ends with that has panicked.
const PANICKED: u8 = 101;

/// Why the job ends when a server or the scheduler has died, if it does.
pub(super) fn why_it_ends(config: &Config) -> Option<&'static str> {
    if config.cluster.supervision.restarts == 0 {
        Some("cluster.restarts is 0")
    } else if config.checkpoint.every_steps == 0 {
        Some("checkpoint.every_steps is 0")
    } else if !config.checkpoint.recipients.is_empty() {
        Some("the key of checkpoint.recipients, which opens its checkpoints, is not in the cluster")
    } else {
        None
    }
}

/// How often the job may go on by itself.
fn restarts(config: &Config) -> u32 {
    if why_it_ends(config).is_some() { 0 } else { config.cluster.supervision.restarts }
}

/// What the operator of the job called `name` does so that it goes on by itself, as lines of the heading.
pub(super) fn preparation(config: &Config, name: &str) -> String {
    if let Some(why) = why_it_ends(config) {
        return format!("#\n# When a server or the scheduler dies, the job ends: {why}.\n");
    }
    let issue = super::super::issue(config);
    format!(
        "#\n# With the next two the job goes on by itself when a server or the scheduler has died, at most {} times: an identity of an\n\
         # operator's signs from which checkpoint. Whoever may read Secrets here, and the kubelet of the scheduler's machine, then has a key\n\
         # that commands the job and signs others in its name. Without the two the job ends then, and the scheduler's pod says so.\n#\n\
         #   {issue} --role operator --name {RESTARTS} --out identities/operator-{RESTARTS}\n\
         #   kubectl create secret generic {name}-{RESTARTS} $(for f in ca cert key; do echo \
         --from-file=identities/operator-{RESTARTS}/$f.pem; done)\n",
        restarts(config)
    )
}

/// Invariants 3 and 4: the fields of the Job of a role that say which of its pods are made again. `podFailurePolicy` wants a pod to be
/// gone before another takes its place (`podReplacementPolicy`).
pub(super) fn made_again(config: &Config, role: Role, count: u32) -> Map<String, Value> {
    let goes_on = restarts(config) > 0;
    let disrupted = |action: &str| json!({ "action": action, "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] });
    let ended = |action: &str, container: &str, with: &[u8]| {
        json!({
            "action": action,
            "onExitCodes": { "containerName": container, "operator": "In", "values": with },
        })
    };
    let mut fields = Map::new();
    let rules = match role {
        Role::Scheduler if !goes_on => {
            fields.insert("backoffLimit".into(), 0.into());
            return fields;
        }
        Role::Scheduler => {
            fields.insert("backoffLimit".into(), restarts(config).into());
            let lasting = [Status::Failed.number(), Status::Misconfigured.number(), PANICKED];
            let misconfigured = [Status::Misconfigured.number(), PANICKED];
            json!([
                disrupted("Count"),
                ended("FailJob", role.as_str(), &[&lasting[..], &NO_PROGRAM].concat()),
                ended("FailJob", SIGNER, &[&misconfigured[..], &NO_PROGRAM].concat()),
            ])
        }
        _ => {
            // A worker that is lost is the scheduler's to judge, and no reason to end others; a server that stays away is.
            let failed = if role == Role::Worker { count } else { 0 };
            fields.insert("backoffLimitPerIndex".into(), (TRIES + restarts(config)).into());
            fields.insert("maxFailedIndexes".into(), failed.into());
            let dismissed = if goes_on { "Ignore" } else { "FailIndex" };
            json!([disrupted("Ignore"), ended(dismissed, role.as_str(), &[Status::RunLost.number()])])
        }
    };
    fields.insert("podReplacementPolicy".into(), "Failed".into());
    fields.insert("podFailurePolicy".into(), json!({ "rules": rules }));
    fields
}

/// What the scheduler's pod has beside others.
pub(super) struct Signing {
    /// Its volumes.
    pub(super) volumes: Vec<Value>,
    /// Its container that signs, if the job may go on.
    pub(super) container: Option<Value>,
    /// Where the scheduler has its job.
    pub(super) mount: Value,
}

impl Job<'_> {
    /// Invariants 1 and 2.
    pub(super) fn signing(&self) -> Signing {
        let given = json!({ "name": "job", "configMap": { "name": format!("{}-job", self.name) } });
        let at_job = json!({ "name": "job", "mountPath": JOB, "readOnly": true });
        if restarts(self.config) == 0 {
            return Signing { volumes: vec![given], container: None, mount: at_job };
        }
        let secret = format!("{}-{RESTARTS}", self.name);
        let files = [CA_FILE, CERT_FILE, KEY_FILE];
        let items = files.map(|file| json!({ "key": file, "path": file, "mode": 0o440 }));
        let memory = json!({ "medium": "Memory", "sizeLimit": "1Mi" });
        let container = json!({
            "name": SIGNER, "image": self.options.image, "command": ["sh", "-c", script(&secret)],
            "volumeMounts": [
                at_job,
                { "name": "run", "mountPath": RUN, "readOnly": true },
                { "name": RESTARTS, "mountPath": format!("{SECRET}/{RESTARTS}"), "readOnly": true },
                { "name": "operator", "mountPath": OPERATOR },
                { "name": "signed", "mountPath": SIGNED },
            ],
            "securityContext": closed(), "resources": resources(&format!("{}Mi", self.memory)),
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        Signing {
            volumes: vec![
                given,
                json!({ "name": RESTARTS, "secret": { "secretName": secret, "optional": true, "items": items } }),
                json!({ "name": "operator", "emptyDir": memory }),
                json!({ "name": "signed", "emptyDir": memory }),
            ],
            container: Some(container),
            mount: json!({ "name": "signed", "mountPath": SIGNED, "readOnly": true }),
        }
    }

    /// Where the scheduler finds its job.
    pub(super) fn job_file(&self) -> String {
        let folder = if restarts(self.config) == 0 { JOB } else { SIGNED };
        format!("{folder}/cluster.job")
    }
}

/// What the container that signs does. The scheduler writes a line of metrics for each step before it writes a checkpoint. While another
/// scheduler holds the run directory, as a file server may say for a while of one whose machine is gone, it waits: what it waits for in
/// vain passes, which its status says. The scheduler itself would end the job.
fn script(secret: &str) -> String {
    let (key, own) = (format!("{SECRET}/{RESTARTS}"), format!("{OPERATOR}/{RESTARTS}"));
    let (failed, misconfigured) = (Status::Failed.number(), Status::Misconfigured.number());
    format!(
        r#"umask 077
# Not where there are no locks, or nothing that asks for one.
held() {{
  flock -n -s -E 75 {RUN}/lock true 2> /dev/null
  [ "$?" -eq 75 ]
}}
waited=0
while [ -f {RUN}/lock ] && held; do
  if [ "$waited" -ge 120 ]; then
    echo 'another scheduler has held the run directory for two minutes' >&2
    exit {failed}
  fi
  waited=$((waited + 5))
  sleep 5
done
written=
for step in {RUN}/checkpoint/step-*; do
  if [ -e "$step" ] || [ -L "$step" ]; then written=1; fi
done
if [ -z "$written" ] && [ ! -s {RUN}/metrics.jsonl ]; then
  cp {JOB}/cluster.job {SIGNED}/cluster.job
  exit
fi
ends() {{
  echo "the job does not go on by itself: $1" >&2
  if [ -n "$written" ]; then return; fi
  echo 'it had no checkpoint yet: to begin it again, move metrics.jsonl and all else that it left out of the claim, or take another claim' >&2
}}
echo 'the claim has a run that was begun: a server or the scheduler has died, or the manifests were applied again' >&2
if [ ! -e {key}/{KEY_FILE} ]; then
  ends 'nobody is here to sign from where (no Secret {secret})'
  exit {misconfigured}
fi
mkdir {own} && cp {key}/*.pem {own}/ || exit
testudo job --signed {JOB}/cluster.job --resume {RUN} --identity {own} --out {SIGNED}/cluster.job >&2
status=$?
rm -rf {own}
if [ "$status" -eq {misconfigured} ]; then ends 'there is nothing to go on from'; fi
exit "$status"
"#
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::tests::config;
    use super::*;

    const GOES_ON: &str = "checkpoint.every_steps=10";

    #[test]
    fn a_job_without_a_checkpoint_that_opens_here_does_not_go_on() {
        assert_eq!(why_it_ends(&config(&[GOES_ON])), None);
        let mut others = config(&[GOES_ON]);
        others.checkpoint.recipients = vec!["age1".to_owned()];
        for (config, why) in [
            (config(&[]), "checkpoint.every_steps"),
            (config(&[GOES_ON, "cluster.restarts=0"]), "cluster.restarts"),
            (others, "checkpoint.recipients"),
        ] {
            assert!(why_it_ends(&config).is_some_and(|said| said.contains(why)), "{why}");
            assert!(preparation(&config, "small").contains(why), "{why}");
            let scheduler = made_again(&config, Role::Scheduler, 1);
            assert_eq!(Value::from(scheduler), json!({ "backoffLimit": 0 }), "{why}");
            let worker = Value::from(made_again(&config, Role::Worker, 3));
            assert_eq!(worker["podFailurePolicy"]["rules"][1]["action"], "FailIndex", "{why}");
        }
    }

    /// What the container that signs makes of what it finds: how it ends, the job that it leaves, and what it says. The program is a
    /// stand-in, which ends with `signs`; so is the run's lock, which is `held` when it is asked for so often.
    fn signed(found: &[&str], signs: u8, held: u32) -> Option<(i32, String, String)> {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in ["job", "run-dir/checkpoint", "secret/restarts", "operator", "signed"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("job/cluster.job"), "the first").unwrap();
        for name in found {
            match (name.ends_with('/'), name.strip_suffix('@')) {
                (true, _) => std::fs::create_dir_all(at(name)).unwrap(),
                (_, Some(link)) => std::os::unix::fs::symlink("nowhere", at(link)).unwrap(),
                _ => std::fs::write(at(name), "something").unwrap(),
            }
        }
        let mut shell = script("small-restarts");
        for folder in [JOB, RUN, SECRET, OPERATOR, SIGNED] {
            shell = shell.replace(&format!("{folder}/"), &format!("{}/", at(&folder[1..]).display()));
            shell = shell.replace(&format!("{folder} "), &format!("{} ", at(&folder[1..]).display()));
        }
        let stand_in = "testudo() {
            echo \"$@\" > \"$place/asked\"
            cat \"${7}/key.pem\" > \"$place/key\"
            if [ \"$signs\" -eq 0 ]; then echo again > \"$9\"; fi
            return \"$signs\"
        }
        flock() {
            echo \"$*\" >> \"$place/asked-lock\"
            if [ \"$(wc -l < \"$place/asked-lock\")\" -le \"$held\" ]; then return 75; fi
        }
        sleep() { echo \"$1\" >> \"$place/slept\"; }\n";
        let mut command = Command::new("sh");
        command.args(["-c", &(stand_in.to_owned() + &shell)]);
        command.env("place", place.path()).env("signs", signs.to_string()).env("held", held.to_string());
        let said = command.output().ok()?;
        let read = |name: &str| std::fs::read_to_string(at(name)).unwrap_or_default();
        assert_eq!(std::fs::read_dir(at("operator")).unwrap().count(), 0, "no copy of the key stays");
        assert!(read("asked").is_empty() || read("key") == "something", "{shell}");
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        Some((said.status.code().unwrap(), read("signed/cluster.job"), words))
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_job_that_was_begun_is_signed_anew_or_ends() {
        const METRICS: &str = "run-dir/metrics.jsonl";
        const KEY: &str = "secret/restarts/key.pem";
        let ended = |found: &[&str], signs: u8| signed(found, signs, 0);
        // Nothing was done: no step, whatever a scheduler has made ready.
        for found in [&[KEY][..], &[], &["run-dir/summary.json"]] {
            let Some((status, job, said)) = ended(found, 1) else { return };
            assert_eq!((status, job.as_str(), said.as_str()), (0, "the first", ""), "{found:?}");
        }
        for begun in [METRICS, "run-dir/checkpoint/step-00000010/"] {
            let (status, job, said) = ended(&[begun, KEY], 0).unwrap();
            assert_eq!((status, job.as_str()), (0, "again\n"), "{begun}: {said}");
            let (status, job, said) = ended(&[begun], 0).unwrap();
            assert_eq!((status, job.as_str()), (2, ""), "{begun}: {said}");
            assert!(said.contains("nobody is here to sign from where (no Secret small-restarts)"), "{said}");
            for (signs, nothing) in [(2, true), (1, false)] {
                let (status, job, said) = ended(&[begun, KEY], signs).unwrap();
                assert_eq!((status, job.as_str()), (i32::from(signs), ""), "{begun}: {said}");
                assert_eq!(said.contains("there is nothing to go on from"), nothing, "{said}");
                let advised = said.contains("move metrics.jsonl and all else");
                assert_eq!(advised, nothing && begun == METRICS, "{begun}: {said}");
            }
        }
    }

    /// Whether a step was taken or not, what another scheduler holds is waited for, two minutes at most.
    #[test]
    fn a_run_directory_that_is_held_is_waited_for() {
        let (lock, begun) = ("run-dir/lock", ["run-dir/metrics.jsonl", "secret/restarts/key.pem"]);
        for found in [&[lock][..], &[lock, begun[0], begun[1]]] {
            let Some((status, job, said)) = signed(found, 0, 24) else { return };
            assert!(status == 0 && !job.is_empty(), "{found:?}: {said}");
            let (status, job, said) = signed(found, 0, 25).unwrap();
            assert_eq!((status, job.as_str()), (1, ""), "{found:?}: {said}");
            assert!(said.contains("another scheduler has held the run directory"), "{said}");
        }
    }

    /// A link that leads nowhere hides no checkpoint that comes after it.
    #[test]
    fn a_link_in_front_hides_no_checkpoint() {
        let found = ["run-dir/checkpoint/step-0@", "run-dir/checkpoint/step-00000010/"];
        let Some((status, job, said)) = signed(&found, 0, 0) else { return };
        assert_eq!((status, job.as_str()), (2, ""), "{said}");
        assert!(said.contains("nobody is here to sign"), "{said}");
    }
}

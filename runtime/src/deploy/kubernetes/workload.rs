//! The Indexed Job of a role, and its pods.

use serde_json::{Map, Value, json};
use testudo_transport::Role;
use testudo_transport::pki::{CA_FILE, CERT_FILE, KEY_FILE};

use super::super::identities;
use super::{CONFIG, DATA, IDENTITY, Job, RUN, SECRET, USER, lives};

impl Job<'_> {
    pub(super) fn role(&self, role: Role, count: u32) -> Value {
        let mut labels = self.labels();
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("app.kubernetes.io/component".into(), role.as_str().into());
        }
        let mut spec = Map::new();
        spec.insert("completionMode".into(), "Indexed".into());
        spec.insert("completions".into(), count.into());
        spec.insert("parallelism".into(), count.into());
        spec.append(&mut lives::made_again(self.config, role, count));
        spec.insert(
            "template".into(),
            json!({ "metadata": { "labels": labels }, "spec": self.pod(role, count) }),
        );
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": self.metadata(&format!("{}-{role}", self.name)),
            "spec": spec,
        })
    }

    /// Invariants 1 and 3.
    fn pod(&self, role: Role, count: u32) -> Value {
        let mut volumes = vec![
            json!({ "name": "config", "configMap": { "name": format!("{}-config", self.name) } }),
            json!({ "name": "identity", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }),
            json!({ "name": "run", "persistentVolumeClaim": { "claimName": format!("{}-run", self.name) } }),
        ];
        let mut mounts = vec![
            json!({ "name": "config", "mountPath": CONFIG, "readOnly": true }),
            json!({ "name": "identity", "mountPath": IDENTITY, "readOnly": true }),
            json!({ "name": "run", "mountPath": RUN }),
        ];
        let mut copied = vec![json!({ "name": "identity", "mountPath": IDENTITY })];
        let mut copies = String::from("umask 077");
        for of in identities(role) {
            volumes.push(self.secret(*of, count));
            copied.push(json!({
                "name": of.as_str(), "mountPath": format!("{SECRET}/{of}"), "readOnly": true,
                "subPathExpr": format!("{of}-$(INDEX)"),
            }));
            copies += &format!(" && mkdir {IDENTITY}/{of} && cp {SECRET}/{of}/*.pem {IDENTITY}/{of}/");
        }
        let mut signer = None;
        if role == Role::Scheduler {
            let signing = self.signing();
            volumes.extend(signing.volumes);
            mounts.push(signing.mount);
            signer = signing.container;
        }
        if matches!(role, Role::Worker | Role::Peer) {
            let claim = format!("{}-data", self.name);
            volumes.push(
                json!({ "name": "data", "persistentVolumeClaim": { "claimName": claim, "readOnly": true } }),
            );
            mounts.push(json!({ "name": "data", "mountPath": DATA, "readOnly": true }));
        }
        let index = json!([{
            "name": "INDEX",
            "valueFrom": { "fieldRef": { "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']" } },
        }]);
        let first = json!({
            "name": "identity", "image": self.options.image, "command": ["sh", "-c", copies], "env": index,
            "volumeMounts": copied, "securityContext": closed(), "resources": resources("16Mi"),
        });
        json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "subdomain": self.name,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": { "type": "RuntimeDefault" },
            },
            "initContainers": std::iter::once(first).chain(signer).collect::<Vec<Value>>(),
            "containers": [{
                "name": role.as_str(), "image": self.options.image, "command": self.command(role), "env": index,
                "volumeMounts": mounts, "securityContext": closed(),
                "resources": resources(&format!("{}Mi", self.memory)),
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }],
            "volumes": volumes,
        })
    }

    /// The Secret of a role, with a folder for each node.
    fn secret(&self, of: Role, count: u32) -> Value {
        let files = [CA_FILE, CERT_FILE, KEY_FILE];
        let items: Vec<Value> = (0..count)
            .flat_map(|index| {
                files.map(|file| {
                    json!({ "key": format!("{of}-{index}.{file}"), "path": format!("{of}-{index}/{file}"), "mode": 0o440 })
                })
            })
            .collect();
        json!({ "name": of.as_str(), "secret": { "secretName": format!("{}-{of}", self.name), "items": items } })
    }

    fn command(&self, role: Role) -> Vec<String> {
        let mut words = vec!["testudo", "node", "--role", role.as_str(), "--index", "$(INDEX)"];
        words.extend(["--config", "/config/cluster.toml", "--run-dir", RUN]);
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        for (option, of) in ["--identity", "--worker-identity"].iter().zip(identities(role)) {
            words.extend([(*option).to_owned(), format!("{IDENTITY}/{of}")]);
        }
        if role == Role::Scheduler {
            words.extend(["--job".to_owned(), self.job_file()]);
            words.extend(["--summary".to_owned(), format!("{RUN}/summary.json")]);
        }
        words
    }
}

/// As much as is asked for is all that there is.
pub(super) fn resources(memory: &str) -> Value {
    json!({ "requests": { "cpu": "1", "memory": memory }, "limits": { "memory": memory } })
}

/// Invariant 1 of [`super`], of a container.
pub(super) fn closed() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
    })
}

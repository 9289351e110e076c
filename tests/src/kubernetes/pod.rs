//! A pod as a process: its containers one after the other, each with what is mounted in it and nothing else of the pod's.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::policy::Failed;
use crate::files::text;
use crate::process::{self, Ended, Signal, Started};

/// Stand-ins for what the commands of a manifest's first lines call: objects become folders with a file for each key.
const STAND_INS: &str = r#"
set -e
umask 077
testudo() { "$program" "$@" > /dev/null 2>&1; }
kubectl() {
    [ "$1" = create ] && shift
    local kind=$1 name key file
    shift
    if [ "$kind" = secret ]; then shift; fi
    name=$1
    shift
    mkdir -p "$objects/$kind/$name"
    for file in "$@"; do
        file=${file#--from-file=}
        key=${file##*/}
        case $file in *=*)
            key=${file%%=*}
            file=${file#*=}
            ;;
        esac
        cp "$file" "$objects/$kind/$name/$key"
    done
}
"#;

/// Where objects and pods are.
#[derive(Debug)]
pub(super) struct Site {
    program: String,
    place: PathBuf,
    address: String,
    pods: AtomicUsize,
}

impl Site {
    pub(super) fn new(program: &str, place: &Path, test: u8) -> Site {
        // No process's number has more than 22 bits; 127.0.0.1 is everybody's.
        assert!((1..=3).contains(&test));
        let [_, high, middle, low] = (std::process::id() & 0x003f_ffff).to_be_bytes();
        let address = format!("127.{}.{middle}.{low}", (test << 6) + high);
        for folder in ["objects/claim", "pods", "bin"] {
            std::fs::create_dir_all(place.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(program, place.join("bin/testudo")).unwrap();
        Site { program: program.to_owned(), place: place.to_owned(), address, pods: AtomicUsize::new(0) }
    }

    /// Where pods find the scheduler.
    pub(super) fn scheduler(&self) -> String {
        format!("{}:4800", self.address)
    }

    pub(super) fn object(&self, kind: &str, name: &str) -> PathBuf {
        self.place.join("objects").join(kind).join(name)
    }

    /// Does in `folder` what the first lines of `manifests` say.
    pub(super) fn heed(&self, manifests: &str, folder: &Path) {
        let lines: Vec<&str> = manifests.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
        assert!(lines.len() >= 8, "{manifests}");
        let shell = format!("{STAND_INS}\n{}", lines.join("\n"));
        let mut command = Command::new("bash");
        command.args(["-c", &shell]).current_dir(folder).env("program", &self.program);
        let made = command.env("objects", self.place.join("objects")).output().unwrap();
        assert!(made.status.success(), "{shell}\n{}", String::from_utf8_lossy(&made.stderr));
    }

    /// A claim, with what is in it.
    pub(super) fn claim(&self, name: &str, holds: Option<&Path>) {
        let at = self.object("claim", name);
        match holds {
            Some(folder) => std::os::unix::fs::symlink(folder, at).unwrap(),
            None => std::fs::create_dir(at).unwrap(),
        }
    }

    /// A ConfigMap of the manifests. Pods have one address here, so servers have a port each; and where volumes are mounted in
    /// pods, there is nothing.
    pub(super) fn config_map(&self, document: &Value) {
        let folder = self.object("configmap", document["metadata"]["name"].as_str().unwrap());
        std::fs::create_dir_all(&folder).unwrap();
        for (key, value) in document["data"].as_object().unwrap() {
            let mut text = value.as_str().unwrap().replace("small-scheduler-0.small", &self.address);
            text = text.replace("0.0.0.0:4800", &self.scheduler());
            for server in 0..2 {
                let here = format!("{}:{}", self.address, 4801 + server);
                for role in ["server", "peer"] {
                    text = text.replace(&format!("small-{role}-{server}.small:4801"), &here);
                }
                text = text.replacen("0.0.0.0:4801", &here, 1);
            }
            assert!(!text.contains(".small"), "every name is known: {text}");
            let mounts = [("/data", "small-data"), ("/run-dir", "small-run")];
            let mounts = mounts.map(|(at, claim)| (at.to_owned(), self.object("claim", claim)));
            std::fs::write(folder.join(key), located(&text, &mounts)).unwrap();
        }
    }
}

/// A pod whose first containers have ended, and whose other one runs.
#[derive(Debug)]
pub(super) struct Pod {
    container: String,
    started: Started,
    ended: Option<ExitStatus>,
    said: String,
}

impl Pod {
    /// Makes the pod `index` of `job`.
    ///
    /// # Errors
    /// How one of its first containers failed, and what they said.
    pub(super) fn make(site: &Site, job: &str, index: usize, spec: &Value) -> Result<Pod, (Failed, String)> {
        let number = site.pods.fetch_add(1, Ordering::Relaxed);
        let folder = site.place.join(format!("pods/{number:04}-{job}-{index}"));
        std::fs::create_dir(&folder).unwrap();
        for volume in spec["volumes"].as_array().unwrap() {
            fill(site, &folder, volume);
        }
        let mut said = String::new();
        for container in spec["initContainers"].as_array().unwrap() {
            let ended = start(site, &folder, index, spec, container).wait();
            said += &ended.stderr;
            if !ended.status.success() {
                return Err((failed(container["name"].as_str().unwrap(), ended.status), said));
            }
        }
        let [container] = &spec["containers"].as_array().unwrap()[..] else { panic!("one container") };
        let started = start(site, &folder, index, spec, container);
        Ok(Pod { container: container["name"].as_str().unwrap().to_owned(), started, ended: None, said })
    }

    pub(super) fn signal(&self, signal: Signal) {
        self.started.signal(signal);
    }

    pub(super) fn has_ended(&mut self) -> bool {
        self.ended = self.ended.or_else(|| self.started.ended());
        self.ended.is_some()
    }

    /// How it failed, if it did, and what it said; it has ended.
    pub(super) fn failure(self) -> Option<(Failed, String)> {
        let Ended { status, stderr, .. } = self.started.wait();
        (!status.success()).then(|| (failed(&self.container, status), self.said + &stderr))
    }
}

fn failed(container: &str, status: ExitStatus) -> Failed {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap();
    Failed { container: container.to_owned(), status: u8::try_from(number).unwrap(), disrupted: false }
}

/// Puts a volume of its own into the pod's folder.
fn fill(site: &Site, folder: &Path, volume: &Value) {
    let at = folder.join(volume["name"].as_str().unwrap());
    if volume["emptyDir"].is_object() {
        std::fs::create_dir(&at).unwrap();
        std::fs::set_permissions(&at, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let Some(name) = volume["secret"]["secretName"].as_str() else { return };
    let secret = site.object("secret", name);
    std::fs::create_dir(&at).unwrap();
    if !secret.exists() {
        assert_eq!(volume["secret"]["optional"], true, "the pod waits for the Secret {name}");
        return;
    }
    for item in volume["secret"]["items"].as_array().unwrap() {
        let to = at.join(item["path"].as_str().unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(secret.join(item["key"].as_str().unwrap()), &to).unwrap();
        let mode = u32::try_from(item["mode"].as_u64().unwrap()).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(mode)).unwrap();
    }
}

/// Starts a container of the pod in `folder`.
fn start(site: &Site, folder: &Path, index: usize, spec: &Value, container: &Value) -> Started {
    let index = index.to_string();
    let source = |name: &Value| {
        let volume =
            spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == *name).unwrap();
        if let Some(map) = volume["configMap"]["name"].as_str() {
            return site.object("configmap", map);
        }
        match volume["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => site.object("claim", claim),
            None => folder.join(name.as_str().unwrap()),
        }
    };
    let mounts: Vec<(String, PathBuf)> = container["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| {
            let part = mount["subPathExpr"].as_str().unwrap_or_default().replace("$(INDEX)", &index);
            (mount["mountPath"].as_str().unwrap().to_owned(), source(&mount["name"]).join(part))
        })
        .collect();
    let words = container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let words: Vec<String> = words.map(|word| located(&word.replace("$(INDEX)", &index), &mounts)).collect();
    let program = if words[0] == "testudo" { site.program.as_str() } else { words[0].as_str() };
    let path = std::env::var("PATH").unwrap_or_default();
    let environment = [("PATH", format!("{}:{path}", text(&site.place.join("bin")))), ("INDEX", index)];
    let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    process::start_in(program, &words, folder, &environment)
}

/// `text` with the paths of what is mounted for those here. A path begins where no part of one stands before it.
fn located(text: &str, mounts: &[(String, PathBuf)]) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let (mut found, mut rest, mut before) = (String::new(), text, ' ');
    while let Some(c) = rest.chars().next() {
        let fits = |(at, _): &&(String, PathBuf)| {
            rest.strip_prefix(at.as_str()).is_some_and(|after| !after.starts_with(is_part))
        };
        match mounts.iter().filter(fits).max_by_key(|(at, _)| at.len()) {
            Some((at, here)) if !is_part(before) && before != '/' => {
                // A mount of the whole volume has no part of it.
                found += here.to_str().unwrap().trim_end_matches('/');
                rest = &rest[at.len()..];
                before = 'x';
            }
            _ => {
                found.push(c);
                rest = &rest[c.len_utf8()..];
                before = c;
            }
        }
    }
    found
}

//! A stand-in for Kubernetes: the pods of a manifest's Jobs as processes on this machine.
//!
//! 1. What is run, with what of the manifest's volumes, and what becomes of a pod that has failed is the manifest's word alone. What a
//!    pod needs from its operator is made by the commands in the manifest's first lines.
//! 2. Which pods are made again is decided as Kubernetes documents it for Jobs ([`policy`]); its delays pass ten times as fast.
//! 3. A pod is made only when its former one is gone (`podReplacementPolicy`).
//! 4. A pod's name is an address of loopback that no other test has: it follows from this process's number.

pub mod pod;
pub mod policy;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::files::{self, text};
use crate::process::{self, DEADLINE, Signal};
use crate::python;
use pod::{Pod, Site};
use policy::{Action, Failed, Verdict};

/// The first delay before a pod is made again, which doubles up to the second: a tenth of what Kubernetes has.
const DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(36)];

/// Between two looks at the pods.
const PAUSE: Duration = Duration::from_millis(5);

/// What the published schemas say of `manifests`: the documents, or why not.
///
/// # Errors
/// What the schemas have against them.
///
/// # Panics
/// When the interpreter does not start.
pub fn checked(python: &str, manifests: &str) -> Result<Vec<Value>, String> {
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

/// The documents of a kind.
pub fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

/// The objects that a job needs, and its Jobs.
#[derive(Debug)]
pub struct Cluster {
    site: Site,
    folder: PathBuf,
    program: String,
    jobs: Vec<Job>,
    begun: Instant,
    /// Pods that have failed, in order.
    pub failures: Vec<Failure>,
}

/// A pod that has failed.
#[derive(Debug)]
pub struct Failure {
    /// Its Job.
    pub job: String,
    /// Its index.
    pub index: usize,
    /// Which of its containers ended, and with what.
    pub failed: Failed,
    /// What its containers printed on standard error.
    pub said: String,
    /// What the Job's policy makes of it.
    pub action: Action,
    /// When, from the beginning on.
    pub after: Duration,
}

#[derive(Debug)]
struct Job {
    name: String,
    spec: Value,
    failures: u64,
    indexes: Vec<Index>,
    verdict: Option<Verdict>,
}

#[derive(Debug)]
struct Index {
    /// Failures that count.
    failures: u64,
    /// All of them, by which delays grow.
    ended: u32,
    made: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Due(Instant),
    Runs(Box<Pod>),
    Succeeded,
    Failed,
}

impl Cluster {
    /// Writes the manifests for the small job with `set` into a new folder of `place`, and makes what they say that they need. `test`
    /// tells apart the tests of one process. `None` without an interpreter that has kubernetes-validate.
    ///
    /// # Panics
    /// When any of that fails.
    #[must_use]
    pub fn prepare(program: &str, place: &Path, test: u8, set: &[&str]) -> Option<Cluster> {
        let python = python::with("kubernetes_validate, yaml")?;
        std::fs::set_permissions(place, PermissionsExt::from_mode(0o755)).unwrap();
        let (file, folder) = (files::write_job(place), place.join("deployed"));
        let set: Vec<&str> =
            ["limits.memory_mib=512"].iter().chain(set).flat_map(|one| ["--set", one]).collect();
        let deploy =
            ["deploy", text(&file), "--to", "kubernetes", "--image", "testudo", "--out", text(&folder)];
        let _ = process::run(program, &[&deploy[..], &set].concat(), Path::new("/no/mark")).succeeded();
        let manifests = std::fs::read_to_string(folder.join("job.yaml")).unwrap();
        let documents = checked(&python, &manifests).unwrap_or_else(|why| panic!("{why}"));
        let site = Site::new(program, place, test);
        site.heed(&manifests, &folder);
        site.claim("small-data", Some(&place.join("data")));
        for claim in of_kind(&documents, "PersistentVolumeClaim") {
            site.claim(claim["metadata"]["name"].as_str().unwrap(), None);
        }
        for map in of_kind(&documents, "ConfigMap") {
            site.config_map(map);
        }
        let jobs = of_kind(&documents, "Job").map(Job::new).collect();
        let (program, begun) = (program.to_owned(), Instant::now());
        Some(Cluster { site, folder, program, jobs, begun, failures: Vec::new() })
    }

    /// A Secret that its operator has not made.
    ///
    /// # Panics
    /// When it is not there.
    pub fn without_secret(&self, name: &str) {
        std::fs::remove_dir_all(self.site.object("secret", name)).unwrap();
    }

    /// The run directory: the claim of all pods.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.site.object("claim", "small-run")
    }

    /// The step of the newest whole checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<u64> {
        let entries = std::fs::read_dir(self.run().join("checkpoint")).ok()?.flatten();
        let whole = entries.filter(|entry| entry.path().join("manifest.json").exists());
        whole.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
    }

    /// How many pods of an index there have been.
    #[must_use]
    pub fn made(&self, job: &str, index: usize) -> usize {
        self.job(job).indexes[index].made
    }

    /// What has become of a Job, if it is over.
    #[must_use]
    pub fn verdict(&self, job: &str) -> Option<Verdict> {
        self.job(job).verdict
    }

    /// Sends the container of an index a signal, as soon as it runs.
    ///
    /// # Panics
    /// As [`until`](Cluster::until).
    pub fn signal(&mut self, job: &str, index: usize, signal: Signal) {
        self.until(&format!("{job}-{index} to run"), |cluster| {
            match &cluster.job(job).indexes[index].state {
                State::Runs(pod) => {
                    pod.signal(signal);
                    Some(())
                }
                State::Due(_) | State::Succeeded | State::Failed => None,
            }
        });
    }

    /// An operator's order to end the run.
    pub fn stop(&self) {
        let identity = self.folder.join("identities/operator-0");
        let order = ["stop", "--scheduler", &self.site.scheduler(), "--identity", text(&identity)];
        let config = self.folder.join("cluster.toml");
        let order = [&order[..], &["--config", text(&config)]].concat();
        let _ = process::run(&self.program, &order, Path::new("/no/mark")).succeeded();
    }

    /// Goes on until `ready` gives something.
    ///
    /// # Panics
    /// At the deadline, with how pods have failed.
    pub fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&Cluster) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.turn();
            if let Some(found) = ready(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "waited for {what} in vain: {:#?}", self.failures);
            std::thread::sleep(PAUSE);
        }
    }

    fn job(&self, name: &str) -> &Job {
        self.jobs.iter().find(|job| job.name == name).expect("a Job of that name")
    }

    /// One look at every pod.
    fn turn(&mut self) {
        for job in self.jobs.iter_mut().filter(|job| job.verdict.is_none()) {
            for index in 0..job.indexes.len() {
                let Some((failed, said)) = job.look(index, &self.site) else { continue };
                let action = job.failed(index, &failed);
                let (job, after) = (job.name.clone(), self.begun.elapsed());
                self.failures.push(Failure { job, index, failed, said, action, after });
            }
            job.judge();
        }
    }
}

impl Job {
    fn new(document: &Value) -> Job {
        let (name, spec) =
            (document["metadata"]["name"].as_str().unwrap().to_owned(), document["spec"].clone());
        let first = || Index { failures: 0, ended: 0, made: 0, state: State::Due(Instant::now()) };
        let indexes = (0..spec["completions"].as_u64().unwrap()).map(|_| first()).collect();
        Job { name, spec, failures: 0, indexes, verdict: None }
    }

    /// Makes the pod of an index if it is due, and says how it has failed, if it has.
    fn look(&mut self, index: usize, site: &Site) -> Option<(Failed, String)> {
        let at = &mut self.indexes[index];
        match &mut at.state {
            State::Due(due) if *due <= Instant::now() => {
                at.made += 1;
                match Pod::make(site, &self.name, index, &self.spec["template"]["spec"]) {
                    Ok(pod) => at.state = State::Runs(Box::new(pod)),
                    Err(failed) => return Some(failed),
                }
            }
            State::Runs(pod) => {
                if !pod.has_ended() {
                    return None;
                }
                if let State::Runs(pod) = std::mem::replace(&mut at.state, State::Succeeded) {
                    return pod.failure();
                }
            }
            State::Due(_) | State::Succeeded | State::Failed => {}
        }
        None
    }

    /// Applies the policy to a pod of an index that has failed.
    fn failed(&mut self, index: usize, failed: &Failed) -> Action {
        let action = policy::action(&self.spec, failed);
        let at = &mut self.indexes[index];
        at.ended += 1;
        let delay = DELAYS[0].saturating_mul(1 << (at.ended - 1).min(8)).min(DELAYS[1]);
        at.state = State::Due(Instant::now() + delay);
        match action {
            Action::FailJob => self.verdict = Some(Verdict::PodFailurePolicy),
            Action::FailIndex => at.state = State::Failed,
            Action::Ignore => {}
            Action::Count => {
                at.failures += 1;
                self.failures += 1;
            }
        }
        if let Some(most) = self.spec["backoffLimitPerIndex"].as_u64() {
            if at.failures > most {
                at.state = State::Failed;
            }
        } else if self.failures > self.spec["backoffLimit"].as_u64().unwrap_or(6) {
            self.verdict = self.verdict.or(Some(Verdict::BackoffLimitExceeded));
        }
        action
    }

    /// Whether the Job is over; then none of its pods runs any more.
    fn judge(&mut self) {
        let count = |is: fn(&State) -> bool| self.indexes.iter().filter(|index| is(&index.state)).count();
        let failed = count(|state| matches!(state, State::Failed));
        let done = failed + count(|state| matches!(state, State::Succeeded));
        let most = self.spec["maxFailedIndexes"].as_u64().map_or(usize::MAX, |most| most as usize);
        if self.verdict.is_none() && failed > most {
            self.verdict = Some(Verdict::MaxFailedIndexesExceeded);
        } else if self.verdict.is_none() && done == self.indexes.len() {
            self.verdict = Some(if failed == 0 { Verdict::Complete } else { Verdict::FailedIndexes });
        }
        if self.verdict.is_some() {
            // What runs is ended.
            self.indexes
                .iter_mut()
                .filter(|i| matches!(i.state, State::Runs(_)))
                .for_each(|i| i.state = State::Failed);
        }
    }
}

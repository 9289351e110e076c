//! A cluster whose nodes are started one by one, each with files of its own in a folder of its own, as on machines of their own.
//!
//! Root's nodes go on as `nobody`, who must be able to read what is renewed while they run: their folders are given to that user.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::files::{self, text};
use crate::process::{self, Ended, Started};

/// Debian's `nobody`.
const NOBODY: u32 = 65534;

/// Between two looks of the operator's: as often as one identity may connect, so that it may go on for as long as it takes.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The trust domain of such a cluster.
pub const TRUST_DOMAIN: &str = "example.org";

/// The nodes of the cluster, the scheduler first.
pub const NODES: [&str; 6] = ["scheduler/0", "server/0", "server/1", "worker/0", "worker/1", "worker/2"];

/// The cluster.
#[derive(Debug)]
pub struct Nodes {
    folder: tempfile::TempDir,
    program: &'static str,
    running: Vec<(&'static str, Started)>,
    scheduler: String,
}

impl Nodes {
    /// The data of a small job, and a folder with a cluster file for each node; `security` is what it says of identities. Who
    /// is given files, or has started, is yet to come.
    #[must_use]
    pub fn new(program: &'static str, security: &str) -> Nodes {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let template = std::fs::read_to_string(files::write_job(folder.path())).unwrap();
        let data = format!("path = \"{}\"", text(&folder.path().join("data")));
        let template = template
            .replace("name = \"small\"", &format!("name = \"small\"\ntrust_domain = \"{TRUST_DOMAIN}\""))
            .replace("workers = 2", "workers = 3")
            .replace("path = \"data\"", &data);
        let nodes = Nodes { folder, program, running: Vec::new(), scheduler: String::new() };
        for node in NODES.iter().chain(&["operator/alice", "actor/audit"]) {
            let home = nodes.home(node);
            std::fs::create_dir_all(home.join("run")).unwrap();
            let text = format!("{template}\n[audit]\ncountersign_every = 2\n\n{security}");
            std::fs::write(home.join("node.toml"), text).unwrap();
        }
        nodes
    }

    /// The folder of a node, of the operator `operator/alice`, or of the key `actor/audit`.
    #[must_use]
    pub fn home(&self, node: &str) -> PathBuf {
        self.folder.path().join(node.replace('/', "-"))
    }

    /// A place beside them.
    #[must_use]
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The SPIFFE ID of a node.
    #[must_use]
    pub fn id(node: &str) -> String {
        format!("spiffe://{TRUST_DOMAIN}/job/small/{node}")
    }

    /// Puts a file in a node's folder in the place of another, whole or not at all.
    pub fn put(&self, node: &str, name: &str, content: &str, mode: u32) {
        let (file, new) = (self.home(node).join(name), self.home(node).join("new"));
        std::fs::write(&new, content).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(mode)).unwrap();
        give(&new);
        std::fs::rename(new, file).unwrap();
    }

    /// The operator signs the job, with so many steps at most.
    pub fn sign_job(&self, steps: u64) {
        let (config, operator) = (self.home("scheduler/0").join("node.toml"), self.home("operator/alice"));
        let (steps, out) = (format!("training.max_steps={steps}"), self.at("small.job"));
        let job = ["job", text(&config), "--identity", text(&operator), "--set", &steps, "--out", text(&out)];
        let _ = self.testudo(&job).succeeded();
    }

    /// Starts every node; the identity is in its folder if `in_folders`, and where its cluster file says otherwise.
    pub fn start(&mut self, in_folders: bool) {
        for node in NODES {
            let mut started = self.begin(node, in_folders);
            if node == NODES[0] {
                let log = self.home(node).join("log");
                self.scheduler = started.until("the scheduler's address", |_| {
                    let log = std::fs::read_to_string(&log).ok()?;
                    Some(log.split_once("address=")?.1.split_whitespace().next()?.to_owned())
                });
            }
            self.running.push((node, started));
        }
    }

    /// Starts one node.
    #[must_use]
    pub fn begin(&self, node: &str, in_folders: bool) -> Started {
        let home = self.home(node);
        give(&home);
        let (role, index) = node.split_once('/').unwrap();
        let [config, run, log] = ["node.toml", "run", "log"].map(|name| text(&home.join(name)).to_owned());
        let mut arguments =
            vec!["node", "--role", role, "--index", index, "--config", &config, "--run-dir", &run];
        arguments.extend(["--log", &log]);
        let (audit, job) = (self.home("actor/audit"), self.at("small.job"));
        match role {
            "scheduler" => arguments.extend(["--audit-identity", text(&audit), "--job", text(&job)]),
            _ => arguments.extend(["--scheduler", &self.scheduler]),
        }
        if in_folders {
            arguments.extend(["--identity", text(&home)]);
        }
        give(&audit);
        process::start(self.program, &arguments, &home)
    }

    /// A node that runs.
    pub fn node(&mut self, node: &str) -> &mut Started {
        &mut self.running.iter_mut().find(|(name, _)| *name == node).unwrap().1
    }

    /// Takes a node out of those that are waited for in the end.
    #[must_use]
    pub fn take(&mut self, node: &str) -> Started {
        let at = self.running.iter().position(|(name, _)| *name == node).unwrap();
        self.running.remove(at).1
    }

    /// What a node has logged.
    #[must_use]
    pub fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.home(node).join("log")).unwrap_or_default()
    }

    /// Waits until the log of `node` has `part`.
    pub fn logged(&mut self, node: &str, part: &str) {
        let log = self.home(node).join("log");
        let has = |_: &Path| std::fs::read_to_string(&log).ok().filter(|log| log.contains(part)).map(|_| ());
        self.node(node).until(&format!("{part:?} in the log of {node}"), has);
    }

    /// The scheduler's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.home(NODES[0]).join("run")
    }

    /// How many steps are done.
    #[must_use]
    pub fn steps(&self) -> usize {
        process::steps(&self.run_dir())
    }

    /// Waits until `more` steps are done than now.
    pub fn train(&mut self, more: usize) {
        let (dir, wanted) = (self.run_dir(), self.steps() + more);
        self.node(NODES[0]).until("steps", |_| (process::steps(&dir) >= wanted).then_some(()));
    }

    /// The program with these arguments.
    #[must_use]
    pub fn testudo(&self, arguments: &[&str]) -> Ended {
        process::run(self.program, arguments, Path::new("/no/mark"))
    }

    /// A command of the operator's, who has the cluster file at hand.
    #[must_use]
    pub fn operate(&self, command: &str, options: &[&str]) -> Ended {
        let operator = self.home("operator/alice");
        let config = operator.join("node.toml");
        let fixed = [command, "--scheduler", &self.scheduler, "--identity", text(&operator)];
        self.testudo(&[&fixed[..], &["--config", text(&config)], options].concat())
    }

    /// The scheduler's report.
    #[must_use]
    pub fn status(&self) -> Value {
        self.operate("status", &["--json"]).succeeded().json()
    }

    /// Waits until the scheduler's report is as wanted.
    pub fn status_when(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let at = self.running.iter().position(|(name, _)| *name == NODES[0]).unwrap();
        let (_, mut scheduler) = self.running.remove(at);
        let seen = scheduler.until(what, |_| {
            // A scheduler shuts out who connects again and again.
            std::thread::sleep(BETWEEN_LOOKS);
            Some(self.status()).filter(|seen| wanted(seen))
        });
        self.running.insert(at, (NODES[0], scheduler));
        seen
    }

    /// Waits for the end of every node that runs, in order.
    pub fn ended(&mut self) -> Vec<(&'static str, Ended)> {
        std::mem::take(&mut self.running).into_iter().map(|(node, started)| (node, started.wait())).collect()
    }

    /// How the run ended, as the audit log has it.
    #[must_use]
    pub fn end(&self) -> Value {
        let run = self.run_dir();
        let shown = self.testudo(&["audit", "show", text(&run), "--kind", "end"]).succeeded().stdout;
        let at = shown.find('{').unwrap_or_else(|| panic!("no end: {shown}"));
        serde_json::from_str(shown[at..].trim()).unwrap()
    }
}

/// Gives what lies there to the user that root's nodes go on as.
fn give(path: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let found = std::fs::symlink_metadata(path).unwrap();
    if found.uid() == 0 {
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

//! The command line as real processes, under deadlines.
//!
//! 1. No test hangs: every wait has a deadline, after which everything that was started is killed and the test fails with
//!    what was printed.
//! 2. Processes are found by the run directory that stands in their command line, which no two tests share: a node whose
//!    launcher is gone is found all the same.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;

/// Far beyond what any command of a test takes, even on a machine with other work.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(5);

/// Has a run take nobody for dead who is only slow: its launcher tells the scheduler of a death at once. Options that come later win.
pub const UNHURRIED: [&str; 2] = ["--set", "cluster.heartbeat_timeout_ms=60000"];

/// What launchers of other systems set, and what would change what is printed or where: no test inherits it.
const ENVIRONMENT: [&str; 18] = [
    "DMLC_ROLE",
    "DMLC_NUM_WORKER",
    "DMLC_NUM_SERVER",
    "DMLC_PS_ROOT_URI",
    "DMLC_PS_ROOT_PORT",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_METRICS_EXPORTER",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_PROMETHEUS_PORT",
    "OTEL_SDK_DISABLED",
];

/// A command under way.
#[derive(Debug)]
pub struct Started {
    child: Child,
    /// Stands in the command line of everything that this command starts.
    mark: PathBuf,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    deadline: Instant,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

/// One node's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeProcess {
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub parent: u32,
    /// `scheduler`, `server` or `worker`.
    pub role: String,
    /// Its index.
    pub index: u32,
    /// Whether its index was given, as a launcher does.
    pub launched: bool,
}

/// Starts `program` with `arguments`. Whatever it starts in turn has `mark`, an absolute path, in its command line.
#[must_use]
pub fn start(program: &str, arguments: &[&str], mark: &Path) -> Started {
    start_in(program, arguments, mark, &[])
}

/// The same, with these variables in its environment.
#[must_use]
pub fn start_in(program: &str, arguments: &[&str], mark: &Path, environment: &[(&str, String)]) -> Started {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for variable in ENVIRONMENT {
        command.env_remove(variable);
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().expect("the program under test starts");
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    Started {
        child,
        mark: mark.to_owned(),
        stdout: stdout.map(read),
        stderr: stderr.map(read),
        deadline: Instant::now() + DEADLINE,
    }
}

/// Runs `program` to its end.
#[must_use]
pub fn run(program: &str, arguments: &[&str], mark: &Path) -> Ended {
    start(program, arguments, mark).wait()
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Started {
    /// The number of the command's own process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The same, with this long from now instead of [`DEADLINE`].
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Started {
        self.deadline = Instant::now() + patience;
        self
    }

    /// Sends the command itself a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// The node `role`/`index`, as soon as it runs.
    pub fn node(&mut self, role: &str, index: u32) -> NodeProcess {
        let what = format!("{role}/{index} to run");
        let find = |nodes: Vec<NodeProcess>| nodes.into_iter().find(|n| n.role == role && n.index == index);
        self.until(&what, |mark| find(nodes(mark)))
    }

    /// Waits until `ready` gives something; it is handed the mark.
    ///
    /// # Panics
    /// When the command ends first, or at the deadline; with what was printed.
    pub fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&Path) -> Option<T>) -> T {
        loop {
            // Asked first: what it did just before it ended is seen.
            let over = self.child.try_wait().expect("a child can be waited for");
            if let Some(found) = ready(&self.mark) {
                return found;
            }
            if over.is_some() || Instant::now() > self.deadline {
                let (stdout, stderr) = self.give_up();
                panic!("waited for {what} in vain ({over:?}); it printed:\n{stdout}\n{stderr}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Kills the process `pid`, which this command started, and waits until the command has heard of it: what it does about that, it
    /// does before anything that it is told from now on.
    ///
    /// # Panics
    /// As [`until`](Started::until).
    pub fn kill_child(&mut self, pid: u32) {
        send(pid, Signal::KILL);
        let entry = PathBuf::from(format!("/proc/{pid}"));
        self.until("a killed process to be missed", |_| (!entry.exists()).then_some(()));
    }

    /// Stops every process of the run whose directory is the mark, but for this command, and waits until all their threads stand.
    ///
    /// # Panics
    /// As [`until`](Started::until).
    pub fn hold_still(&mut self) {
        let own = self.pid();
        let all: Vec<u32> =
            nodes(&self.mark).into_iter().map(|node| node.pid).filter(|pid| *pid != own).collect();
        all.iter().for_each(|pid| send(*pid, Signal::STOP));
        self.until("the nodes to stand", |_| all.iter().all(|pid| stands(*pid)).then_some(()));
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When it cannot be asked, or has run beyond its deadline; with what was printed.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let over = self.child.try_wait().expect("a child can be waited for");
        if over.is_none() && Instant::now() > self.deadline {
            let (stdout, stderr) = self.give_up();
            panic!("it did not end within {DEADLINE:?}; it printed:\n{stdout}\n{stderr}");
        }
        over
    }

    /// Waits until the run has reported so many steps.
    ///
    /// # Panics
    /// As [`until`](Started::until).
    pub fn until_steps(&mut self, count: usize) {
        self.until(&format!("{count} steps"), |dir| (steps(dir) >= count).then_some(()));
    }

    /// Waits for the command's end.
    ///
    /// # Panics
    /// At the deadline, with what was printed.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                let (stdout, stderr) = self.printed();
                return Ended { status, stdout, stderr };
            }
            if Instant::now() > self.deadline {
                let (stdout, stderr) = self.give_up();
                panic!("it did not end within {DEADLINE:?}; it printed:\n{stdout}\n{stderr}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn printed(&mut self) -> (String, String) {
        let text = |from: Option<JoinHandle<String>>| from.and_then(|t| t.join().ok()).unwrap_or_default();
        (text(self.stdout.take()), text(self.stderr.take()))
    }

    fn give_up(&mut self) -> (String, String) {
        self.kill();
        self.printed()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Nodes that were started by hand are another command's.
        for node in nodes(&self.mark).into_iter().filter(|node| node.launched) {
            send(node.pid, Signal::KILL);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ended {
    /// The exit status, if no signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    #[must_use]
    pub fn killed_by(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The JSON object on the last line of standard output.
    ///
    /// # Panics
    /// When there is none; with what was printed.
    #[must_use]
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        match serde_json::from_str::<Value>(last) {
            Ok(value) if value.is_object() => value,
            _ => panic!("no JSON object on the last line: {self:#?}"),
        }
    }

    /// Asserts that it ended in order.
    ///
    /// # Panics
    /// When it did not; with what was printed.
    #[must_use]
    pub fn succeeded(self) -> Ended {
        assert!(self.status.success(), "{self:#?}");
        self
    }
}

/// The nodes of the run whose directory is `mark`, by role and index.
#[must_use]
pub fn nodes(mark: &Path) -> Vec<NodeProcess> {
    let mut found: Vec<NodeProcess> = processes(mark).into_iter().filter_map(as_node).collect();
    found.sort_by(|a, b| (&a.role, a.index).cmp(&(&b.role, b.index)));
    found
}

/// Asserts that nothing of the run whose directory is `mark` runs any more, or will not soon.
///
/// # Panics
/// When something still runs after a minute.
pub fn assert_nothing_left(mark: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = processes(mark);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(PAUSE);
    }
}

/// How many steps the run in `dir` has reported so far.
#[must_use]
pub fn steps(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("metrics.jsonl")).map_or(0, |text| text.matches('\n').count())
}

/// Sends a signal to the process `pid`; one that is gone gets none.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Every live process with `mark` in its command line, but for this one: number, parent, arguments.
fn processes(mark: &Path) -> Vec<(u32, u32, Vec<String>)> {
    let mark = mark.to_str().expect("a run directory's name is text");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            // What has just ended is no longer there, or has no command line any more.
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments = String::from_utf8_lossy(&arguments);
            let arguments: Vec<String> = arguments.split('\0').map(str::to_owned).collect();
            arguments.iter().any(|a| a.contains(mark)).then_some((pid, parent(pid)?, arguments))
        })
        .collect()
}

/// Whether every thread of a process is stopped.
fn stands(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .is_none_or(|state| state.trim().starts_with('T'))
    })
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn as_node((pid, parent, arguments): (u32, u32, Vec<String>)) -> Option<NodeProcess> {
    let after = |option: &str| {
        let at = arguments.iter().position(|a| a == option)?;
        arguments.get(at + 1).cloned()
    };
    // As the program has it, a node without an index is the first of its role.
    let given = after("--index");
    let launched = given.is_some();
    let index = given.map_or(Ok(0), |index| index.parse()).ok()?;
    Some(NodeProcess { pid, parent, role: after("--role")?, index, launched })
}

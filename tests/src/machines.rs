//! Machines for one test: network namespaces of this one, each with an address on one bridge, a home and terminals.
//!
//! Whoever makes them must be root, and the kernel must let it. Without that a test says so and does nothing; with
//! `TESTUDO_REQUIRE_NETNS=1` that is a failure.
//!
//! 1. What runs on them is the user `nobody`'s, as what a person starts is that person's; it sees its own machine's network alone.
//! 2. Names are this process's own. Whatever runs on the machines is ended, and they are removed, also when a test fails; what a killed
//!    test left is removed by the next.
//! 3. Every wait has a deadline.

use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::files::text;
use crate::process::{DEADLINE, send};

/// Debian's `nobody`.
const NOBODY: u32 = 65534;
/// What every namespace's name begins with.
const STEM: &str = "testudo";
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// The machines.
#[derive(Debug)]
pub struct Machines {
    stem: String,
    /// Name and address of each.
    machines: Vec<(String, String)>,
    folder: tempfile::TempDir,
    terminals: Vec<Terminal>,
}

/// A command that runs on a machine.
#[derive(Debug)]
struct Terminal {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Machines {
    /// Machines of these names and addresses (of one network of 256), each with a home that is empty, and with `program` in its
    /// path as `testudo`; `None` where there can be none.
    ///
    /// # Panics
    /// When there can be none and `TESTUDO_REQUIRE_NETNS=1`, or they cannot be set up.
    #[must_use]
    pub fn start(program: &str, machines: &[(&str, &str)]) -> Option<Machines> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stem = format!("{STEM}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        remove_abandoned();
        let machines: Vec<_> = machines.iter().map(|(name, at)| (name.to_string(), at.to_string())).collect();
        let folder = tempfile::tempdir().unwrap();
        let made = Machines { stem, machines, folder, terminals: Vec::new() };
        let possible = match rustix::process::geteuid().is_root() {
            true => ip(&["netns", "add", &made.namespace("bridge")]).and_then(|()| made.connect()),
            false => Err("it takes root".into()),
        };
        let required = std::env::var("TESTUDO_REQUIRE_NETNS").is_ok_and(|value| value == "1");
        if let Err(why) = possible {
            assert!(!required, "TESTUDO_REQUIRE_NETNS=1, but no network namespaces can be made: {why}");
            eprintln!("skipped: no network namespaces can be made: {why}");
            return None;
        }
        made.furnish(program);
        Some(made)
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.stem)
    }

    fn connect(&self) -> Result<(), String> {
        let bridge = self.namespace("bridge");
        ip(&["-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &bridge, "link", "set", "bridge", "up"])?;
        for (index, (name, address)) in self.machines.iter().enumerate() {
            let (machine, port) = (self.namespace(name), format!("port{index}"));
            ip(&["netns", "add", &machine])?;
            ip(&["-n", &machine, "link", "set", "lo", "up"])?;
            ip(&[
                "link", "add", "eth0", "netns", &machine, "type", "veth", "peer", "name", &port, "netns",
                &bridge,
            ])?;
            ip(&["-n", &bridge, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &machine, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", &machine, "link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// Homes, and programs: the one under test, and a stand-in for `scp`.
    fn furnish(&self, program: &str) {
        let root = self.folder.path();
        open_to_all(root);
        for (name, _) in &self.machines {
            let home = self.home(name);
            std::fs::create_dir(&home).unwrap();
            chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
            self.set_cwd(name, &home);
        }
        let programs = root.join("bin");
        std::fs::create_dir(&programs).unwrap();
        open_to_all(&programs);
        let testudo = programs.join("testudo");
        let reached = Command::new("setpriv").args(AS_NOBODY).args(["test", "-x", program]).status();
        match reached.is_ok_and(|status| status.success()) {
            true => symlink(program, &testudo).unwrap(),
            false => drop(std::fs::copy(program, &testudo).unwrap()),
        }
        let scp = programs.join("scp");
        std::fs::write(&scp, self.scp()).unwrap();
        open_to_all(&scp);
    }

    /// Copies between the machines' homes: `scp [-r] FILE... PLACE`, where a name on another machine is `ADDRESS:PATH`.
    fn scp(&self) -> String {
        let place = |(name, address): &(String, String)| {
            format!("{address}:*) printf '%s\\n' \"{}/${{1#*:}}\" ;;\n", text(&self.home(name)))
        };
        let places: String = self.machines.iter().map(place).collect();
        format!(
            "#!/bin/sh\nset -eu\nat() {{\ncase \"$1\" in\n{places}*) printf '%s\\n' \"$1\" ;;\nesac\n}}\n\
             how=\nif [ \"$1\" = -r ]; then how=-R; shift; fi\n\
             while [ $# -gt 2 ]; do last=; for last; do :; done; cp $how -- \"$(at \"$1\")\" \"$(at \"$last\")\"; shift; done\n\
             cp $how -- \"$(at \"$1\")\" \"$(at \"$2\")\"\n"
        )
    }

    fn home(&self, machine: &str) -> PathBuf {
        self.folder.path().join(machine)
    }

    fn set_cwd(&self, machine: &str, folder: &Path) {
        let file = self.cwd_file(machine);
        std::fs::write(&file, text(folder)).unwrap();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    }

    fn cwd_file(&self, machine: &str) -> PathBuf {
        self.folder.path().join(format!("{machine}.cwd"))
    }

    /// The folder in which the next command is given on `machine`: where the last one left its shell.
    #[must_use]
    pub fn cwd(&self, machine: &str) -> PathBuf {
        std::fs::read_to_string(self.cwd_file(machine)).unwrap().trim_end().into()
    }

    /// Writes a file on `machine`, as an editor would.
    pub fn write(&self, machine: &str, name: &str, content: &str) {
        let file = self.cwd(machine).join(name);
        std::fs::write(&file, content).unwrap();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    }

    /// Gives `commands` to a shell on `machine`, to their end.
    ///
    /// # Panics
    /// When they do not end.
    #[must_use]
    pub fn run(&mut self, machine: &str, commands: &str) -> (ExitStatus, String) {
        let leave = format!("{commands}\npwd > {}\n", text(&self.cwd_file(machine)));
        let terminal = self.start_in(machine, "the shell", &leave);
        self.terminals.push(terminal);
        self.ended("the shell")
    }

    /// Gives `commands` to a shell on `machine`, in a terminal of that name, and leaves them running.
    pub fn open(&mut self, machine: &str, terminal: &str, commands: &str) {
        let opened = self.start_in(machine, terminal, commands);
        self.terminals.push(opened);
    }

    fn start_in(&self, machine: &str, terminal: &str, commands: &str) -> Terminal {
        assert!(
            self.terminals.iter().all(|other| other.name != terminal),
            "{terminal}: what runs in it has not ended"
        );
        let output = self.folder.path().join("output").join(terminal.replace([' ', '/'], "-"));
        std::fs::create_dir_all(output.parent().unwrap()).unwrap();
        let file = File::create(&output).unwrap();
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", text(&self.folder.path().join("bin")));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace(machine), "setpriv"])
            .args(AS_NOBODY)
            .args(["env", "-i", &format!("PATH={path}"), &format!("HOME={}", text(&self.home(machine)))])
            .args(["LANG=C.UTF-8", "sh", "-e", "-c", commands])
            .current_dir(self.cwd(machine))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .expect("a shell starts");
        Terminal { name: terminal.to_owned(), child, output }
    }

    /// What a terminal has shown so far.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn shown(&self, terminal: &str) -> String {
        let found = self.terminals.iter().find(|found| found.name == terminal);
        let found = found.unwrap_or_else(|| panic!("no terminal is called {terminal}"));
        String::from_utf8_lossy(&std::fs::read(&found.output).unwrap()).into_owned()
    }

    /// What all terminals that are open have shown, for a message.
    #[must_use]
    pub fn all_shown(&self) -> String {
        let shown = self.terminals.iter().map(|t| format!("--- {}:\n{}\n", t.name, self.shown(&t.name)));
        shown.collect()
    }

    /// Waits until a terminal's output is as wanted.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn until(&self, terminal: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !wanted(&self.shown(terminal)) {
            assert!(Instant::now() < deadline, "{terminal} has not shown it:\n{}", self.all_shown());
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits for the end of what runs in a terminal, and closes it; how it ended, and all that it has shown.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn ended(&mut self, terminal: &str) -> (ExitStatus, String) {
        let at = self.terminals.iter().position(|found| found.name == terminal);
        let at = at.unwrap_or_else(|| panic!("no terminal is called {terminal}"));
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.terminals[at].child.try_wait().expect("a child can be waited for") {
                let shown = self.shown(terminal);
                self.terminals.remove(at);
                return (status, shown);
            }
            assert!(Instant::now() < deadline, "{terminal} does not end:\n{}", self.all_shown());
            std::thread::sleep(PAUSE);
        }
    }

    /// The terminals in which something runs, or has run since it was last asked for.
    #[must_use]
    pub fn open_terminals(&self) -> Vec<String> {
        self.terminals.iter().map(|terminal| terminal.name.clone()).collect()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for terminal in &mut self.terminals {
            let group = i32::try_from(terminal.child.id()).ok().and_then(Pid::from_raw);
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            let _ = terminal.child.wait();
        }
        for (name, _) in &self.machines {
            remove(&self.namespace(name));
        }
        remove(&self.namespace("bridge"));
    }
}

/// Options of `setpriv`: its command is `nobody`'s.
const AS_NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Ends what runs in a namespace, and removes it.
fn remove(namespace: &str) {
    let pids = Command::new("ip").args(["netns", "pids", namespace]).stderr(Stdio::null()).output();
    let pids = pids.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.trim().parse().ok()).for_each(|pid| send(pid, Signal::KILL));
    let _ = ip(&["netns", "del", namespace]);
}

/// Removes what tests have left that were killed.
fn remove_abandoned() {
    let Ok(found) = std::fs::read_dir("/run/netns") else { return };
    for namespace in found.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let mut parts = namespace.split('-');
        if let (Some(STEM), Some(pid)) = (parts.next(), parts.next())
            && pid.parse::<u32>().is_ok()
            && !Path::new("/proc").join(pid).exists()
        {
            remove(&namespace);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let ended = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let ended = ended.map_err(|why| format!("ip: {why}: install iproute2"))?;
    match ended.status.success() {
        true => Ok(()),
        false => {
            Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&ended.stderr).trim()))
        }
    }
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

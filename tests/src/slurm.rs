//! A Slurm of one node, for one test: Debian's controller, daemon and MUNGE, with a folder, a key and ports of their own.
//!
//! Without them a test says so and does nothing; with `TESTUDO_REQUIRE_SLURM=1` that is a failure. It uses no control groups, so it
//! runs where there are none.

use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::files::text;
use crate::process::DEADLINE;

/// Where ports of daemons are looked for, and among how many.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 6_000;

/// Where Debian has the daemons; they are in no user's path.
const SBIN: &str = "/usr/sbin";

/// The daemons; they end with this.
#[derive(Debug)]
pub struct Slurm {
    folder: PathBuf,
    daemons: Vec<Child>,
}

impl Slurm {
    /// Starts them in `folder`, and waits until the node is idle; `None` where there is no Slurm.
    ///
    /// # Panics
    /// When there is none and `TESTUDO_REQUIRE_SLURM=1`, or it does not come up.
    #[must_use]
    pub fn start(folder: &Path) -> Option<Slurm> {
        let found = ["munged", "slurmctld", "slurmd"].iter().all(|name| Path::new(SBIN).join(name).exists());
        let required = std::env::var("TESTUDO_REQUIRE_SLURM").is_ok_and(|value| value == "1");
        assert!(
            found || !required,
            "TESTUDO_REQUIRE_SLURM=1: install slurmctld, slurmd, slurm-client and munge"
        );
        if !found {
            eprintln!("skipped: needs Slurm and MUNGE");
            return None;
        }
        std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
        for name in ["state", "spool"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        let key = folder.join("munge.key");
        let random: Vec<u8> = (0..4_u64)
            .flat_map(|n| *blake3::hash(format!("{n}{}", text(folder)).as_bytes()).as_bytes())
            .collect();
        std::fs::write(&key, random).unwrap();
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(folder.join("slurm.conf"), settings(folder)).unwrap();
        let mut slurm = Slurm { folder: folder.to_owned(), daemons: Vec::new() };
        let file = |name: &str| format!("{}/{name}", text(folder));
        slurm.daemon(
            "munged",
            &[
                "--foreground",
                "--force",
                &format!("--key-file={}", text(&key)),
                &format!("--socket={}", file("munge.socket")),
                &format!("--pid-file={}", file("munge.pid")),
                &format!("--log-file={}", file("munge.log")),
                &format!("--seed-file={}", file("munge.seed")),
            ],
        );
        slurm.until("MUNGE", || folder.join("munge.socket").exists());
        slurm.daemon("slurmctld", &["-D"]);
        slurm.daemon("slurmd", &["-D", "-N", "localhost"]);
        slurm.until("an idle node", || {
            let said = slurm.run("sinfo", &["-h", "-o", "%T"]);
            String::from_utf8_lossy(&said.stdout).trim() == "idle"
        });
        Some(slurm)
    }

    /// Runs one of its commands to its end.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", self.folder.join("slurm.conf")).current_dir(&self.folder);
        command.stdin(Stdio::null()).output().expect("a command of Slurm's starts")
    }

    fn daemon(&mut self, name: &str, arguments: &[&str]) {
        let log = File::create(self.folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(Path::new(SBIN).join(name));
        command.args(arguments).env("SLURM_CONF", self.folder.join("slurm.conf")).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().expect("a daemon starts"));
    }

    fn until(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !ready() {
            let logs = ["munged.log", "slurmctld.log", "slurmd.log"];
            let said =
                || logs.map(|name| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default());
            assert!(Instant::now() < deadline, "waited for {what} in vain: {:#?}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = self.run("scancel", &["--state=RUNNING", "--full", "--signal=KILL", "--user", &user()]);
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A port that is free now, and is no other test's when it is taken in a moment: below those that systems give out by themselves, and
/// never the same.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Whoever runs the tests at the same time begins elsewhere.
    let first = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap_or_default();
    let free = |port: &u16| TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let mut ports = (0..PORTS).map(|_| FIRST_PORT + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS);
    ports.find(free).expect("a free port")
}

fn user() -> String {
    let said = Command::new("id").arg("-un").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}

fn settings(folder: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim().split('.').next().unwrap_or_default();
    let [control, node] = [(); 2].map(|()| port());
    let (folder, user) = (text(folder), user());
    // The scheduler's port follows from the job's number, and tests run side by side.
    format!(
        "ClusterName=test\nFirstJobId={control}\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser={user}\nSlurmdUser={user}\nAuthType=auth/munge\n\
         AuthInfo=socket={folder}/munge.socket\nCredType=cred/munge\nSlurmctldPort={control}\nSlurmdPort={node}\n\
         SlurmctldPidFile={folder}/slurmctld.pid\nSlurmdPidFile={folder}/slurmd.pid\nStateSaveLocation={folder}/state\n\
         SlurmdSpoolDir={folder}/spool\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
         JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\nMpiDefault=none\n\
         SwitchType=switch/none\nReturnToService=2\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\n\
         SlurmdParameters=config_overrides\nPropagateResourceLimits=NONE\nKillWait=5\n\
         NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=65536 State=UNKNOWN\n\
         PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP\n"
    )
}

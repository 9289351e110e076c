//! A real `sshd` on loopback, for one test: with a host key of its own, and open to one key made for it.
//!
//! Without `sshd` and `ssh` a test says so and does nothing; with `TESTUDO_REQUIRE_SSHD=1` that is a failure.
//!
//! 1. No port is fixed, and none is taken by another meanwhile: this process listens, and hands each connection to a daemon of
//!    its own (`sshd -i`).
//! 2. It lets in the user who runs the tests, and nobody by password.

use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::files::text;

/// Where Debian has it; it is in no user's path.
const SSHD: &str = "/usr/sbin/sshd";

/// The daemon, and what a client needs for it.
#[derive(Debug)]
pub struct Sshd {
    /// `USER@127.0.0.1:PORT`.
    pub host: String,
    /// The client's private key.
    pub key: PathBuf,
    /// A file of known hosts with its key.
    pub known_hosts: PathBuf,
    /// The same with another key.
    pub wrong_hosts: PathBuf,
    log: PathBuf,
}

/// Starts one in `folder`, whose files the user `client` is to reach; it ends with this process.
///
/// # Panics
/// When there is none and `TESTUDO_REQUIRE_SSHD=1`, or it cannot be set up.
#[must_use]
pub fn start(folder: &Path, client: Option<u32>) -> Option<Sshd> {
    let works = |program: &str| Command::new(program).arg("-V").stderr(Stdio::null()).status().is_ok();
    let found = Path::new(SSHD).exists() && works("ssh") && works("ssh-keygen");
    let required = std::env::var("TESTUDO_REQUIRE_SSHD").is_ok_and(|value| value == "1");
    assert!(found || !required, "TESTUDO_REQUIRE_SSHD=1: install OpenSSH's server");
    if !found {
        eprintln!("skipped: needs OpenSSH's server and client");
        return None;
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| folder.join(name);
    for name in ["host", "other", "client"] {
        let path = at(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", text(&path)]).status();
        assert!(made.is_ok_and(|status| status.success()), "ssh-keygen");
    }
    if client.is_some() {
        std::os::unix::fs::chown(at("client"), client, client).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        // Where the daemon shuts away what speaks before login.
        std::fs::create_dir_all("/run/sshd").unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let known = |name: &str| {
        let key = std::fs::read_to_string(at(&format!("{name}.pub"))).unwrap();
        let file = at(&format!("known-{name}"));
        std::fs::write(&file, format!("[127.0.0.1]:{port} {key}")).unwrap();
        file
    };
    let (known_hosts, wrong_hosts) = (known("host"), known("other"));
    let mut settings = String::new();
    for (name, value) in [
        ("HostKey", text(&at("host"))),
        ("AuthorizedKeysFile", text(&at("client.pub"))),
        ("PidFile", "none"),
        ("StrictModes", "no"),
        ("UsePAM", "no"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        ("PermitRootLogin", "prohibit-password"),
        ("LogLevel", "VERBOSE"),
    ] {
        writeln!(settings, "{name} {value}").unwrap();
    }
    std::fs::write(at("sshd_config"), settings).unwrap();
    let (log, config) = (at("sshd.log"), at("sshd_config"));
    let errors = File::create(&log).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let stream = OwnedFd::from(stream);
            let (Ok(input), Ok(errors)) = (stream.try_clone(), errors.try_clone()) else { return };
            let mut daemon = Command::new(SSHD);
            daemon.args(["-i", "-e", "-f", text(&config)]).stdin(input).stdout(stream).stderr(errors);
            if let Ok(mut child) = daemon.spawn() {
                std::thread::spawn(move || child.wait());
            }
        }
    });
    let user = Command::new("id").arg("-un").output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap();
    let host = format!("{}@127.0.0.1:{port}", user.trim());
    Some(Sshd { host, key: at("client"), known_hosts, wrong_hosts, log })
}

impl Sshd {
    /// How often somebody was let in.
    ///
    /// # Panics
    /// When the daemon's log cannot be read.
    #[must_use]
    pub fn logins(&self) -> usize {
        std::fs::read_to_string(&self.log).unwrap().matches("Accepted publickey").count()
    }
}

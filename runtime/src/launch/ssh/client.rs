//! The system's OpenSSH client, told everything that decides whom it talks to.
//!
//! 1. A host is connected to only if the key that it shows is in the file of known hosts, loopback and other ports included; nothing
//!    in a cluster file turns that off, and no file of the user's or the system's settings is read, so nothing there does.
//! 2. It asks for nothing: no password, no passphrase, no confirmation.
//! 3. It forwards nothing: no agent, no display, no port; and it shares no connection that another program has made.
//! 4. A host that is gone ends it within half a minute.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::config::{Host, Ssh};
use crate::error::Failure;

/// What holds for every connection (invariants 1 to 4); see `ssh_config(5)`.
const OPTIONS: [&str; 17] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "VerifyHostKeyDNS=no",
    "KnownHostsCommand=none",
    "UpdateHostKeys=no",
    "ControlMaster=no",
    "ControlPath=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "EscapeChar=none",
    "LogLevel=ERROR",
    "ConnectTimeout=20",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=4",
];

/// The client, and what it is told beside [`OPTIONS`].
#[derive(Clone, Debug)]
pub(super) struct Client {
    program: PathBuf,
    settings: Vec<OsString>,
}

impl Client {
    /// Finds it, and looks at the files that it will need.
    pub(super) fn new(ssh: &Ssh) -> Result<Client, Failure> {
        let mut settings = Vec::new();
        if let Some(path) = &ssh.known_hosts {
            let name = plain(path, "ssh.known_hosts")?;
            readable(path, "ssh.known_hosts")?;
            settings.extend(option(&format!("UserKnownHostsFile=\"{name}\"")));
            settings.extend(option("GlobalKnownHostsFile=/dev/null"));
        }
        if let Some(path) = &ssh.key {
            let name = plain(path, "ssh.key")?;
            readable(path, "ssh.key")?;
            settings.extend(option("IdentitiesOnly=yes"));
            settings.extend(option(&format!("IdentityFile=\"{name}\"")));
        }
        Ok(Client { program: find()?, settings })
    }

    /// Its file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Runs `command`, which the shell of `host`'s user interprets.
    pub(super) fn command(&self, host: &Host, command: &str) -> Command {
        let mut client = Command::new(&self.program);
        client.args(arguments(&self.settings, host, command));
        client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        client.kill_on_drop(true).process_group(0);
        client
    }
}

fn arguments(settings: &[OsString], host: &Host, command: &str) -> Vec<OsString> {
    // No file of settings, no terminal.
    let mut all: Vec<OsString> = ["-F", "none", "-T"].map(OsString::from).into();
    all.extend(OPTIONS.iter().flat_map(|text| option(text)));
    all.extend_from_slice(settings);
    if let Some(port) = host.port {
        all.extend(["-p".into(), port.to_string().into()]);
    }
    if let Some(user) = &host.user {
        all.extend(["-l".into(), user.into()]);
    }
    all.extend(["--".into(), host.name.as_str().into(), command.into()]);
    all
}

fn option(text: &str) -> [OsString; 2] {
    ["-o".into(), text.into()]
}

/// A path in which the client finds nothing to replace: it knows quotes, tokens and variables in its settings.
fn plain<'a>(path: &'a Path, key: &str) -> Result<&'a str, Failure> {
    let good = |c: char| !c.is_control() && !matches!(c, '"' | '\\' | '%' | '$');
    path.to_str().filter(|text| text.chars().all(good)).ok_or_else(|| {
        Failure::misconfigured(format!(
            "{key}, {}: `ssh` would read the quotes, backslashes, % or $ in this path as something else: put the file elsewhere",
            path.display()
        ))
    })
}

/// Told now rather than as a refusal of every host.
fn readable(path: &Path, key: &str) -> Result<(), Failure> {
    let opened = File::open(path).map(|_| ());
    opened.map_err(|why| {
        Failure::misconfigured(format!(
            "{key}, {}: {why}; the user that the run goes on as must be able to read it",
            path.display()
        ))
    })
}

fn find() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    let found = places.filter(|folder| folder.is_absolute()).map(|folder| folder.join("ssh"));
    found.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        Failure::misconfigured("there is no `ssh` here: install OpenSSH's client (Debian: openssh-client)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 to 3: what the client itself makes of it, given a user's settings that would undo them.
    #[test]
    fn the_client_takes_these_settings_and_no_others() {
        let Ok(program) = find() else { return };
        let folder = tempfile::tempdir().unwrap();
        let known = folder.path().join("known hosts");
        std::fs::write(&known, "").unwrap();
        let ssh = Ssh {
            hosts: vec![],
            key: Some(known.clone()),
            known_hosts: Some(known.clone()),
            folder: ".testudo".into(),
            program: None,
            data: None,
            shared: false,
        };
        let client = Client::new(&ssh).unwrap();
        let host = Host::parse("ada@[::1]:2222").unwrap();
        let mut all = arguments(&client.settings, &host, "true");
        all.insert(0, "-G".into());
        let said = std::process::Command::new(program).args(all).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        for expected in [
            "user ada",
            "hostname ::1",
            "port 2222",
            "batchmode yes",
            "stricthostkeychecking true",
            "nohostauthenticationforlocalhost no",
            "verifyhostkeydns false",
            "updatehostkeys false",
            "forwardagent no",
            "identitiesonly yes",
            &format!("userknownhostsfile {}", known.display()),
            "globalknownhostsfile /dev/null",
        ] {
            let holds = said.lines().any(|line| line.replace('"', "") == expected);
            assert!(holds, "{expected} is not in:\n{said}");
        }
        assert!(!said.contains("proxyjump") && !said.contains("localforward"), "{said}");
    }

    #[test]
    fn paths_that_the_client_would_change_are_refused() {
        for path in ["/a/%h", "/a/${HOME}/b", "/a\"b", "/a\\b", "/a\nb"] {
            assert!(plain(Path::new(path), "ssh.key").is_err(), "{path}");
        }
        assert!(plain(Path::new("/home/ada lovelace/.ssh/id"), "ssh.key").is_ok());
    }
}

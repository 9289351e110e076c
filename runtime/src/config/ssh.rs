//! `[ssh]`: hosts, and what is where on them.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::check;

/// Who starts servers and workers for `testudo run`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Launcher {
    /// They are processes on this machine.
    #[default]
    Local,
    /// They are on the hosts of [`Ssh`].
    Ssh,
}

/// `[ssh]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ssh {
    /// The hosts, as they are written: see [`Host::parse`]. At least one.
    pub hosts: Vec<String>,
    /// The private key that opens them; `None` for the agent's, or those that `ssh` tries by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The file of the hosts' public keys; `None` for the user's and the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_hosts: Option<PathBuf>,
    /// Where nodes have their folders, on the hosts.
    pub folder: String,
    /// The program there; `None` for a copy of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The data there; `None` for the same path as here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Whether the hosts reach the run directory under the same path.
    pub shared: bool,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Whom to log in as; `None` for the user's own name.
    pub user: Option<String>,
    /// Its name or address, without brackets.
    pub name: String,
    /// The port; `None` for 22.
    pub port: Option<u16>,
}

impl Host {
    /// Reads `HOST`, `USER@HOST`, `HOST:PORT` or `USER@HOST:PORT`; an IPv6 address before a port stands in brackets. Nothing that
    /// passes begins with a dash or has a character that a shell would interpret.
    ///
    /// # Errors
    /// A phrase that says what is wrong.
    pub fn parse(text: &str) -> Result<Host, String> {
        let (user, rest) = match text.split_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        if let Some(user) = user {
            check::login(user)?;
        }
        let bare = rest.parse::<IpAddr>().is_ok();
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, digits)) if !bare && (!name.contains(':') || name.ends_with(']')) => {
                let port = digits.parse::<u16>().ok().filter(|port| *port != 0);
                let port = port.filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
                (name, Some(port.ok_or_else(|| format!("{digits:?} is no port"))?))
            }
            _ => (rest, None),
        };
        let name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_ok() => inside,
            Some(inside) => return Err(format!("{inside:?} is no IPv6 address")),
            None => name,
        };
        if name.parse::<IpAddr>().is_err() {
            check::host_name(name)?;
        }
        Ok(Host { user: user.map(str::to_owned), name: name.to_owned(), port })
    }
}

impl Ssh {
    /// The hosts, in their order.
    #[must_use]
    pub fn parsed(&self) -> Vec<Host> {
        self.hosts.iter().filter_map(|text| Host::parse(text).ok()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::super::tests::MINIMAL;
    use super::*;
    use crate::config::{Config, ConfigErrors};

    /// Every key of the section.
    pub(in super::super) const FILE: &str = "
[cluster]
launcher = \"ssh\"
[ssh]
hosts = [\"ada@node1:2222\", \"::1\"]
key = \"id_ed25519\"
known_hosts = \"known_hosts\"
folder = \"/srv/testudo\"
program = \"/usr/local/bin/testudo\"
data = \"/srv/mnist\"
shared = true
[model]
kind = \"mlp\"
inputs = 784
classes = 10
[data]
kind = \"mnist\"
path = \"data/mnist\"
";

    fn parse(set: &[&str]) -> Result<Config, ConfigErrors> {
        Config::parse(MINIMAL, Path::new("/cluster/mnist.toml"), set)
    }

    #[test]
    fn hosts_are_named_and_checkpoints_need_a_folder_that_all_reach() {
        let hosts = "ssh.hosts=[\"h\"]";
        for (set, why) in [
            (vec!["cluster.launcher=ssh"], "`ssh.hosts` is missing"),
            (vec!["cluster.launcher=ssh", "ssh.hosts=[]", "ssh.shared=true"], "names none"),
            (vec!["cluster.launcher=ssh", hosts], "`ssh.shared = true`"),
            (vec!["cluster.launcher=ssh", "ssh.hosts=[\"-oProxyCommand=x\"]"], "ssh.hosts[0]"),
            (vec![hosts], "means nothing with cluster.launcher"),
        ] {
            let found = parse(&set).unwrap_err().to_string();
            assert!(found.contains(why), "{set:?}: {found}");
        }
        let set = ["cluster.launcher=ssh", hosts, "checkpoint.at_end=false"];
        let ssh = parse(&set).unwrap().ssh.unwrap();
        assert_eq!((ssh.folder.as_str(), ssh.shared, ssh.parsed().len()), (".testudo", false, 1));
    }

    #[test]
    fn hosts_are_what_they_say_and_nothing_a_shell_or_ssh_would_take_for_more() {
        let host = |user: Option<&str>, name: &str, port| Host {
            user: user.map(str::to_owned),
            name: name.to_owned(),
            port,
        };
        for (text, expected) in [
            ("node1", host(None, "node1", None)),
            ("ada@10.0.0.2", host(Some("ada"), "10.0.0.2", None)),
            ("10.0.0.2:2222", host(None, "10.0.0.2", Some(2222))),
            ("ada@gpu-1.example.org:22", host(Some("ada"), "gpu-1.example.org", Some(22))),
            ("fe80::1", host(None, "fe80::1", None)),
            ("[2001:db8::1]:2200", host(None, "2001:db8::1", Some(2200))),
            ("ada@[2001:db8::1]", host(Some("ada"), "2001:db8::1", None)),
        ] {
            assert_eq!(Host::parse(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "@",
            "a@",
            "@a",
            "-oProxyCommand=x",
            "a@-x",
            "-l@a",
            "a b",
            "a;b",
            "$(x)@a",
            "a:0",
            "a:",
            "a:x",
            "a:+1",
            "a:70000",
            "[a]:1",
            "a@b@c",
            "10.0.0.256",
            "[10.0.0.1]:2",
            "a\nb",
            "a_b/c",
        ] {
            assert!(Host::parse(bad).is_err(), "{bad:?}");
        }
    }
}

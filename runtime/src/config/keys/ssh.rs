//! The rows about the hosts that `testudo run` starts nodes on.

use super::super::check;
use super::{Absent, Applies, Base, Key, Rule};

const SSH: Option<Applies> = Some(Applies { selector: "cluster.launcher", kinds: &["ssh"] });
const HOST: Rule =
    Rule::Text { check: check::ssh_host, allowed: "HOST, USER@HOST, HOST:PORT or USER@HOST:PORT" };
const REMOTE_PATH: Rule =
    Rule::Text { check: check::remote_path, allowed: "a path of `a-z A-Z 0-9 . _ - /` without `..`" };

/// In the order of the reference page.
pub(super) static KEYS: &[Key] = &[
    Key {
        path: "ssh.hosts",
        rule: Rule::List { each: &HOST, most: 4096 },
        absent: Absent::Required,
        applies: SSH,
        doc: "The hosts, by name or IP address. Server N and worker N run on the host at place N modulo their number.",
    },
    Key {
        path: "ssh.key",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("the agent's keys, and those in `~/.ssh` that `ssh` tries by itself"),
        applies: SSH,
        doc: "The private key that opens the hosts, without a passphrase or known to the agent.",
    },
    Key {
        path: "ssh.known_hosts",
        rule: Rule::Path { base: Base::File },
        absent: Absent::Unset("`~/.ssh/known_hosts` and `/etc/ssh/ssh_known_hosts`"),
        applies: SSH,
        doc: "The file of the hosts' public keys. A host whose key is not in it, or is another there, is not connected to; no setting changes that.",
    },
    Key {
        path: "ssh.folder",
        rule: REMOTE_PATH,
        absent: Absent::Is("\".testudo\""),
        applies: SSH,
        doc: "Folder on the hosts in which each node gets one of its own, for its owner alone; a relative path starts at the home of the user there.",
    },
    Key {
        path: "ssh.program",
        rule: REMOTE_PATH,
        absent: Absent::Unset(
            "this program is copied to `ssh.folder`, unless it is there, with the same SHA-256",
        ),
        applies: SSH,
        doc: "Path of `testudo` on the hosts, of the same release as this one.",
    },
    Key {
        path: "ssh.data",
        rule: REMOTE_PATH,
        absent: Absent::Unset("the same path as here"),
        applies: SSH,
        doc: "Where the data of `data.path` is on the hosts; it must be the same, byte for byte.",
    },
    Key {
        path: "ssh.shared",
        rule: Rule::Boolean,
        absent: Absent::Is("false"),
        applies: SSH,
        doc: "Whether the hosts reach the run directory (`output.dir`) under the same path as this machine. Training checkpoints need that: without it, set `checkpoint.every_steps = 0` and `checkpoint.at_end = false`; the final model comes over the connection.",
    },
];

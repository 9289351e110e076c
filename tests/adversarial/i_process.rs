//! Class I, process: key files that others could read or replace, cluster files with keys that nobody knows, root, and secrets
//! where they do not belong. A node that is started on any of the first ends before it binds an address, and says how to mend it.
//!
//! The attacker is another user of the machine. What processes keep of their privileges is in `tests/tests/least_privilege.rs`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use testudo_tests::files::text;
use testudo_tests::live::Live;
use testudo_tests::process::{self, Ended};
use testudo_transport::Role;

use crate::PROGRAM;
use crate::artefacts::contents;

/// A good identity of worker 0 and a good cluster file, in a folder of their own.
struct Place {
    folder: tempfile::TempDir,
    scheduler: String,
}

impl Place {
    fn new(live: &Live) -> Place {
        let folder = tempfile::tempdir().unwrap();
        live.site.identity(Role::Worker, "0").save(&folder.path().join("id")).unwrap();
        std::fs::copy(live.folder().join("small.toml"), folder.path().join("small.toml")).unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        Place { folder, scheduler: live.node(Role::Scheduler, 0).address.to_string() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts worker 0 on it. It is refused at once, with these words, has bound nothing and changed nothing.
    fn refused(&self, words: &[&str]) {
        let before = contents(self.folder.path());
        let (config, identity, run) = (self.at("small.toml"), self.at("id"), self.at("run"));
        let arguments = ["node", "--role", "worker", "--index", "0", "--config", text(&config), "--identity"];
        let more = [text(&identity), "--run-dir", text(&run), "--scheduler", &self.scheduler];
        let ended: Ended = process::run(PROGRAM, &[&arguments[..], &more].concat(), self.folder.path());
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        for word in words {
            assert!(ended.stderr.contains(word), "{word:?} is missing: {ended:#?}");
        }
        assert!(!ended.stdout.contains("listening") && !ended.stderr.contains("panicked"), "{ended:#?}");
        assert_eq!(contents(self.folder.path()), before, "it left something behind");
    }
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn class_i_process() {
    let mut live = Live::start(PROGRAM);
    for (what, bits) in [("group", 0o640), ("everybody", 0o604), ("a writing group", 0o620)] {
        live.case(&format!("a key that {what} may use"), |live| {
            let place = Place::new(live);
            mode(&place.at("id/key.pem"), bits);
            place.refused(&["key.pem", "chmod 600"]);
        });
    }
    live.case("a key that is a link", |live| {
        let place = Place::new(live);
        std::fs::rename(place.at("id/key.pem"), place.at("moved.pem")).unwrap();
        symlink(place.at("moved.pem"), place.at("id/key.pem")).unwrap();
        place.refused(&["key.pem", "symbolic link"]);
    });
    live.case("a key that is a folder", |live| {
        let place = Place::new(live);
        std::fs::remove_file(place.at("id/key.pem")).unwrap();
        std::fs::create_dir(place.at("id/key.pem")).unwrap();
        place.refused(&["key.pem"]);
    });
    live.case("another's key", |live| {
        let place = Place::new(live);
        live.site.identity(Role::Worker, "1").save(&place.at("other")).unwrap();
        std::fs::copy(place.at("other/key.pem"), place.at("id/key.pem")).unwrap();
        place.refused(&["key"]);
    });
    for (key, words) in [("sead = 3", "training.sead"), ("\"security.off\" = true", "unknown key")] {
        live.case(&format!("the unknown config key {key}"), |live| {
            let place = Place::new(live);
            let text = std::fs::read_to_string(place.at("small.toml")).unwrap();
            std::fs::write(place.at("small.toml"), text.replace("seed = 3", &format!("seed = 3\n{key}")))
                .unwrap();
            place.refused(&[words]);
        });
    }
    live.case("root", |live| {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not checked: these nodes were not started as root");
            return;
        }
        for node in live.nodes() {
            let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
            let of =
                |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
            assert!(!of("Uid:").split_whitespace().any(|id| id == "0"), "{}: {status}", node.id.short());
            assert!(!of("Gid:").split_whitespace().any(|id| id == "0"), "{}: {status}", node.id.short());
            assert_eq!(of("CapEff:"), "0000000000000000", "{}", node.id.short());
        }
    });
    live.case("secrets in logs, arguments and environments", |live| {
        let mut secrets = Vec::new();
        for (path, bytes) in contents(live.folder()) {
            if path.file_name().is_some_and(|name| name == "key.pem" || name == "ca-key.pem") {
                let text = String::from_utf8(bytes).unwrap();
                let lines = text.lines().filter(|line| !line.starts_with("-----"));
                secrets.extend(lines.filter(|line| line.len() >= 40).map(str::to_owned));
            }
        }
        assert!(secrets.len() >= 6, "there are keys to look for");
        let mut said: Vec<(String, Vec<u8>)> = Vec::new();
        for node in live.nodes() {
            said.push((format!("{}'s log", node.id.short()), node.log().into_bytes()));
            for file in ["cmdline", "environ"] {
                let bytes = std::fs::read(format!("/proc/{}/{file}", node.pid())).unwrap_or_default();
                said.push((format!("{}'s {file}", node.id.short()), bytes));
            }
        }
        for (role, index) in [(Role::Scheduler, 0), (Role::Server, 0), (Role::Server, 1)] {
            for (path, bytes) in contents(&live.run_dir(role, index)) {
                said.push((path.display().to_string(), bytes));
            }
        }
        for (place, bytes) in said {
            for secret in &secrets {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "a line of a key is in {place}");
            }
        }
    });
    live.finish();
}

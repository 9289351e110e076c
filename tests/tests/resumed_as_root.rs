//! Runs that root resumes in a directory that is another user's by now: what that user wrote into its cluster file since opens
//! nothing that the user could not open. Invariants are those of `runtime/src/cli/naming.rs`.
//!
//! All of this takes root to set up: for others the tests say so and check nothing.

#[path = "common/privilege.rs"]
mod privilege;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use privilege::{NOBODY, RECORD, Roots, is_root, owners};
use testudo_tests::files::text;
use testudo_tests::process::{Ended, assert_nothing_left};
use testudo_transport::pki::{write_public, write_secret};

/// A run of root's that is over, its directory `nobody`'s, and how to go on with it.
struct Former {
    place: Roots,
    dir: PathBuf,
    steps: std::cell::Cell<u64>,
}

impl Former {
    fn new(options: &[&str]) -> Former {
        let place = Roots::new();
        let dir = place.path("run");
        let _ = place.run("run", &[&["--set", "training.max_steps=3"], options].concat()).succeeded();
        assert_eq!(owners(&dir), [NOBODY]);
        Former { place, dir, steps: 3.into() }
    }

    /// Goes on for some steps more.
    fn resume(&self, options: &[&str]) -> Ended {
        let steps = self.steps.get() + 2;
        let set = format!("training.max_steps={steps}");
        let fixed = ["run", "--resume", text(&self.dir), "--json", "--quiet", "--set", &set];
        let ended = self.place.testudo(&[&fixed[..], options].concat());
        if ended.status.success() {
            assert_eq!(ended.json()["steps"], steps);
            self.steps.set(steps);
        }
        ended
    }

    /// What `nobody` does to the cluster file.
    fn edit(&self, key: &str, value: &Path) {
        let file = self.dir.join("cluster.toml");
        let text_of = std::fs::read_to_string(&file).unwrap();
        let is_key = |line: &str| line.split(" = ").next() == Some(key);
        let (mut section, mut done) = (String::new(), false);
        let mut lines: Vec<String> = Vec::new();
        for line in text_of.lines() {
            if line.starts_with('[') {
                section = line.to_owned();
            }
            let of_key = match key {
                "path" => "[data]",
                "client_key" => "[telemetry]",
                _ => "[checkpoint]",
            };
            if section == of_key && is_key(line) {
                continue;
            }
            lines.push(line.to_owned());
            if line == of_key {
                lines.push(format!("{key} = \"{}\"", text(value)));
                done = true;
            }
        }
        assert!(done, "{text_of}");
        std::fs::write(&file, lines.join("\n")).unwrap();
        chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    }

    fn refused(&self, ended: &Ended, key: &str, path: &Path) {
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        let advice = format!("--set {key}={}", path.display());
        assert!(ended.stderr.contains(&advice) && ended.stderr.contains("user nobody's"), "{ended:#?}");
        assert_nothing_left(&self.dir);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        std::fs::copy(entry.path(), &to).unwrap();
        std::fs::set_permissions(to, PermissionsExt::from_mode(0o600)).unwrap();
    }
}

/// Data that only root may read, in a folder that only root may enter: root named it when the run began, so it need not again.
/// What the run's user names is opened as that user, unless root says the same.
#[test]
fn data_that_a_runs_user_names_is_opened_as_that_user() {
    if !is_root() {
        return;
    }
    let run = Former::new(&[]);
    for _ in 0..2 {
        let _ = run.resume(&[]).succeeded();
        assert_eq!(owners(&run.dir), [NOBODY]);
    }
    let other = run.place.path("roots-other-data");
    copy(&run.place.path("data"), &other);
    let set = format!("data.path={}", text(&other));
    run.edit("path", &other);
    run.refused(&run.resume(&[]), "data.path", &other);
    run.refused(&run.resume(&["--allow-root"]), "data.path", &other);
    let _ = run.resume(&["--set", &set]).succeeded();
    // What root said of one run's resumption is not written down: the directory is not root's to write in.
    run.refused(&run.resume(&[]), "data.path", &other);

    // A record that is not root's, of another run, or none.
    let (record, kept) = (run.dir.join(RECORD), run.place.path("kept"));
    std::fs::rename(&record, &kept).unwrap();
    let forged = std::fs::read_to_string(&kept).unwrap().replace(text(&run.place.path("data")), text(&other));
    assert!(forged.contains(text(&other)), "{forged}");
    std::fs::write(&record, &forged).unwrap();
    chown(&record, Some(NOBODY), Some(NOBODY)).unwrap();
    run.refused(&run.resume(&[]), "data.path", &other);
    std::fs::remove_file(&record).unwrap();
    run.edit("path", &run.place.path("data"));
    run.refused(&run.resume(&[]), "data.path", &run.place.path("data"));
    std::fs::rename(&kept, &record).unwrap();
    let _ = run.resume(&[]).succeeded();

    // And what that user may read needs nobody's word: a folder that everybody may enter.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let public = open.path().join("data");
    copy(&other, &public);
    for entry in std::fs::read_dir(&public).unwrap() {
        std::fs::set_permissions(entry.unwrap().path(), PermissionsExt::from_mode(0o644)).unwrap();
    }
    run.edit("path", &public);
    let _ = run.resume(&[]).succeeded();
}

/// A key of root's signs no model of a user's who wrote its path into the run directory.
#[test]
fn a_key_of_roots_signs_for_nobody_who_names_it() {
    if !is_root() {
        return;
    }
    let run = Former::new(&[]);
    let (key, public) = (run.place.path("release.pem"), run.place.path("release.pub.pem"));
    let _ = run.place.testudo(&["sign", "--new-key", text(&key)]).succeeded();
    let model = run.dir.join("checkpoint/final");
    let verify = ["verify", text(&model), "--public-key", text(&public), "--json"];
    run.edit("sign_key", &key);
    run.refused(&run.resume(&[]), "checkpoint.sign_key", &key);
    let judged = run.place.testudo(&verify);
    assert!(judged.code() == Some(1) && judged.json()["good"] == false, "{judged:?}");
    let set = format!("checkpoint.sign_key={}", text(&key));
    let _ = run.resume(&["--set", &set]).succeeded();
    assert_eq!(run.place.testudo(&verify).succeeded().json()["good"], true);
    assert_eq!(std::fs::metadata(&key).unwrap().uid(), 0);

    // Root's word when the run begins holds when it goes on.
    let run = Former::new(&["--set", &set]);
    let _ = run.resume(&[]).succeeded();
}

/// What shows a collector who speaks may be root's alone, in the first start and in every later one; what the run's user names is opened
/// as that user.
#[test]
fn a_collectors_key_that_only_root_may_read_is_read_again() {
    if !is_root() {
        return;
    }
    let keys = tempfile::tempdir().unwrap();
    std::fs::set_permissions(keys.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let at = |name: &str| keys.path().join(name);
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    for (name, pem) in [("ca.pem", made.cert.pem()), ("client.pem", made.cert.pem())] {
        write_public(&at(name), pem.as_bytes()).unwrap();
    }
    for name in ["client.key", "other.key"] {
        write_secret(&at(name), made.signing_key.serialize_pem().as_bytes()).unwrap();
    }
    // Nobody listens there, and nobody needs to.
    let set = |key: &str, value: &str| format!("telemetry.{key}={value}");
    let settings = [
        set("endpoint", "https://127.0.0.1:9"),
        set("certificate", text(&at("ca.pem"))),
        set("client_certificate", text(&at("client.pem"))),
        set("client_key", text(&at("client.key"))),
    ];
    let options: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    let run = Former::new(&options);
    let _ = run.resume(&[]).succeeded();
    run.edit("client_key", &at("other.key"));
    run.refused(&run.resume(&[]), "telemetry.client_key", &at("other.key"));
    let other = set("client_key", text(&at("other.key")));
    let _ = run.resume(&["--set", &other]).succeeded();
    assert_eq!(owners(&run.dir), [NOBODY]);
}

/// A cluster file that is a link to what only root may read says nothing of it.
#[test]
fn a_cluster_file_that_leads_elsewhere_is_read_as_that_user() {
    if !is_root() {
        return;
    }
    let run = Former::new(&[]);
    let (secret, file) = (run.place.path("secret.toml"), run.dir.join("cluster.toml"));
    std::fs::write(&secret, "[job]\npassphrase = \"of-root\"\n").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&secret, &file).unwrap();
    let ended = run.resume(&[]);
    assert!(ended.code() == Some(2) && ended.stderr.contains("Permission denied"), "{ended:#?}");
    assert!(!ended.stderr.contains("passphrase"), "{ended:#?}");
}

//! What lies in a directory: cluster files, identities, authorities, signed jobs and private keys in odd places.
//!
//! Links are not followed, and no more than [`ENTRIES_MOST`] entries down to [`DEPTH_MOST`] levels are looked at.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use testudo_transport::pki::{CA_KEY_FILE, is_identity_file};

use super::{Report, shown};

/// Levels below the directory named: a run's identities lie two below it.
const DEPTH_MOST: usize = 4;
/// Entries looked at: a run of a thousand nodes has some four thousand.
const ENTRIES_MOST: usize = 20_000;
/// Bytes of a file that tell what it is.
const HEAD: u64 = 64 << 10;
/// Sections that make a TOML file a cluster file.
const SECTIONS: [&str; 4] = ["[job]", "[cluster]", "[model]", "[training]"];

/// What was found, each list sorted.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) clusters: Vec<PathBuf>,
    /// Folders with a node's certificate or key.
    pub(super) identities: Vec<PathBuf>,
    /// Folders with a CA's key.
    pub(super) authorities: Vec<PathBuf>,
    pub(super) jobs: Vec<PathBuf>,
    /// Private keys outside identities.
    pub(super) stray_keys: Vec<PathBuf>,
}

impl Contents {
    pub(super) fn is_empty(&self) -> bool {
        let lists = [&self.clusters, &self.identities, &self.authorities, &self.jobs, &self.stray_keys];
        lists.iter().all(|list| list.is_empty())
    }
}

/// Looks through `path`, which may be a cluster file itself.
pub(super) fn walk(report: &mut Report, path: &Path) -> Contents {
    let mut contents = Contents::default();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            let mut left = ENTRIES_MOST;
            enter(report, path, 0, &mut left, &mut contents);
            if left == 0 {
                let what = format!("has more than {ENTRIES_MOST} entries; the rest was not looked at");
                report.warning(shown(path), what, "name a directory further down");
            }
        }
        Ok(_) => contents.clusters.push(path.to_owned()),
        Err(why) => report.problem(shown(path), format!("cannot be read: {why}"), "name what is there"),
    }
    contents
}

fn enter(report: &mut Report, folder: &Path, depth: usize, left: &mut usize, contents: &mut Contents) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(why) => {
            let fix = "make it readable for the user who runs the node";
            return report.problem(shown(folder), format!("cannot be read: {why}"), fix);
        }
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries.flatten() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        paths.push(entry.path());
    }
    paths.sort();
    let named = |name: &str| paths.iter().any(|path| path.file_name().is_some_and(|n| n == name));
    let is_identity = paths.iter().any(|path| name_of(path).is_some_and(is_identity_file));
    if is_identity {
        contents.identities.push(folder.to_owned());
    }
    if named(CA_KEY_FILE) {
        contents.authorities.push(folder.to_owned());
    }
    for path in paths {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            if depth < DEPTH_MOST {
                enter(report, &path, depth + 1, left, contents);
            }
        } else if found.is_file() {
            file(path, is_identity, contents);
        }
    }
}

fn file(path: PathBuf, in_identity: bool, contents: &mut Contents) {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let name = name_of(&path).unwrap_or_default();
    match ending {
        "toml" if is_cluster_file(&path, name) => contents.clusters.push(path),
        "job" | "signed" => contents.jobs.push(path),
        "pem" | "key" => {
            let known = name == CA_KEY_FILE || in_identity && is_identity_file(name);
            if !known && head(&path).contains("PRIVATE KEY-----") {
                contents.stray_keys.push(path);
            }
        }
        _ => {}
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

fn is_cluster_file(path: &Path, name: &str) -> bool {
    let text = head(path);
    name == "cluster.toml" || text.lines().any(|line| SECTIONS.contains(&line.trim()))
}

pub(super) fn head(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut bytes));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

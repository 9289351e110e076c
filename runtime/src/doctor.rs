//! What is wrong with a directory of a cluster, and with this machine: everything at once, each with its mend.
//!
//! 1. Nothing is changed, nothing is started, and no secret is shown.
//! 2. Every problem is named in one go: no check hides another, as far as files can be read at all.
//! 3. What is looked through is bounded (`folder`), so that any directory may be named.

mod cluster;
mod folder;
mod identity;
mod job;
mod machine;
mod revocation;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It will not work, or is not safe.
    Problem,
    /// It may be meant.
    Warning,
    /// As it should be.
    Good,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where: a file, perhaps with line and column, or a part of the machine.
    pub place: String,
    /// What.
    pub what: String,
    /// What to do about it; empty where all is good.
    pub fix: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings there are of `severity`.
    #[must_use]
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    fn add(&mut self, severity: Severity, place: impl ToString, what: impl ToString, fix: impl ToString) {
        let (place, what, fix) = (place.to_string(), what.to_string(), fix.to_string());
        self.findings.push(Finding { severity, place, what, fix });
    }

    fn problem(&mut self, place: impl ToString, what: impl ToString, fix: impl ToString) {
        self.add(Severity::Problem, place, what, fix);
    }

    fn warning(&mut self, place: impl ToString, what: impl ToString, fix: impl ToString) {
        self.add(Severity::Warning, place, what, fix);
    }

    fn good(&mut self, place: impl ToString, what: impl ToString) {
        self.add(Severity::Good, place, what, "");
    }
}

/// Looks at this machine and, if one is named, at `path`: a cluster's directory, an identity's, a run's, or a cluster file.
#[must_use]
pub fn examine(path: Option<&Path>) -> Report {
    let mut report = Report::default();
    if let Some(path) = path {
        files(&mut report, path);
    }
    machine::look(&mut report, path.unwrap_or(Path::new(".")));
    report
}

fn files(report: &mut Report, path: &Path) {
    let found = folder::walk(report, path);
    if found.is_empty() {
        let what = "holds no cluster file, no identity and no signed job";
        report.problem(path.display(), what, "name the directory of a cluster, of an identity or of a run");
        return;
    }
    let now = SystemTime::now();
    let mut identities = Vec::new();
    for folder in &found.identities {
        identities.extend(identity::look(report, &identity::Files::in_folder(folder), now));
    }
    identity::compare(report, &identities);
    for folder in &found.authorities {
        identity::authority(report, folder, &found.identities);
        revocation::authority(report, folder, now);
    }
    for key in &found.stray_keys {
        let what = "holds a private key";
        let fix = "keep a node's key in its identity folder, as `key.pem`, and nowhere else";
        report.warning(key.display(), what, fix);
        identity::privacy(report, key, identity::Kind::Secret);
    }
    let clusters: Vec<cluster::Read> =
        found.clusters.iter().filter_map(|file| cluster::look(report, file, &mut identities, now)).collect();
    for file in &found.jobs {
        job::look(report, file, &clusters, &identities);
    }
}

/// The lines of a file's path for a person.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// A path for a command line.
pub(crate) fn quoted(path: &Path) -> String {
    let text = shown(path);
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+=@:,".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Where an identity lies, and whose it is.
#[derive(Debug)]
struct Found {
    place: PathBuf,
    id: testudo_transport::SpiffeId,
    files: identity::Files,
}

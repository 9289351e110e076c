//! What a process may have here: open files, threads, room on the disk.

use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::PLACE;
use crate::doctor::{Report, shown};

/// Files that a node of a large cluster may have open: a descriptor for each connection is not needed, its log, data and
/// checkpoint files are.
const OPEN_FILES: u64 = 256;
/// Threads and processes of its user: a run on one machine has some ten processes, with a thread for each processor.
const THREADS: u64 = 1024;
/// Room for a few checkpoints and logs of a small model.
const FREE_BYTES: u64 = 1 << 30;

/// What was found out; a limit that is not there is `None`.
#[derive(Debug, Default)]
pub(super) struct Readings {
    files: Option<u64>,
    threads: Option<u64>,
    /// The largest file that may be written, in bytes.
    file_size: Option<u64>,
    /// Free on the disk.
    free: Option<u64>,
}

pub(super) fn read(path: &Path) -> Readings {
    let disk = rustix::fs::statvfs(path).ok();
    Readings {
        files: getrlimit(Resource::Nofile).current,
        threads: getrlimit(Resource::Nproc).current,
        file_size: getrlimit(Resource::Fsize).current,
        free: disk.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
    }
}

pub(super) fn judge(report: &mut Report, path: &Path, readings: &Readings) {
    let mut good = Vec::new();
    match readings.files {
        Some(most) if most < OPEN_FILES => {
            let what = format!("a process may have {most} files open");
            report.warning(PLACE, what, format!("ulimit -n {OPEN_FILES} or more"));
        }
        most => good.push(format!("{} open files", told(most))),
    }
    match readings.threads {
        Some(most) if most < THREADS => {
            let what = format!("a user may have {most} threads, all processes together");
            report.warning(PLACE, what, format!("ulimit -u {THREADS} or more"));
        }
        most => good.push(format!("{} threads of a user", told(most))),
    }
    if let Some(most) = readings.file_size {
        let what = format!("a file may have {} KiB: checkpoints and logs beyond that are lost", most >> 10);
        report.warning(PLACE, what, "ulimit -f unlimited");
    }
    report.good(PLACE, format!("limits: {}", good.join(", ")));
    match readings.free {
        Some(free) if free < FREE_BYTES => {
            let what = format!("{} MiB are free on its disk", free >> 20);
            report.warning(shown(path), what, "make room: logs and checkpoints of a run go there");
        }
        Some(free) => report.good(shown(path), format!("{} GiB are free on its disk", free >> 30)),
        None => {}
    }
}

fn told(most: Option<u64>) -> String {
    most.map_or_else(|| "any number of".into(), |most| most.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Severity};

    fn warned(readings: &Readings) -> Vec<Finding> {
        let mut report = Report::default();
        judge(&mut report, Path::new("runs"), readings);
        report.findings.retain(|finding| finding.severity == Severity::Warning);
        report.findings
    }

    #[test]
    fn limits_that_end_a_run_are_warned_of_with_what_to_say() {
        let tight =
            Readings { files: Some(64), threads: Some(100), file_size: Some(1 << 20), free: Some(5 << 20) };
        let all = warned(&tight);
        let told: Vec<&str> = all.iter().map(|finding| finding.fix.as_str()).collect();
        let [files, threads, size, disk] = &*told else { panic!("{all:?}") };
        assert!(files.starts_with("ulimit -n") && threads.starts_with("ulimit -u"), "{all:?}");
        assert!(size.starts_with("ulimit -f") && disk.starts_with("make room"), "{all:?}");
        let wide =
            Readings { files: Some(OPEN_FILES), threads: None, file_size: None, free: Some(FREE_BYTES) };
        assert!(warned(&wide).is_empty() && warned(&Readings::default()).is_empty());
    }
}

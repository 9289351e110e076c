//! This machine: who runs here, and what its kernel gives.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use testudo_transport::TransportConfig;

use super::{Report, shown};
use crate::process::paths::Needs;
use crate::process::{Protections, calls, confine};

/// Files that a node of a large cluster may have open: a descriptor for each connection is not needed, its log, data and
/// checkpoint files are.
const OPEN_FILES: u64 = 256;
/// Room for a few checkpoints and logs of a small model.
const FREE_BYTES: u64 = 1 << 30;

/// Looks at the machine, and at the disk that `path` is on.
pub(super) fn look(report: &mut Report, path: &Path) {
    let place = "this machine";
    report.good(place, format!("arithmetic: {}", testudo_kernels::instruction_set()));
    protections(report);
    buffers(report);
    if let Some(most) = getrlimit(Resource::Nofile).current
        && most < OPEN_FILES
    {
        let what = format!("a process may have {most} files open");
        report.warning(place, what, format!("ulimit -n {OPEN_FILES} or more"));
    }
    if let Ok(disk) = rustix::fs::statvfs(path) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < FREE_BYTES {
            let what = format!("{} MiB are free on its disk", free >> 20);
            report.warning(shown(path), what, "make room: logs and checkpoints of a run go there");
        }
    }
}

/// This command gave away what every command does; the rest is tried out on a thread of its own, which alone is confined.
fn protections(report: &mut Report) {
    let tried = std::thread::spawn(|| {
        confine(calls::Role::Node, Needs::default());
        Protections::read()
    });
    let Ok(found) = tried.join() else { return };
    let whole = found.no_new_privs && found.no_core_dumps && found.closed && found.seccomp;
    match whole && found.landlock.is_some() {
        true => report.good("this machine", found),
        false => {
            let fix = "run on a Linux kernel that has these, in a container that lets them be asked for";
            report.warning("this machine", found, fix);
        }
    }
}

/// The kernel caps what a process may ask for its sockets.
fn buffers(report: &mut Report) {
    let wanted = TransportConfig::DEFAULT_SOCKET_BUFFER as u64;
    for (name, file) in [
        ("net.core.rmem_max", "/proc/sys/net/core/rmem_max"),
        ("net.core.wmem_max", "/proc/sys/net/core/wmem_max"),
    ] {
        let Some(most) = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok())
        else {
            continue;
        };
        if most < wanted {
            let what = format!("{name} is {most}: bursts of datagrams will be lost, which costs speed");
            report.warning("this machine", what, format!("sysctl -w {name}={wanted}"));
        } else {
            report.good("this machine", format!("{name} is {most}"));
        }
    }
}

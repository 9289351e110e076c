//! This machine: who runs here, and what its kernel gives.
//!
//! Each part reads what the system tells (`read`), and judges it (`judge`), which needs no system.

mod clock;
mod gpu;
mod kernel;
mod limits;
mod network;

use std::path::Path;

use super::Report;
use crate::process::paths::Needs;
use crate::process::{Protections, calls, confine};

/// Where these findings are.
const PLACE: &str = "this machine";

/// Looks at the machine, and at the disk that `path` is on.
pub(super) fn look(report: &mut Report, path: &Path) {
    report.good(PLACE, format!("arithmetic: {}", testudo_kernels::instruction_set()));
    if let Some(found) = protections() {
        kernel::protected(report, &found);
    }
    kernel::judge(report, &kernel::read());
    network::judge(report, &network::read());
    clock::judge(report, &clock::read());
    limits::judge(report, path, &limits::read(path));
    gpu::judge(report, &gpu::read());
}

/// This command gave away what every command does; the rest is tried out on a thread of its own, which alone is confined.
fn protections() -> Option<Protections> {
    let tried = std::thread::spawn(|| {
        confine(calls::Role::Node, Needs::default());
        Protections::read()
    });
    tried.join().ok()
}

//! What the kernel tells of a live process: what it may still do, and what it cannot any more.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use testudo_tests::process;

use crate::privilege::PROGRAM;

/// What `/proc/PID/status` says of `name`.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Asserts what holds for every process of a run, whoever started it.
pub(crate) fn assert_hardened(pid: u32) {
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2", "a filter of system calls");
    assert_eq!(status(pid, "CapAmb"), "0000000000000000");
    assert_eq!(status(pid, "CapInh"), "0000000000000000");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"], "{limits}");
}

/// Asserts that a process is nobody's, cannot become anybody else's again, and has no capability nor a way to one.
pub(crate) fn assert_nobodys(pid: u32) {
    assert_hardened(pid);
    let four = |name| status(pid, name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(four("Uid"), ["65534"; 4]);
    assert_eq!(four("Gid"), ["65534"; 4]);
    assert_eq!(four("Groups"), [""; 0]);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    let shown = std::fs::metadata(format!("/proc/{pid}/environ")).unwrap();
    assert_eq!(shown.uid(), 0, "what cannot be dumped is shown as root's");
}

/// What this kernel has of Landlock, as the doctor finds out; nothing, if it has none.
pub(crate) fn landlock() -> Option<String> {
    let said = process::run(PROGRAM, &["doctor", "--verbose"], Path::new("/no/mark")).stdout;
    let at = said.find("Landlock (ABI ");
    if at.is_none() {
        eprintln!("not checked: this kernel has no Landlock");
    }
    Some(said.get(at?..)?.split(')').next()?.to_owned())
}

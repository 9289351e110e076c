//! What the kernel protects nodes by, and what it leaves open to whoever else is on the machine.

use super::PLACE;
use crate::doctor::Report;
use crate::process::Protections;

/// Settings that are files under `/proc/sys`, and lines of `/proc/swaps`.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// `kernel.yama.ptrace_scope`: from 1 on, a process may watch no other one of its user that it has not started.
    ptrace_scope: Option<u32>,
    /// `vm.unprivileged_userfaultfd`.
    userfaultfd: Option<u32>,
    /// `kernel.unprivileged_bpf_disabled`.
    bpf_disabled: Option<u32>,
    /// Where memory is written to when it is short.
    swaps: Vec<String>,
}

pub(super) fn read() -> Readings {
    let setting = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/{name}")).ok().and_then(|text| text.trim().parse().ok())
    };
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    Readings {
        ptrace_scope: setting("kernel/yama/ptrace_scope"),
        userfaultfd: setting("vm/unprivileged_userfaultfd"),
        bpf_disabled: setting("kernel/unprivileged_bpf_disabled"),
        swaps: swapped_to(&swaps),
    }
}

/// The places in a text as `/proc/swaps` has it.
fn swapped_to(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1);
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// What holds of a node on this kernel, and what to do about what does not.
pub(super) fn protected(report: &mut Report, found: &Protections) {
    let missing = [
        (
            found.user != 0,
            "this runs as root: whoever takes over a process that stays root has the machine",
            "start nodes as a user of their own without privileges; started as root they become security.run_as, unless --allow-root keeps \
             them from it",
        ),
        (
            found.no_new_privs && found.no_core_dumps && found.closed,
            "the kernel refused to shut the process's memory and its privileges",
            "run outside of what refuses it: a container's seccomp profile should let prctl and setrlimit through",
        ),
        (
            found.seccomp,
            "no filter of system calls holds: whoever took a node over could make any",
            "use a kernel with CONFIG_SECCOMP_FILTER, and a container that lets filters be set",
        ),
        (
            found.landlock.is_some(),
            "Landlock does not hold: whoever took a node over could open every file of its user",
            "use Linux 5.13 or later with landlock in its list of modules (/sys/kernel/security/lsm; lsm= on the kernel's command line), \
             and a container that lets landlock_create_ruleset and landlock_restrict_self through",
        ),
    ];
    let mut whole = true;
    for (_, what, fix) in missing.into_iter().filter(|(holds, ..)| !holds) {
        whole = false;
        report.warning(PLACE, what, fix);
    }
    // Of an older Landlock, what it cannot do.
    if let Some(text) = found.landlock
        && text.contains("in part")
    {
        let what =
            format!("{text}: this kernel restricts files, but not all of TCP ports, sockets and signals");
        report.warning(PLACE, what, "Linux 6.12 or later restricts all of it");
    }
    if whole {
        report.good(PLACE, found);
    }
}

pub(super) fn judge(report: &mut Report, readings: &Readings) {
    match readings.ptrace_scope {
        Some(0) => report.good(
            PLACE,
            "kernel.yama.ptrace_scope is 0: only what shuts itself is shut, as every process of Testudo does",
        ),
        Some(scope) => report.good(PLACE, format!("kernel.yama.ptrace_scope is {scope}")),
        None => {}
    }
    if readings.userfaultfd == Some(1) {
        let what = "vm.unprivileged_userfaultfd is 1: programs of any user can hold up the kernel where attacks on it need that";
        report.warning(PLACE, what, "sysctl -w vm.unprivileged_userfaultfd=0");
    }
    if readings.bpf_disabled == Some(0) {
        let what = "kernel.unprivileged_bpf_disabled is 0: programs of any user can load code into the kernel's interpreter";
        report.warning(PLACE, what, "sysctl -w kernel.unprivileged_bpf_disabled=2");
    }
    // Compressed memory is memory; a mapped device is what encrypted swap is on.
    let open = |place: &&String| !["/dev/zram", "/dev/dm-"].iter().any(|start| place.starts_with(start));
    let open: Vec<&str> = readings.swaps.iter().filter(open).map(String::as_str).collect();
    if !open.is_empty() {
        let what = format!("memory of nodes, keys among it, may be written to {}", open.join(", "));
        let fix = "encrypt swap (dm-crypt with a random key), or have none on machines with keys: swapoff -a";
        report.warning(PLACE, what, fix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Finding, Severity};

    fn found(judge: impl FnOnce(&mut Report)) -> Vec<Finding> {
        let mut report = Report::default();
        judge(&mut report);
        report.findings
    }

    fn whole() -> Protections {
        Protections {
            user: 1000,
            user_name: None,
            capabilities: 0,
            no_new_privs: true,
            no_core_dumps: true,
            closed: true,
            seccomp: true,
            landlock: Some("Landlock (ABI 7)"),
        }
    }

    #[test]
    fn each_protection_that_does_not_hold_has_a_mend_of_its_own() {
        let all = found(|report| protected(report, &whole()));
        assert!(matches!(&*all, [one] if one.severity == Severity::Good), "{all:?}");
        let none = Protections { seccomp: false, landlock: None, closed: false, ..whole() };
        let all = found(|report| protected(report, &none));
        assert_eq!(all.iter().filter(|f| f.severity == Severity::Warning).count(), 3, "{all:?}");
        assert!(all.iter().any(|f| f.fix.contains("5.13")) && all.iter().all(|f| !f.fix.is_empty()));
        let root = Protections { user: 0, capabilities: u64::MAX, ..whole() };
        let all = found(|report| protected(report, &root));
        assert!(matches!(&*all, [one] if one.severity == Severity::Warning), "{all:?}");
        assert!(all[0].what.contains("root") && all[0].fix.contains("security.run_as"), "{all:?}");
        let part = Protections { landlock: Some("Landlock (ABI 2, in part)"), ..whole() };
        let all = found(|report| protected(report, &part));
        assert!(all.iter().any(|f| f.fix.contains("6.12")) && all.len() == 2, "{all:?}");
    }

    #[test]
    fn settings_that_help_attackers_are_warned_of() {
        let shut = Readings {
            ptrace_scope: Some(1),
            userfaultfd: Some(0),
            bpf_disabled: Some(2),
            swaps: vec!["/dev/zram0".into(), "/dev/dm-1".into()],
        };
        let all = found(|report| judge(report, &shut));
        assert!(all.iter().all(|f| f.severity == Severity::Good), "{all:?}");
        let text = "Filename\t\t\t\tType\t\tSize\n/swap.img                               file\t\t8388604\n";
        let open = Readings {
            ptrace_scope: Some(0),
            userfaultfd: Some(1),
            bpf_disabled: Some(0),
            swaps: swapped_to(text),
        };
        let all = found(|report| judge(report, &open));
        let warned: Vec<&Finding> = all.iter().filter(|f| f.severity == Severity::Warning).collect();
        assert_eq!(warned.len(), 3, "{all:?}");
        assert!(warned.iter().all(|f| !f.fix.is_empty()) && warned[2].what.ends_with("/swap.img"));
        assert!(
            found(|report| judge(report, &Readings::default())).is_empty(),
            "what is not told is not judged"
        );
    }
}

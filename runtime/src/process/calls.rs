//! Which system calls a process makes no more: a seccomp filter, where the kernel has it.
//!
//! A node computes, reads and writes files and sockets, and starts threads. It never starts a program, watches another process,
//! mounts, loads code into the kernel, or asks for a namespace or a key ring; a process that does has been taken over. Such a
//! call fails with `EPERM`, whoever makes it, in every thread that is started after.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// What a process goes on doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It starts nodes.
    Launcher,
    /// It starts nothing.
    Node,
}

/// Calls that no process of ours makes.
const NEVER: &[libc::c_long] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // What is mounted, and where the root is.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces, in which one is root.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Code in the kernel, and large parts of it that are rarely needed and often broken.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_personality,
    // Files without their paths, and devices.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Calls that start a program, or a process for one.
const START: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// Sockets that are made: of the network, to neighbours, and of the kernel for the machine's addresses.
const FAMILIES: [libc::c_int; 4] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK];

/// On this architecture the same calls have a second set of numbers, from here up.
#[cfg(target_arch = "x86_64")]
const SECOND_NUMBERS: libc::c_long = 0x4000_0000;

/// And some have a third one: those whose arguments are laid out otherwise there (execve, ptrace, kexec_load, process_vm_readv,
/// process_vm_writev, execveat, in arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const X32: [(libc::c_long, libc::c_long); 6] = [
    (libc::SYS_execve, 520),
    (libc::SYS_ptrace, 521),
    (libc::SYS_kexec_load, 528),
    (libc::SYS_process_vm_readv, 539),
    (libc::SYS_process_vm_writev, 540),
    (libc::SYS_execveat, 545),
];

/// Every number that `call` has.
fn numbers(call: libc::c_long) -> Vec<i64> {
    #[cfg(not(target_arch = "x86_64"))]
    return vec![call];
    #[cfg(target_arch = "x86_64")]
    [call, call | SECOND_NUMBERS]
        .into_iter()
        .chain(X32.iter().filter(|(other, _)| *other == call).map(|(_, third)| third | SECOND_NUMBERS))
        .collect()
}

/// Forbids this thread, and those that it will start, the calls that a process of that role never makes. To be called by the only
/// thread.
///
/// # Errors
/// What the kernel or the compiler of filters said; nothing is forbidden then, or a part.
pub fn restrict(role: Role) -> Result<(), seccompiler::Error> {
    for program in programs(role)? {
        apply_filter(&program)?;
    }
    Ok(())
}

fn programs(role: Role) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let mut forbidden: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut forbid = |call: libc::c_long, rules: Vec<SeccompRule>| {
        forbidden.extend(numbers(call).into_iter().map(|number| (number, rules.clone())));
    };
    NEVER.iter().for_each(|call| forbid(*call, Vec::new()));
    let others = FAMILIES.map(|family| condition(0, SeccompCmpOp::Ne, family as u64));
    let others = others.into_iter().collect::<Result<Vec<_>, _>>()?;
    forbid(libc::SYS_socket, vec![SeccompRule::new(others)?]);
    let mut programs = Vec::new();
    if role == Role::Node {
        START.iter().for_each(|call| forbid(*call, Vec::new()));
        let thread = libc::CLONE_THREAD as u64;
        let process = condition(0, SeccompCmpOp::MaskedEq(thread), 0)?;
        forbid(libc::SYS_clone, vec![SeccompRule::new(vec![process])?]);
        // Its arguments are in memory, where no filter looks. Told that there is no such call, the C library makes the other.
        let newer = numbers(libc::SYS_clone3).into_iter().map(|number| (number, Vec::new())).collect();
        programs.push(compile(newer, libc::ENOSYS)?);
    }
    programs.push(compile(forbidden, libc::EPERM)?);
    Ok(programs)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::Error> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}

fn compile(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    error: libc::c_int,
) -> Result<BpfProgram, seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    Ok(SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn restricted(role: Role, then: impl FnOnce() + Send + 'static) {
        // The filter is this thread's alone.
        let thread = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict(role).unwrap();
            then();
        });
        thread.join().unwrap();
    }

    fn refused<T>(result: rustix::io::Result<T>) {
        assert_eq!(result.err(), Some(rustix::io::Errno::PERM));
    }

    /// A kernel that knows the x32 numbers takes them from every process.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_call_is_forbidden_under_each_of_its_numbers() {
        let x32 = |number: i64| 0x4000_0000 | number;
        assert_eq!(numbers(libc::SYS_execve), [59, x32(59), x32(520)]);
        assert_eq!(numbers(libc::SYS_execveat), [322, x32(322), x32(545)]);
        assert_eq!(numbers(libc::SYS_clone3), [435, x32(435)]);
    }

    /// Invariant 7 of the module above.
    #[test]
    fn a_node_starts_threads_and_nothing_else() {
        restricted(Role::Node, || {
            assert_eq!(std::thread::spawn(|| 3).join().unwrap(), 3);
            let inherited = std::thread::spawn(|| Command::new("/bin/true").status().map(|_| ()));
            assert_eq!(inherited.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EPERM));
            assert!(Command::new("/bin/true").status().is_err());
        });
        restricted(Role::Launcher, || assert!(Command::new("/bin/true").status().unwrap().success()));
    }

    #[test]
    fn what_a_taken_over_process_would_ask_for_is_refused() {
        for role in [Role::Node, Role::Launcher] {
            restricted(role, || {
                refused(rustix::process::chroot("/"));
                let packet = rustix::net::AddressFamily::from_raw(17);
                refused(rustix::net::socket(packet, rustix::net::SocketType::DGRAM, None));
                assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_ok());
                assert!(std::os::unix::net::UnixStream::pair().is_ok());
            });
        }
    }
}

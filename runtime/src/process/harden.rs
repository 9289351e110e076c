//! What every command gives away at its start (invariant 1 of [`super`]), and what must not end it.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, Signal, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};
use tokio::signal::unix::{SignalKind, signal};

/// Gives away what no command needs. To be called first, by the only thread: threads inherit it from whom they are started
/// by, and from nobody else.
///
/// A kernel that refuses one of these changes nothing about the others; [`super::Protections`] says what holds.
pub fn harden() {
    // Two walls, because a core dump that is piped to a program heeds no limit: the process cannot be dumped at all, and
    // what cannot be dumped cannot be traced or read by the user's other processes either.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = set_no_new_privs(true);
    let _ = clear_ambient_capability_set();
    if !geteuid().is_root() {
        drop_capabilities();
    }
}

/// A file that may not grow (`ulimit -f`) is an error of the write that meets it, as a full disk is, and not the end of the
/// process, which is what SIGXFSZ does to a process that does not handle it. To be called in a runtime.
pub fn outlive_file_limits() {
    // Once it is handled it stays so; what is told of it, nobody needs.
    if let Err(error) = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())) {
        tracing::debug!(%error, "SIGXFSZ cannot be handled: a file that may not grow would end the process");
    }
}

/// Gives away every capability that this thread has or could pass on.
pub(super) fn drop_capabilities() {
    let none = CapabilitySet::empty();
    let _ = set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
}

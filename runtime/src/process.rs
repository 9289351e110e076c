//! What this process may do, cut down to what it needs.
//!
//! A parser of bytes from a network is where an intruder gets in; what he then has is what the process has. So every
//! command gives away at its start ([`harden()`]) what none needs, and a line of every node's log says what holds on this
//! kernel ([`protections`]).
//!
//! Invariants, cited by the tests:
//! 1. Before anything else is done, and before there is a second thread: no core dump can be made, no other process of the
//!    user can read this one's memory, no program that is started can gain a privilege, and no capability is left to a
//!    process that is not root's.
//! 2. What is said to hold was read back from the kernel, not concluded from what was asked for.
//! 3. A process that was started as root is nobody's that can become root again before it opens a socket, or ends, unless it was
//!    told that it may stay root ([`user`]).
//! 4. What such a process needs and its new user could not open is open before ([`handing`], [`collector`], [`handover::hold`]).
//! 5. Of what root has made, a run's new user gets the run directory, and nothing that was not root's alone ([`handover`]).
//! 6. From then on it opens what its role needs, and nothing else ([`paths`], where the kernel has Landlock).
//! 7. And it makes no system call that only a process which was taken over would make ([`calls`], where it has seccomp).

pub mod calls;
pub mod collector;
pub mod handing;
pub mod handover;
pub mod harden;
pub(crate) mod locked;
pub mod paths;
pub mod program;
pub mod protections;
pub mod user;

pub use harden::{harden, outlive_file_limits};
pub use program::Program;
pub use protections::Protections;
pub use user::RunAs;

/// Confines this process to what `needs` says and what that role does, as far as this kernel can (invariants 6 and 7). To be called
/// by the only thread, once everything else is given away; [`Protections`] says what holds.
pub fn confine(role: calls::Role, needs: paths::Needs) {
    // Second walls, both of them: a kernel that lacks one, or a container that forbids it, is no reason not to train.
    let _ = paths::restrict(needs);
    let _ = calls::restrict(role);
}

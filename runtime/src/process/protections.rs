//! Which protections hold, as the kernel tells it (invariant 2 of [`super`]).

use std::fmt;

use super::paths;
use nix::unistd::{Uid, User};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

/// What holds for this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protections {
    /// The user that it runs as, effectively.
    pub user: u32,
    /// What that user is called, if anything.
    pub user_name: Option<String>,
    /// Capabilities that it has or could get back: permitted, inheritable or ambient.
    pub capabilities: u64,
    /// Whether no program that it starts can gain a privilege.
    pub no_new_privs: bool,
    /// Whether no core dump can be made of it.
    pub no_core_dumps: bool,
    /// Whether its user's other processes can neither trace it nor read its memory.
    pub closed: bool,
    /// Whether a filter of system calls is in force.
    pub seccomp: bool,
    /// Which files it may touch is restricted, by this.
    pub landlock: Option<&'static str>,
}

impl Protections {
    /// Asks the kernel about this thread, and whatever it starts. What it does not tell does not hold.
    #[must_use]
    pub fn read() -> Protections {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let core = getrlimit(Resource::Core);
        let no_core = core.current == Some(0) && core.maximum == Some(0);
        let closed = matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        let mut found = Protections::from_status(&status);
        found.no_core_dumps = no_core && closed;
        found.closed = closed;
        found.landlock = paths::held();
        found.user_name = User::from_uid(Uid::from_raw(found.user)).ok().flatten().map(|user| user.name);
        found
    }

    /// What the kernel's list of a thread's properties alone tells.
    fn from_status(status: &str) -> Protections {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let set = |name: &str| field(name).and_then(|text| u64::from_str_radix(text, 16).ok());
        let sets = ["CapPrm:", "CapInh:", "CapAmb:"].map(|name| set(name).unwrap_or(u64::MAX));
        // Real, effective, saved and file system's; a process that can go back to root is root.
        let users = field("Uid:").unwrap_or_default().split_whitespace().map(|uid| uid.parse().unwrap_or(0));
        Protections {
            user: users.min().unwrap_or(0),
            user_name: None,
            capabilities: sets.iter().fold(0, |all, set| all | set),
            no_new_privs: field("NoNewPrivs:") == Some("1"),
            no_core_dumps: false,
            closed: false,
            seccomp: field("Seccomp:") == Some("2"),
            landlock: None,
        }
    }

    fn user(&self) -> String {
        match &self.user_name {
            Some(name) => format!("{name} ({})", self.user),
            None => self.user.to_string(),
        }
    }
}

/// One line: what holds, and what does not.
impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.user != 0, "an unprivileged user".to_owned()),
            (self.capabilities == 0, "no capabilities".to_owned()),
            (self.no_new_privs, "no_new_privs".to_owned()),
            (self.no_core_dumps, "no core dumps".to_owned()),
            (self.closed, "memory closed to other processes".to_owned()),
            (self.landlock.is_some(), self.landlock.unwrap_or("Landlock").to_owned()),
            (self.seccomp, "seccomp".to_owned()),
        ];
        let list = |held: bool| {
            let some = all.iter().filter(|(holds, _)| *holds == held).map(|(_, what)| what.as_str());
            some.collect::<Vec<_>>().join(", ")
        };
        write!(f, "runs as {}; protections that hold: {}", self.user(), list(true))?;
        match list(false) {
            none if none.is_empty() => Ok(()),
            some => write!(f, "; that do not: {some}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\ttestudo\nUid:\t65534\t65534\t65534\t65534\nCapInh:\t0000000000000000\n\
                            CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
                            CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    /// Invariant 2.
    #[test]
    fn what_the_kernel_does_not_tell_does_not_hold() {
        let nothing = Protections::from_status("");
        assert_eq!((nothing.user, nothing.capabilities), (0, u64::MAX));
        assert!(!nothing.no_new_privs && !nothing.seccomp);
        let line = nothing.to_string();
        assert!(line.starts_with("runs as 0; protections that hold: ;"), "{line}");

        let mut found = Protections::from_status(CONFINED);
        assert!(found.no_new_privs && found.seccomp && found.capabilities == 0 && found.user == 65534);
        (found.no_core_dumps, found.closed, found.user_name) = (true, true, Some("nobody".into()));
        found.landlock = Some("Landlock (ABI 7)");
        let line = found.to_string();
        assert!(line.starts_with("runs as nobody (65534); protections that hold: an unpriv"), "{line}");
        assert!(!line.contains("do not"), "{line}");
    }

    #[test]
    fn one_saved_user_or_one_inheritable_capability_counts() {
        let saved = Protections::from_status(&CONFINED.replace("65534\t65534\nCapInh", "0\t65534\nCapInh"));
        assert_eq!(saved.user, 0, "who can become root again is root");
        let cap = CONFINED.replace("CapInh:\t0000000000000000", "CapInh:\t0000000000000400");
        assert_eq!(Protections::from_status(&cap).capabilities, 0x400);
        assert!(Protections::from_status(&cap).to_string().contains("that do not: no capabilities, "));
    }
}

//! Whom a process runs as (invariants 3 and 4 of [`super`]).
//!
//! A process that is root becomes an unprivileged user for good: real, effective and saved identity, groups and capabilities. It
//! asks the kernel afterwards, and tries the way back, which must be shut.

use nix::unistd::{
    Gid, ResGid, ResUid, Uid, User, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid,
};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::harden;

/// The user that is there on every system, and its number where the system keeps no list of users, as in containers that hold
/// one program: the number that Linux shows for users it does not know.
pub const NOBODY: &str = "nobody";
const NOBODY_NUMBER: u32 = 65_534;

/// An unprivileged user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    name: String,
    uid: u32,
    gid: u32,
}

/// Why a process cannot run as it should.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error(
        "there is no user `{name}` on this machine: set security.run_as to one that is, by name or by number, or start \
         as an unprivileged user"
    )]
    Unknown {
        /// As it was given.
        name: String,
    },
    /// Root was named.
    #[error(
        "security.run_as is `{name}`, which is root: name an unprivileged user; to run as root all the same, say so with \
         --allow-root"
    )]
    Root {
        /// As it was given.
        name: String,
    },
    /// The kernel refused.
    #[error(
        "this process is root and cannot become the user `{name}` (security.run_as): {what}; start it as an unprivileged \
         user, give the container the capabilities SETUID, SETGID, SETPCAP, CHOWN and DAC_OVERRIDE, or let it run as root \
         with --allow-root"
    )]
    Refused {
        /// The user.
        name: String,
        /// What was refused.
        what: String,
    },
}

/// Whether this process is root or could become root again by its saved or real identity.
#[must_use]
pub fn is_root() -> bool {
    // What cannot be found out counts as root.
    getresuid().map_or(true, |ids| [ids.real, ids.effective, ids.saved].iter().any(|id| id.is_root()))
}

/// Whom this process is to become: nobody else if it is not root, or may stay root.
///
/// # Errors
/// [`UserError`] when `run_as` is no unprivileged user.
pub fn plan(run_as: &str, allow_root: bool) -> Result<Option<RunAs>, UserError> {
    match is_root() && !allow_root {
        true => RunAs::find(run_as).map(Some),
        false => Ok(None),
    }
}

impl RunAs {
    /// The user of that name, or of that number.
    ///
    /// # Errors
    /// [`UserError::Unknown`] or [`UserError::Root`].
    pub fn find(name: &str) -> Result<RunAs, UserError> {
        let listed = match name.parse::<u32>() {
            Ok(number) => User::from_uid(Uid::from_raw(number)),
            Err(_) => User::from_name(name),
        };
        let found = match (listed, name.parse()) {
            (Ok(Some(user)), _) => RunAs { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() },
            (_, Ok(number)) => RunAs { name: name.to_owned(), uid: number, gid: number },
            _ if name == NOBODY => RunAs { name: name.to_owned(), uid: NOBODY_NUMBER, gid: NOBODY_NUMBER },
            _ => return Err(UserError::Unknown { name: name.to_owned() }),
        };
        match found.uid {
            0 => Err(UserError::Root { name: name.to_owned() }),
            // The kernel's word for "no change", which would leave root.
            u32::MAX => Err(UserError::Unknown { name: name.to_owned() }),
            _ => Ok(found),
        }
    }

    /// Its number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its group's number.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Its name, or its number as it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn refused(&self, what: impl ToString) -> UserError {
        UserError::Refused { name: self.name.clone(), what: what.to_string() }
    }

    /// Makes this process that user's, for good.
    ///
    /// # Errors
    /// [`UserError::Refused`]; the process must end then, for it may be anything in between.
    pub fn take_over(&self) -> Result<(), UserError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        empty_bounding_set();
        setgroups(&[]).map_err(|e| self.refused(format!("setgroups: {e}")))?;
        setresgid(gid, gid, gid).map_err(|e| self.refused(format!("setresgid: {e}")))?;
        setresuid(uid, uid, uid).map_err(|e| self.refused(format!("setresuid: {e}")))?;
        harden::drop_capabilities();
        // A change of identity opens what was closed at the start.
        harden::harden();
        let users = getresuid().is_ok_and(|ids: ResUid| [ids.real, ids.effective, ids.saved] == [uid; 3]);
        let groups = getresgid().is_ok_and(|ids: ResGid| [ids.real, ids.effective, ids.saved] == [gid; 3]);
        let others = getgroups().is_ok_and(|all| all.iter().all(|one| *one == gid));
        if !(users && groups && others) {
            return Err(self.refused("the kernel says that it still is somebody else"));
        }
        if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
            return Err(self.refused("it could become root again"));
        }
        Ok(())
    }
}

/// Does something as `user`, or as whom this process runs, and comes back: a thread of its own changes its identity and ends.
/// So what only `user` will do later is tried before anything is made that would have to be undone.
///
/// # Errors
/// [`UserError::Refused`]; `act` was not called then.
pub fn try_as<T: Send>(user: Option<&RunAs>, act: impl FnOnce() -> T + Send) -> Result<T, UserError> {
    let Some(user) = user else { return Ok(act()) };
    let change = || -> rustix::io::Result<()> {
        let (uid, gid) = (rustix::process::Uid::from_raw(user.uid), rustix::process::Gid::from_raw(user.gid));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    };
    let tried = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                change().map(|()| act()).map_err(|e| user.refused(format!("a change of identity: {e}")))
            })
            .join()
    });
    tried.unwrap_or_else(|_| Err(user.refused("the attempt failed")))
}

/// Leaves this process, root's or not, no capability and no way to one: what it may open is what its user owns.
pub fn keep_no_capability() {
    empty_bounding_set();
    harden::drop_capabilities();
}

/// No program that this process starts can have a capability again. Takes one itself; without it, there is nothing to take.
fn empty_bounding_set() {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if let Err(rustix::io::Errno::INVAL) = remove_capability_from_bounding_set(one) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 3.
    #[test]
    fn root_is_no_unprivileged_user_by_any_name() {
        for name in ["root", "0", "00", "+0"] {
            assert!(matches!(RunAs::find(name), Err(UserError::Root { .. })), "{name}");
        }
        for name in ["no-such-user", "", "-1", "4294967295", "99999999999"] {
            assert!(matches!(RunAs::find(name), Err(UserError::Unknown { .. })), "{name:?}");
        }
        let error = RunAs::find("no-such-user").unwrap_err().to_string();
        assert!(error.contains("security.run_as"), "{error}");
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let nobody = RunAs::find(NOBODY).unwrap();
        assert!(nobody.uid() != 0);
        assert_eq!(RunAs::find(&nobody.uid().to_string()).unwrap(), nobody);
        let nameless = RunAs::find("3141592").unwrap();
        assert_eq!((nameless.uid(), nameless.gid(), nameless.name()), (3_141_592, 3_141_592, "3141592"));
    }

    #[test]
    fn an_unprivileged_process_has_nobody_to_become() {
        assert_eq!(plan("no-such-user", true).unwrap(), None);
        assert_eq!(plan("no-such-user", false).is_ok(), !is_root());
    }
}

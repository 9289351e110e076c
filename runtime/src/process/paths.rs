//! Which files a process may touch from now on: Landlock (<https://docs.kernel.org/userspace-api/landlock.html>), where the
//! kernel has it.
//!
//! What is open stays open; this is about what is opened after. A process reads the run directory and what resolving names takes,
//! writes what its role writes, and opens nothing else: no home directory, no other node's key. It listens on no TCP port
//! but the one that it serves, reaches no abstract socket and signals no process outside.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, make_bitflags,
};

use super::Program;

/// The newest that was looked at; older kernels restrict what they know of it.
const KNOWN: ABI = ABI::V6;

/// What the system's own libraries read: names and addresses of hosts, wherever links of these names lead, time zones, the
/// machine's processors.
const SYSTEM: [&str; 7] = [
    "/etc",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/run/systemd/resolve",
    "/usr/share/zoneinfo",
    "/sys",
    "/proc",
];
/// Where the libraries of programs lie, and what starts a program with them.
const LIBRARIES: [&str; 7] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/gnu/store"];

/// Where NVIDIA's installers put toolkits, each in a folder of its own (`cuda`, `cuda-13.0`), and their libraries in that.
const INSTALLED: &str = "/usr/local";
const TOOLKIT: &str = "cuda";
const TOOLKIT_LIBRARIES: &str = "lib64";

/// What was brought about, for [`super::Protections`].
static HELD: OnceLock<String> = OnceLock::new();

/// What a process still needs.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files, and folders with all in them, that it reads.
    pub read: Vec<Place>,
    /// Folders in which it reads, writes and deletes.
    pub write: Vec<Place>,
    /// Devices that it reads, writes and commands.
    pub devices: Vec<PathBuf>,
    /// The program that it starts more processes of.
    pub start: Option<Program>,
    /// Other programs that it starts.
    pub programs: Vec<PathBuf>,
    /// Whether it opens TCP connections: to a collector of traces or metrics.
    pub tcp: bool,
    /// The TCP ports that it listens on; 0 for one that the system chooses.
    pub listen: Vec<u16>,
}

/// A file or folder.
#[derive(Debug)]
pub enum Place {
    /// By its path, as this process reaches it.
    Path(PathBuf),
    /// By a descriptor.
    Open(OwnedFd),
}

/// Lets this thread, and those that it will start, touch what `needs` says and nothing else. To be called by the only thread. A
/// kernel that cannot changes nothing; what holds is in [`held`].
///
/// # Errors
/// When a kernel that can refuses.
pub fn restrict(needs: Needs) -> Result<(), RulesetError> {
    let status = build(needs)?.restrict_self()?;
    if let Some(text) = described(&status) {
        let _ = HELD.set(text);
    }
    Ok(())
}

/// What holds, in words.
#[must_use]
pub fn held() -> Option<&'static str> {
    HELD.get().map(String::as_str)
}

fn build(needs: Needs) -> Result<RulesetCreated, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = make_bitflags!(AccessFs::{
        ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
    });
    let start = make_bitflags!(AccessFs::{ReadFile | Execute});
    let mut rules =
        Ruleset::default().handle_access(AccessFs::from_all(KNOWN))?.scope(Scope::from_all(KNOWN))?;
    rules = rules.handle_access(AccessNet::BindTcp)?;
    if !needs.tcp {
        rules = rules.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut rules = rules.create()?;
    for port in &needs.listen {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let system = SYSTEM.into_iter().chain(LIBRARIES).map(PathBuf::from);
    let system = system.chain(std::env::split_paths(&named)).chain(toolkits(Path::new(INSTALLED)));
    for path in system.filter(|path| path.is_absolute()) {
        rules = allow(rules, &Place::Path(path), read)?;
    }
    for place in &needs.read {
        rules = allow(rules, place, read)?;
    }
    for place in &needs.write {
        rules = allow(rules, place, write)?;
    }
    let command = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    for device in &needs.devices {
        rules = allow(rules, &Place::from(device.as_path()), command)?;
    }
    // A copy in memory has no path, and needs no right.
    let own = needs.start.as_ref().and_then(|program| program.file()).map(Path::to_path_buf);
    if needs.start.is_some() || !needs.programs.is_empty() {
        for path in LIBRARIES.map(PathBuf::from).into_iter().chain(own).chain(needs.programs) {
            rules = allow(rules, &Place::Path(path), start)?;
        }
    }
    // Where output goes that nobody wants.
    allow(rules, &Place::Path("/dev/null".into()), make_bitflags!(AccessFs::{ReadFile | WriteFile}))
}

/// The folders of libraries of the toolkits in `installed`: a process that computes on a GPU loads them after it is confined.
fn toolkits(installed: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(installed) else { return Vec::new() };
    let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(TOOLKIT));
    named.map(|entry| entry.path().join(TOOLKIT_LIBRARIES)).collect()
}

/// What is not there needs no right.
fn allow(
    rules: RulesetCreated,
    place: &Place,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match place {
        Place::Open(fd) => rules.add_rule(PathBeneath::new(fd.as_fd(), suited(is_folder(fd), access))),
        Place::Path(path) => match PathFd::new(path) {
            Ok(fd) => rules.add_rule(PathBeneath::new(&fd, suited(path.is_dir(), access))),
            Err(_) => Ok(rules),
        },
    }
}

fn is_folder(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|found| {
        rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory
    })
}

/// Rights that mean something for a file alone, if it is one.
fn suited(folder: bool, access: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    if folder { access } else { access & AccessFs::from_file(KNOWN) }
}

fn described(status: &RestrictionStatus) -> Option<String> {
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            kernel_abi.map_or_else(|| format!("{}", effective_abi as i32), |newer| newer.to_string())
        }
        _ => return None,
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Some(format!("Landlock (ABI {abi})")),
        RulesetStatus::PartiallyEnforced => Some(format!("Landlock (ABI {abi}, in part)")),
        RulesetStatus::NotEnforced => None,
    }
}

/// A folder or file as this process reaches it.
impl From<&Path> for Place {
    fn from(path: &Path) -> Place {
        Place::Path(path.to_path_buf())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant 6 of the module above, on a thread of its own, which alone is restricted. A kernel without Landlock is said to
    /// be one.
    #[test]
    fn nothing_is_opened_but_what_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["mine", "read", "others"] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("file"), "x").unwrap();
        }
        let open = std::fs::File::open(at("others").join("file")).unwrap();
        let (mine, read, others) = (at("mine"), at("read"), at("others"));
        let held = std::thread::spawn(move || {
            let write = vec![Place::Open(super::super::handover::hold(&mine).unwrap())];
            let needs = Needs { read: vec![read.as_path().into()], write, ..Needs::default() };
            let status = build(needs).unwrap().restrict_self().unwrap();
            let held = described(&status)?;
            std::fs::write(mine.join("new"), "y").unwrap();
            std::fs::rename(mine.join("new"), mine.join("newer")).unwrap();
            std::fs::remove_file(mine.join("newer")).unwrap();
            assert_eq!(std::fs::read_to_string(read.join("file")).unwrap(), "x");
            let denied = |result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            };
            denied(std::fs::read(others.join("file")).map(|_| ()));
            denied(std::fs::read_dir(&others).map(|_| ()));
            denied(std::fs::write(read.join("file"), "z"));
            denied(std::fs::remove_file(others.join("file")));
            denied(std::process::Command::new("/bin/true").status().map(|_| ()));
            let mut text = String::new();
            std::io::Read::read_to_string(&mut &open, &mut text).unwrap();
            assert_eq!(text, "x", "what is open stays open");
            Some(held)
        })
        .join()
        .unwrap();
        match held {
            Some(held) => assert!(held.starts_with("Landlock (ABI "), "{held}"),
            None => eprintln!("not checked: this kernel has no Landlock"),
        }
    }
    /// A node's confinement is within its launcher's: what computes on a device opens it only if both may.
    #[test]
    fn a_device_is_opened_within_a_launchers_and_a_nodes_confinement() {
        let opened = |launcher: &'static [&'static str]| {
            std::thread::spawn(move || {
                for devices in [launcher, &["/dev/zero"]] {
                    let devices = devices.iter().map(PathBuf::from).collect();
                    let status =
                        build(Needs { devices, ..Needs::default() }).unwrap().restrict_self().unwrap();
                    described(&status)?;
                }
                Some(std::fs::File::options().read(true).write(true).open("/dev/zero").is_ok())
            })
            .join()
            .unwrap()
        };
        if opened(&["/dev/zero"]).is_none() {
            return eprintln!("not checked: this kernel has no Landlock");
        }
        assert_eq!((opened(&["/dev/zero"]), opened(&[])), (Some(true), Some(false)));
    }

    #[test]
    fn toolkits_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["cuda", "cuda-13.0", "lib"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut found = toolkits(folder.path());
        found.sort();
        assert_eq!(found, ["cuda/lib64", "cuda-13.0/lib64"].map(|name| folder.path().join(name)));
        assert!(toolkits(&folder.path().join("nothing")).is_empty());
    }
}

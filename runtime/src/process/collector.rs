//! What `https://` collectors are spoken to with, from a launcher to the nodes that it starts: in memory, so that no key of root's lies in
//! a file that nodes read.
//!
//! 1. Nobody changes what is held: it is sealed before any node has it.
//! 2. Each node reads it from its beginning, whatever others have read.
//! 3. No copy that is made on the way is left in memory, and a node keeps none.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use testudo_observability::{Environment, InitError, Opened};
use testudo_transport::pki::is_ours;
use zeroize::Zeroizing;

/// More than three files of each of three signals can be.
const MOST: usize = 16 << 20;

/// Holds what was read; `None` where nothing was.
///
/// # Errors
/// The operating system's refusal.
pub fn hold(opened: &Opened) -> std::io::Result<Option<OwnedFd>> {
    let Some(bytes) = opened.to_bytes() else { return Ok(None) };
    let memory = memfd_create("collector", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(&bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(Some(file.into()))
}

/// What holds in a node: with what its launcher has handed over, or with files that it reads itself.
///
/// # Errors
/// [`InitError`], of files that cannot be used.
pub fn take(told: Environment, handed: Option<OwnedFd>) -> Result<Environment, InitError> {
    let Some(handed) = handed else { return told.open(is_ours) };
    let unreadable = |error: std::io::Error| InitError::Tls { reason: error.to_string() };
    let file = File::from(handed);
    let length = file.metadata().map_err(unreadable)?.len();
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(MOST);
    let mut bytes = Zeroizing::new(vec![0_u8; length]);
    file.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
    told.handed(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariants 1 and 2.
    #[test]
    fn what_is_held_is_read_by_each_and_changed_by_none() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ca.pem");
        let ca = rcgen::generate_simple_self_signed(["c".to_owned()]).unwrap().cert.pem();
        std::fs::write(&path, &ca).unwrap();
        let files = testudo_observability::Files { certificate: Some(path.clone()), ..Default::default() };
        let read = |told: Environment| told.open_for_others(|source| source.read(is_ours));
        let settings = testudo_observability::Settings {
            endpoint: Some("https://c:4317".into()),
            files,
            ..Default::default()
        };
        let told = Environment::default().with_settings(settings);
        assert!(hold(&told.opened).unwrap().is_none());
        let held = hold(&read(told.clone()).unwrap().opened).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            let there = take(told.clone(), Some(held.try_clone().unwrap())).unwrap();
            assert!(there.opened.pem().is_none(), "invariant 3");
        }
        let file = File::from(held.try_clone().unwrap());
        let mut text = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut text, 0).unwrap();
        assert!(String::from_utf8_lossy(&text).contains(&ca));
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(0).is_err());
        assert!(take(told, None).is_err(), "the file is gone");
    }
}

//! What a command says where nobody reads it, or where it cannot be written.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_testudo-under-test");

fn init(ca: &Path, stdout: Stdio) -> Output {
    Command::new(PROGRAM).args(["pki", "init"]).arg(ca).stdout(stdout).output().unwrap()
}

/// One end of a pipe whose other end is closed, as `| head` leaves it.
fn unread() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// Invariant 1 of `runtime/src/say.rs`.
#[test]
fn a_reader_who_has_gone_ends_no_command() {
    let folder = tempfile::tempdir().unwrap();
    let ended = init(&folder.path().join("ca"), unread());
    assert!(ended.status.success(), "{ended:?}");
    let ended = Command::new(PROGRAM).args(["status", "/no/such/run"]).stderr(unread()).status().unwrap();
    assert_eq!(ended.code(), Some(2), "as if its message had been read");
}

/// Invariant 2.
#[test]
fn what_cannot_be_written_is_an_error_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = init(&ca, full.into());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let told = String::from_utf8_lossy(&ended.stderr);
    assert!(told.contains("standard output cannot be written"), "{told}");
    assert!(ca.join("ca.pem").exists(), "what was to be done is done");
}

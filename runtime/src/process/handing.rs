//! What a launcher hands to a node that it starts: open descriptors, by one message over the socket that is the node's standard
//! input.
//!
//! The node may not reach by any path what the launcher could open before it gave its rights away; and it need not: what it
//! trains on is what the launcher looked at. The socket then stays open as long as the launcher lives, so its end is the
//! launcher's.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::data::{DataFiles, FILES_MOST};

/// The message's first byte; the others say what each descriptor is.
const MARK: u8 = b'T';
const RUN_DIR: u8 = b'r';
const DATA: u8 = b'd';
const KEY: u8 = b'k';
const COLLECTOR: u8 = b'c';

/// Descriptors in one message at most.
const MOST: usize = 3 + FILES_MOST;

/// What is handed over; each part may be missing.
#[derive(Debug, Default)]
pub struct Handed {
    /// The run directory.
    pub run_dir: Option<OwnedFd>,
    /// The files of the data set, in their order.
    pub data: Option<Vec<OwnedFd>>,
    /// The file with the age identity that opens the checkpoint.
    pub key: Option<OwnedFd>,
    /// What `https://` collectors are spoken to with, for [`collector::take`](super::collector::take).
    pub collector: Option<OwnedFd>,
}

/// The same, as the launcher has it.
#[derive(Debug, Default)]
pub struct ToHand<'a> {
    /// The run directory.
    pub run_dir: Option<BorrowedFd<'a>>,
    /// The files of the data set.
    pub data: Option<&'a DataFiles>,
    /// The age identity's file.
    pub key: Option<BorrowedFd<'a>>,
    /// What `https://` collectors are spoken to with, as [`collector::hold`](super::collector::hold) holds it.
    pub collector: Option<BorrowedFd<'a>>,
}

/// Sends it to the node at the other end of `socket`.
///
/// # Errors
/// The operating system's refusal.
pub fn hand(socket: impl AsFd, what: &ToHand<'_>) -> Result<()> {
    let mut text = vec![MARK];
    let mut descriptors = Vec::with_capacity(MOST);
    let data = what.data.map(|files| files.descriptors());
    let data = data.iter().flatten().map(|fd| (DATA, *fd));
    let (run_dir, key) = (what.run_dir.map(|fd| (RUN_DIR, fd)), what.key.map(|fd| (KEY, fd)));
    let collector = what.collector.map(|fd| (COLLECTOR, fd));
    for (kind, fd) in run_dir.into_iter().chain(data).chain(key).chain(collector) {
        text.push(kind);
        descriptors.push(fd);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let sent = sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == text.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Takes what the launcher at the other end of `socket` hands over. Blocks until it has.
///
/// # Errors
/// The operating system's refusal, or [`Errno::PROTO`] for anything but such a message.
pub fn take(socket: impl AsFd) -> Result<Handed> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; MOST + 2];
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::with_capacity(MOST);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let kinds = text.get(..got.bytes).and_then(|text| text.strip_prefix(&[MARK])).ok_or(Errno::PROTO)?;
    if kinds.len() != descriptors.len() || got.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(Errno::PROTO);
    }
    let mut handed = Handed::default();
    let mut data = Vec::with_capacity(FILES_MOST);
    for (kind, descriptor) in kinds.iter().zip(descriptors) {
        match *kind {
            RUN_DIR => handed.run_dir = Some(descriptor),
            DATA => data.push(descriptor),
            KEY => handed.key = Some(descriptor),
            COLLECTOR => handed.collector = Some(descriptor),
            _ => return Err(Errno::PROTO),
        }
    }
    if !data.is_empty() {
        handed.data = Some(data);
    }
    Ok(handed)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::config;

    #[test]
    fn what_is_handed_arrives() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"] {
            std::fs::write(folder.path().join(format!("{name}-ubyte")), name).unwrap();
        }
        let (path, mean, std) = (folder.path().to_owned(), 0.0, 1.0);
        let mnist = config::Data::Mnist { path, mean, std };
        let files = DataFiles::open(&mnist).unwrap();
        let held = super::super::handover::hold(folder.path()).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let all = ToHand {
            run_dir: Some(held.as_fd()),
            data: Some(&files),
            key: Some(held.as_fd()),
            collector: Some(held.as_fd()),
        };
        hand(&here, &all).unwrap();
        let handed = take(&there).unwrap();
        let same =
            |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino == rustix::fs::fstat(&held).unwrap().st_ino;
        assert!([handed.run_dir, handed.key, handed.collector].into_iter().all(|fd| fd.is_some_and(same)));
        let data = DataFiles::of_descriptors(&mnist, handed.data.unwrap()).unwrap();
        for (ours, theirs) in files.descriptors().iter().zip(data.descriptors()) {
            assert_eq!(rustix::fs::fstat(ours).unwrap().st_ino, rustix::fs::fstat(theirs).unwrap().st_ino);
        }
        hand(&here, &ToHand::default()).unwrap();
        let nothing = take(&there).unwrap();
        assert!(nothing.run_dir.is_none() && nothing.data.is_none() && nothing.key.is_none());
        assert!(nothing.collector.is_none());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [&b"x"[..], b"Tr", b"Tq", b"T and more than any message has"] {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(text).unwrap();
            assert_eq!(take(&there).unwrap_err(), Errno::PROTO, "{text:?}");
        }
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert_eq!(take(&there).unwrap_err(), Errno::PROTO, "a launcher that is gone");
    }
}

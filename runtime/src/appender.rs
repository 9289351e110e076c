//! Lines at the end of a file whose disk may be full for a while.
//!
//! 1. The file holds whole lines, in the order in which they were given: what a failed write left of one is cut off again.
//! 2. What could not be written is held, and written before anything that comes later, once the disk takes it.
//! 3. No more than [`HELD_MOST`] bytes are held, and one line: whoever has more to write asks [`Appender::has_room`].

use std::fs::File;
use std::io::{self, ErrorKind, Write};

/// Bytes that wait for the disk, at most: some thousand lines.
pub const HELD_MOST: usize = 4 << 20;

/// A file that is written at its end.
pub trait Tail: Write {
    /// Cuts off all beyond `length` bytes.
    ///
    /// # Errors
    /// The operating system's refusal.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Tail for File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// Writes lines.
#[derive(Debug)]
pub struct Appender<F = File> {
    file: F,
    /// Bytes of the whole lines in the file.
    length: u64,
    held: Vec<u8>,
    /// Whether a part of a line stands beyond `length`.
    is_torn: bool,
}

impl Appender<File> {
    /// Goes on at the end of `file`, which is open for appending and ends with a whole line.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn new(file: File) -> io::Result<Appender> {
        let length = file.metadata()?.len();
        Ok(Appender { file, length, held: Vec::new(), is_torn: false })
    }
}

impl<F: Tail> Appender<F> {
    /// Adds whole lines, each with its line feed, and writes as much as the disk takes.
    ///
    /// # Errors
    /// What the operating system said; what was not written is held (invariant 2), that line in any case.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.held.extend_from_slice(lines);
        self.flush()
    }

    /// Writes what is held.
    ///
    /// # Errors
    /// What the operating system said; what was not written is held still.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.cut(self.length)?;
            self.is_torn = false;
        }
        let (written, result) = write_some(&mut self.file, &self.held);
        let of_lines = self.held.iter().take(written).rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.held.drain(..of_lines);
        self.length += of_lines as u64;
        if written > of_lines {
            self.is_torn = self.file.cut(self.length).is_err();
        }
        result
    }

    /// Bytes that wait for the disk.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether one line more can be written or held; else it must be left out, and counted by whoever leaves it out.
    pub fn has_room(&mut self) -> bool {
        self.held.len() < HELD_MOST || self.flush().is_ok() || self.held.len() < HELD_MOST
    }

    /// Goes on at the end of the same file, open in another way.
    #[cfg(test)]
    pub fn replace(&mut self, file: F) {
        self.file = file;
    }

    /// The file itself, to sync it.
    #[must_use]
    pub fn file(&self) -> &F {
        &self.file
    }
}

/// As `write_all`, but says how many bytes were written before it failed.
fn write_some(file: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file on a disk with so much room.
    #[derive(Default)]
    struct Small {
        bytes: Vec<u8>,
        room: usize,
        /// Whether it cannot be cut either.
        is_stuck: bool,
    }

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room - self.bytes.len());
            self.bytes.extend(&bytes[..taken]);
            match taken {
                0 => Err(ErrorKind::StorageFull.into()),
                taken => Ok(taken),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Tail for Small {
        fn cut(&mut self, length: u64) -> io::Result<()> {
            if self.is_stuck {
                return Err(ErrorKind::Other.into());
            }
            self.bytes.truncate(usize::try_from(length).unwrap());
            Ok(())
        }
    }

    fn appender(room: usize) -> Appender<Small> {
        let file = Small { room, ..Small::default() };
        Appender { file, length: 0, held: Vec::new(), is_torn: false }
    }

    /// Invariants 1 and 2.
    #[test]
    fn a_full_disk_leaves_whole_lines_and_the_rest_follows() {
        let mut lines = appender(10);
        lines.append(b"one\n").unwrap();
        let error = lines.append(b"two\nthree\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!((lines.file.bytes.as_slice(), lines.held()), (b"one\ntwo\n".as_slice(), 6));
        lines.append(b"four\n").unwrap_err();
        assert_eq!(lines.file.bytes, b"one\ntwo\n", "what comes later goes round nothing");
        lines.file.room = 100;
        lines.flush().unwrap();
        assert_eq!((lines.file.bytes.as_slice(), lines.held()), (b"one\ntwo\nthree\nfour\n".as_slice(), 0));
    }

    /// Invariant 1, where what is torn cannot be cut off at once.
    #[test]
    fn what_is_torn_is_cut_off_before_more_is_written() {
        let mut lines = appender(6);
        lines.file.is_stuck = true;
        lines.append(b"one\ntwo\n").unwrap_err();
        assert_eq!(lines.file.bytes, b"one\ntw");
        lines.file.room = 100;
        lines.flush().unwrap_err();
        assert_eq!(lines.file.bytes, b"one\ntw", "nothing is written after half a line");
        lines.file.is_stuck = false;
        lines.flush().unwrap();
        assert_eq!(lines.file.bytes, b"one\ntwo\n");
    }

    /// Invariant 3, of one who heeds it.
    #[test]
    fn little_is_held() {
        let mut lines = appender(0);
        let mut given = 0;
        while lines.has_room() {
            lines.append(&[b'\n'; 1000]).unwrap_err();
            given += 1000;
        }
        assert!(lines.held() == given && given < HELD_MOST + 1000);
        lines.file.room = given;
        assert!(lines.has_room() && lines.held() == 0, "and it goes on once there is room");
    }

    proptest! {
        /// Invariants 1 and 2, for disks that fill and are emptied at any time.
        #[test]
        fn lines_are_whole_and_in_order(rooms in prop::collection::vec(0_usize..60, 1..40)) {
            let (mut lines, mut all) = (appender(0), Vec::new());
            for (number, room) in rooms.iter().enumerate() {
                lines.file.room = lines.file.bytes.len() + room;
                let line = format!("line {number}\n");
                all.extend(line.as_bytes());
                let _ = lines.append(line.as_bytes());
                prop_assert!(all.starts_with(&lines.file.bytes));
                prop_assert!(lines.file.bytes.last().is_none_or(|byte| *byte == b'\n'));
                prop_assert_eq!(lines.file.bytes.len() + lines.held(), all.len());
            }
            lines.file.room = all.len();
            lines.flush().unwrap();
            prop_assert_eq!(&lines.file.bytes, &all);
        }
    }
}
